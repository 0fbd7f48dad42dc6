#!/usr/bin/env python3
"""Make connected digits of the Free Spoken Digit Dataset: fetch it, or take a copy, and join its recordings."""

import argparse
import sys
from pathlib import Path

from asr_kd.cli_common import DefaultsFormatter, Parser, log, run_main, seed_number
from asr_kd.corpus.fsdd import URL, build_fsdd, download


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for data directories, lexicon and wav")
    parser.add_argument("--corpus", type=Path, help="a copy of the corpus, or its recordings; fetched if not given")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where a fetched corpus is kept")
    parser.add_argument("--url", default=URL, help="where the corpus is fetched from, a .tar.gz")
    parser.add_argument("--holdout-speaker", metavar="NAME", help="test on all recordings of this speaker")
    parser.add_argument("--fold", type=int, default=0, help="of ten, for cross-validation; 0 is the corpus's own split")
    parser.add_argument("--any-version", action="store_true", help="take a corpus that differs from the pinned one")
    help_ = "chooses which digits make an utterance, and the pauses"
    parser.add_argument("--seed", type=seed_number, default=0, help=help_)
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the corpus, or say that it is there."""
    corpus = args.corpus or download(args.downloads, args.url, args.any_version, log)
    made = build_fsdd(corpus, args.out, args.seed, args.holdout_speaker, args.any_version, log, args.fold)
    log(f"{args.out}: {'complete' if made else 'up to date'}")


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
