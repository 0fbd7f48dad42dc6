"""`asr-kd config`."""

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from asr_kd.cli_common import log
from asr_kd.commands.command import command, path
from asr_kd.config import CONCERNS
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text
from asr_kd.store.parsing import format_yaml, parse_yaml


@command(
    "config",
    "print or save the resolved configuration",
    path("--out", "write here instead of to the terminal", required=False),
    config=list(CONCERNS.values()),
)
def config(args: argparse.Namespace) -> None:
    """Defaults of conf/, then every --config, then the options: one flat file for all other commands."""
    if args.values["num_seeds"] > args.values["num_members"]:
        raise AsrKdError(
            f"num_seeds {args.values['num_seeds']}: the baseline's nets are members of the ensemble, so it can be at "
            f"most num_members, {args.values['num_members']}; give a smaller --num-seeds, or more members"
        )
    text = format_yaml(args.values)
    if not args.out:
        print(text, end="")
        return
    _tell_changes(args.out, args.values)
    write_text(args.out, text)


def _tell_changes(out: Path, values: dict[str, Any]) -> None:
    """Say what will differ from the configuration that an experiment was run with before.

    Raises AsrKdError where what is there is not what this command wrote, which is all keys, of some version, and no
    comment.
    """
    try:
        text = out.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError):
        text = "# not text"
    if not text.strip():
        return
    try:
        before = {} if re.search(r"^\s*#|\s# ", text, re.MULTILINE) else parse_yaml(text)
    except yaml.YAMLError:
        before = {}
    if not isinstance(before, dict) or 2 * len(before.keys() & values.keys()) < len(values):
        raise AsrKdError(f"{out}: exists and is no configuration that asr-kd config wrote; name another file")
    changed = [f"{key} {before.get(key)} → {value}" for key, value in values.items() if before.get(key) != value]
    if changed:
        log(
            f"{out}: differs from the last run here in {', '.join(changed)}; what depends on it is made again where "
            "its stage is run"
        )
