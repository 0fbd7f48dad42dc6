"""What a word can be that a key of the configuration, an option or an argument takes, each said once, as a type."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

from asr_kd.errors import AsrKdError

FeatsDtype = Literal["float32", "float16"]
# Over what features are normalised, for nets and for the GMM.
CmvnMode = Literal["none", "global", "speaker", "utterance"]
GmmCmvn = Literal["utterance", "speaker"]
Topology = Literal["3state", "bakis"]
SilenceTopology = Literal["3state", "5state"]
Questions = Literal["clustered", "all"]
# How members' distributions become one; what a student can learn from are specialists, too.
Combination = Literal["arithmetic", "geometric"]
TeacherCombination = Literal[Combination, "specialists"]


def words(choice: Any) -> tuple[str, ...]:
    """The words of one of the types above."""
    return get_args(choice)


def listed(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def require_choice(name: str, value: str, choice: Any) -> None:
    """Raise AsrKdError unless `value`, which `name` was given, is a word of `choice`."""
    if value not in words(choice):
        raise AsrKdError(f"{name} {value!r}: choose {listed(words(choice))}")
