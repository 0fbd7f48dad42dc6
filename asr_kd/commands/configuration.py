"""`asr-kd config`."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from asr_kd.config import CONCERNS, add_config_options, config_from_args
from asr_kd.store.atomic import write_text


def add_config(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "config",
        help="print or save the resolved configuration",
        description="Defaults of conf/, then every --config, then the options: one flat file for all other commands.",
    )
    parser.add_argument("--out", type=Path, help="write here instead of to the terminal")
    add_config_options(parser, CONCERNS.values())
    parser.set_defaults(main=config)


def config(args: argparse.Namespace) -> None:
    text = yaml.safe_dump(config_from_args(args), sort_keys=False, default_flow_style=None)
    if args.out:
        write_text(args.out, text)
    else:
        print(text, end="")
