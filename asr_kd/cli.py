"""`asr-kd COMMAND`: one subcommand for every step of an experiment."""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence

from asr_kd.runtime import prepare_runtime

prepare_runtime()

from asr_kd import __version__
from asr_kd.cli_common import Parser, run_main
from asr_kd.commands.command import Command

# Where each command lives, in the order in which an experiment takes them; `a-b` is the attribute a_b of its module.
COMMANDS = {
    "config": "configuration",
    "inspect": "inspection",
    "import-kaldi": "kaldi_import",
    "train-hmm": "hmm",
    "align": "hmm",
    "train-lm": "lm",
    "perplexity": "lm",
    "make-graph": "hmm",
    "train": "training",
    "train-ensemble": "training",
    "train-specialists": "specialists",
    "specialist-coverage": "specialists",
    "soft-targets": "distillation",
    "import-targets": "kaldi_import",
    "smooth-targets": "sequence",
    "sweep": "distillation",
    "distill": "distillation",
    "correct-bias": "transfer",
    "decode": "scoring",
    "lattice-nbest": "lattices",
    "lattice-rescore": "lattices",
    "lattice-oracle": "lattices",
    "score": "scoring",
    "score-frames": "frame_scoring",
    "count-errors": "error_counts",
    "score-words": "word_scoring",
    "report": "scoring",
    "export": "recognition",
    "export-kaldi": "kaldi_tables",
    "recognize": "recognition",
    "check-hmm": "hmm",
    "check-boundaries": "hmm",
    "check-search": "hmm",
    "env": "environment",
}


def _load(name: str) -> Command:
    return getattr(importlib.import_module(f"asr_kd.commands.{COMMANDS[name]}"), name.replace("-", "_"))


def build_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the commands `names`; only their modules are imported, since some of them take seconds."""
    parser = Parser(prog="asr-kd", description="Distil an ensemble of acoustic models into one net of the same size.")
    parser.add_argument("--version", action="version", version=f"asr-kd {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in names:
        _load(name).add_to(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `asr-kd`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    names = argv[:1] if argv and argv[0] in COMMANDS else COMMANDS
    return run_main(lambda args: args.main(args), build_parser(names), argv)


if __name__ == "__main__":
    sys.exit(main())
