"""JSON and YAML of strangers: text that is nested to exhaust the stack is a ValueError like any other that is none."""

import json
import re
from typing import Any

import yaml

_BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))


class _Loader(yaml.SafeLoader):
    """Without what YAML 1.1 takes for something else in silence.

    010 is no 8, 1:30 no 90, NO and off no truth value (1.2 took them out); and of two values of one key none is taken.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _INT, _FLOAT)]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile("[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Quotes what _Loader would take for something else than a word."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

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
        return yaml.load(text, _Loader)
    except (RecursionError, ValueError) as error:  # ValueError: a date that is none, say
        raise yaml.YAMLError(f"it is nested too deeply, or holds an impossible value ({error})") from error


def format_yaml(values: dict[str, Any]) -> str:
    """Values as text that parse_yaml takes, a line for each, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None)
