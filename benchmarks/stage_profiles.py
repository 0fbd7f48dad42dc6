#!/usr/bin/env python3
"""Where every stage's time goes: the functions with most time of their own, by cProfile, on one core.

The stages are those of growth.py, over --num-utts utterances of what --exp, a recipe's folder, trains on. Each is a
process of its own whose imports are done before. What compiled code and torch do counts for the Python function or
method that called them; cProfile slows Python down: shares of functions that are called often are too large.
"""

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import torch
from growth import Part, measured

from asr_kd.cli_common import log, run_main

_ROOT = Path(__file__).parents[1]


def profiled(work: Callable[[], object], out: Path) -> Callable[[], int]:
    """`work`, and afterwards its profile in `out`."""

    def run() -> int:
        profile = cProfile.Profile(time.process_time)
        status = int(profile.runcall(work) or 0)
        profile.dump_stats(out)
        return status

    return run


def rows(profile: Path, number: int) -> list[tuple[str, int, float, float]]:
    """(function, calls, seconds of its own, share of all) of the `number` with most time of their own."""
    stats = pstats.Stats(str(profile))
    total = sum(own for _, _, own, _, _ in stats.stats.values())
    found = [(name_of(*key), calls, own, own / total) for key, (_, calls, own, _, _) in stats.stats.items()]
    return sorted(found, key=lambda row: -row[2])[:number]


def name_of(file: str, line: int, function: str) -> str:
    """Where it stands: file:line of ours, the file's name of others', nothing for what is compiled."""
    path = Path(file)
    if path.is_relative_to(_ROOT):
        return f"{path.relative_to(_ROOT)}:{line} {function}"
    return function if file == "~" else f"{path.parent.name}/{path.name} {function}"


def main(args: argparse.Namespace) -> None:
    """Print one table a stage."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "first").mkdir()
        (folder / "all").mkdir()
        for work in Part(args.exp.resolve(), folder / "first", 2).stages().values():
            measured(work, folder / "log")  # numba compiles what is compiled once, and keeps it
        for stage, work in Part(args.exp.resolve(), folder / "all", args.num_utts).stages().items():
            seconds, _ = measured(profiled(work, folder / "profile"), folder / "log")
            log(f"{stage}: {seconds:.2f} s")
            print(f"\n{stage}, {seconds:.2f} s\n\n| function | calls | seconds | share |\n|---|---:|---:|---:|")
            for function, calls, own, share in rows(folder / "profile", args.functions):
                print(f"| {function} | {calls:,} | {own:.2f} | {100 * share:.0f} % |")


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, default=Path("exp/mini"), help="a recipe's folder (default exp/mini)")
    parser.add_argument("--num-utts", type=int, default=256, help="utterances of the part (default 256)")
    parser.add_argument("--functions", type=int, default=8, help="rows of each table (default 8)")
    parser.add_argument("--folder", type=Path, help="for what the stages write (default: the temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
