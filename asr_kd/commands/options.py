"""Options that several subcommands share."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from asr_kd.errors import AsrKdError


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto: CUDA where there is a GPU)")


def add_sets(parser: argparse.ArgumentParser, sets: Mapping[str, str], files: Sequence[str]) -> None:
    """`--SET-FILE` for every set and file; a set named `` gives `--FILE`."""
    for name, help_text in sets.items():
        for file in files:
            option = f"--{name}-{file}" if name else f"--{file}"
            parser.add_argument(option, type=Path, required=True, help=help_text)


def parse_seeds(text: str) -> list[int]:
    """`1-3` or `1,2,5` → numbers; raises AsrKdError for anything else."""
    try:
        seeds = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) != len(seeds):
        raise AsrKdError(f"--seeds {text}: expected whole numbers like 1-3 or 1,2,5, each once")
    return seeds
