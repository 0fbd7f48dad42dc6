#!/usr/bin/env python3
"""Make the embedded corpus: numbers spoken by espeak-ng in simulated rooms with noise, with true phone times."""

import argparse
import os
import sys
from pathlib import Path

from asr_kd.cli_common import DefaultsFormatter, Parser, at_least_one, log, run_main, seed_number
from asr_kd.corpus.mini import MiniOptions, build_mini


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    defaults = MiniOptions()
    parser = Parser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the corpus: data directories, lexicon, wav")
    for name in ("train", "dev", "test"):
        default = getattr(defaults, f"hours_{name}")
        parser.add_argument(f"--hours-{name}", type=float, default=default, help=f"hours of speech in {name}")
    help_ = "hours of speech without text in unlabelled, by the voices of train"
    parser.add_argument("--hours-unlabelled", type=float, default=defaults.hours_unlabelled, help=help_)
    help_ = "chooses voices, words, rooms and noise"
    parser.add_argument("--seed", type=seed_number, default=defaults.seed, help=help_)
    parser.add_argument("--snr-min", type=float, default=defaults.snr_min, help="lowest signal-to-noise ratio, dB")
    parser.add_argument("--snr-max", type=float, default=defaults.snr_max, help="highest signal-to-noise ratio, dB")
    parser.add_argument("--rt60-max", type=float, default=defaults.rt60_max, help="longest reverberation time, s")
    parser.add_argument(
        "--nj", type=at_least_one, default=os.cpu_count() or 1, help="processes; the corpus does not depend on it"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the corpus, or say that it is there."""
    options = MiniOptions(
        hours_train=args.hours_train,
        hours_dev=args.hours_dev,
        hours_test=args.hours_test,
        hours_unlabelled=args.hours_unlabelled,
        seed=args.seed,
        snr_min=args.snr_min,
        snr_max=args.snr_max,
        rt60_max=args.rt60_max,
    )
    made = build_mini(args.out, options, args.nj, log)
    log(f"{args.out}: {'complete' if made else 'up to date'}")


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
