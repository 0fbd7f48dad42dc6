#!/usr/bin/env python3
"""Validate Kaldi data directories, and, given several, that they share no utterance and no recording."""

import argparse
import sys
from pathlib import Path

from asr_kd.cli_common import log, run_main
from asr_kd.corpus.datadir import check_disjoint, read_data_dir
from asr_kd.corpus.lexicon import known_transcripts, read_lexicon


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dirs", type=Path, nargs="+", metavar="DIR", help="data directories (wav.scp, text, …)")
    parser.add_argument("--no-text", action="store_true", help="do without transcripts")
    parser.add_argument("--lexicon", type=Path, help="check that this lexicon.txt has every word")
    parser.add_argument("--by-speaker", action="store_true", help="the directories must not share a speaker either")
    return parser


def main(args: argparse.Namespace) -> None:
    """Validate, and print a line for each directory."""
    lexicon = read_lexicon(args.lexicon) if args.lexicon else None
    dirs = {}
    for path in args.data_dirs:
        dirs[str(path)] = utterances = read_data_dir(path, need_text=not args.no_text)
        if lexicon is not None:
            spoken = [(utt.utt_id, utt.words or ()) for utt in utterances]
            known_transcripts(lexicon, spoken, path / "text", max_oov_share=0.0, log=log)
        print(f"{path}: {len(utterances)} utterances by {len({utt.spk_id for utt in utterances})} speakers")
    check_disjoint(dirs, by_speaker=args.by_speaker)


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
