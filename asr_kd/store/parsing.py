"""JSON and YAML of strangers: text that is nested to exhaust the stack is a ValueError like any other that is none."""

import json
from typing import Any

import yaml


class _EachKeyOnce(yaml.SafeLoader):
    """PyYAML takes the last of two values of one key, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


# They are parsed at some tens of kilobytes a second.
MAX_YAML_LETTERS = 1 << 17


def parse_json(text: str) -> Any:
    """What `text` says; raises ValueError where it is not JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """What `text` says; raises yaml.YAMLError where it is not YAML, or is longer than any of our files of YAML."""
    if len(text) > MAX_YAML_LETTERS:
        raise yaml.YAMLError(f"it has {len(text)} letters, more than the {MAX_YAML_LETTERS} that are read")
    try:
        return yaml.load(text, _EachKeyOnce)
    except (RecursionError, ValueError) as error:  # ValueError: a date that is none, say
        raise yaml.YAMLError(f"it is nested too deeply, or holds an impossible value ({error})") from error
