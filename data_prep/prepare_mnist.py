#!/usr/bin/env python3
"""Make feats.h5 and ali.h5 of MNIST: fetch its IDX files, or take a copy; an image is a frame, its digit the state."""

import argparse
import sys
from pathlib import Path

from asr_kd.cli_common import DefaultsFormatter, Parser, log, run_main
from asr_kd.corpus.mnist import MIRRORS, download, read_corpus, split, write_sets
from asr_kd.runinfo import make


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for {train,dev,test}.{feats,ali}.h5")
    parser.add_argument(
        "--corpus", type=Path, help="folder of the four IDX files, .gz or unpacked; fetched if not given"
    )
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where fetched files are kept")
    parser.add_argument("--url", nargs="+", default=MIRRORS, help="folders that they are fetched from, tried in turn")
    parser.add_argument("--any-version", action="store_true", help="take files that are not MNIST's")
    parser.add_argument("--dev-images", type=int, default=10000, help="the last of the training images, to choose on")
    parser.add_argument("--num-images", type=int, help="take only the first of the training and of the test images")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the sets, or say that they are there."""
    sets, digest = read_corpus(args.corpus or download(args.downloads, args.url, log), args.any_version)
    made_from = {"corpus": digest, "dev_images": args.dev_images, "num_images": args.num_images}
    make(
        args.out,
        lambda: write_sets(args.out, split(sets, args.dev_images, args.num_images), log),
        command=" ".join(sys.argv),
        **made_from,
    )


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
