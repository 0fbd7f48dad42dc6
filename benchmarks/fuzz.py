#!/usr/bin/env python3
"""Hostile files for every reader of strangers' files, ten thousand each, and what came of them.

A row a reader: cases refused with a sentence, cases read (which were whole, or had a structure that is possible), the
slowest one, failures: crashes, hangs, floods of memory, errors that are not ours, and results of sealed files that
differ from the whole one's. Exits with 1 if there is a failure. The same numbers are the same cases.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzz
import fuzz_readers  # noqa: F401

from asr_kd.cli_common import Parser, log, run_main
from asr_kd.errors import AsrKdError


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="fuzz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="for each reader; default: 10000")
    parser.add_argument("--first", type=int, default=0, help="number of the first case; default: 0")
    parser.add_argument("--reader", action="append", choices=fuzz.READERS, help="only this one; as often as wanted")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of cases that failed here")
    return parser


def main(args: argparse.Namespace) -> None:
    """Print a row for each reader."""
    donors, failed = fuzz.whole_files(), 0
    for name in args.reader or fuzz.READERS:
        start = time.perf_counter()
        report = fuzz.run(name, args.cases, donors=donors, first=args.first, keep=args.keep)
        print(f"{name}: {args.cases} cases in {time.perf_counter() - start:.0f} s: {report}", flush=True)
        for number, failure in list(report.failures.items())[:5]:
            log(f"{name} case {number}: {failure}")
        failed += len(report.failures)
    if failed:
        raise AsrKdError(f"{failed} cases failed; --keep DIR keeps their files")


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
