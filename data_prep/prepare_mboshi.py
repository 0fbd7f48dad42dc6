#!/usr/bin/env python3
"""Make data directories of Mboshi, continuous speech: fetch it, or take a copy; letters are the phones."""

import argparse
import sys
from pathlib import Path

from asr_kd.cli_common import DefaultsFormatter, Parser, log, run_main
from asr_kd.corpus.mboshi import URL, download, read_corpus, write_sets
from asr_kd.runinfo import make


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for data directories and lexicons")
    parser.add_argument("--corpus", type=Path, help="a copy of the corpus, wav or flac; fetched if not given")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where a fetched corpus is kept")
    parser.add_argument("--url", default=URL, help="where the corpus is fetched from, a .tar.gz")
    parser.add_argument("--any-version", action="store_true", help="take a corpus that differs from the pinned one")
    parser.add_argument("--dev-share", type=float, default=0.08, help="of the training sentences, held out as dev")
    help_ = "of all sentences but those of test (dev's count, too): without their transcripts, as directory unlabelled"
    parser.add_argument("--unlabelled-share", type=float, default=0.0, help=help_)
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the sets, or say that they are there."""
    folder = args.corpus or download(args.downloads, args.url, args.any_version, log)
    corpus = read_corpus(folder, args.any_version, log)
    make(
        args.out,
        lambda: write_sets(corpus, args.out, args.dev_share, log, args.unlabelled_share),
        command=" ".join(sys.argv),
        corpus=corpus.digest,
        folder=folder.absolute(),
        dev_share=args.dev_share,
        unlabelled_share=args.unlabelled_share,
    )


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
