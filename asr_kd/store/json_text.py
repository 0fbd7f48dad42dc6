"""JSON and YAML of strangers: text that is nested to exhaust the stack is a ValueError like any other that is none."""

import json
from typing import Any

import yaml


def parse_json(text: str) -> Any:
    """What `text` says; raises ValueError where it is not JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """What `text` says; raises yaml.YAMLError where it is not YAML."""
    try:
        return yaml.safe_load(text)
    except (RecursionError, ValueError) as error:  # ValueError: a date that is none, say
        raise yaml.YAMLError(f"it is nested too deeply, or holds an impossible value ({error})") from error
