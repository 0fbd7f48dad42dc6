"""`asr-kd COMMAND`: one subcommand for every step of an experiment."""

import argparse
import os
import sys
from collections.abc import Sequence

# Before torch loads OpenMP. Threads that spin as long as they wait (the default) slow training to a fiftieth as soon as
# another process wants a core; threads that sleep at once halve it on an idle machine. A short spin is right for both.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from asr_kd import __version__
from asr_kd.cli_common import run_main
from asr_kd.commands import (
    configuration,
    distillation,
    environment,
    frame_scoring,
    hmm,
    inspection,
    recognition,
    scoring,
    training,
    word_scoring,
)

COMMANDS = (  # in the order in which an experiment takes them
    configuration.config,
    inspection.inspect,
    hmm.train_hmm,
    hmm.align,
    hmm.make_graph,
    training.train,
    training.train_ensemble,
    distillation.soft_targets,
    distillation.sweep,
    distillation.distill,
    scoring.decode,
    scoring.score,
    frame_scoring.score_frames,
    word_scoring.score_words_command,
    scoring.report,
    recognition.export,
    recognition.recognize,
    hmm.check_hmm,
    hmm.check_boundaries,
    hmm.check_search,
    environment.env,
)


class _Parser(argparse.ArgumentParser):
    """Options by their whole names only: an abbreviation that works today breaks when a key is added."""

    def __init__(self, **kwargs):
        super().__init__(**{"allow_abbrev": False, **kwargs})


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(prog="asr-kd", description="Distil an ensemble of acoustic models into one net of the same size.")
    parser.add_argument("--version", action="version", version=f"asr-kd {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for each in COMMANDS:
        each.add_to(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `asr-kd`."""
    return run_main(lambda args: args.main(args), build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
