"""systems.yaml: which nets make up which system, for decoding and scoring.

    - name: baseline            # a word for tables and file names
      role: baseline            # member, baseline, ensemble, student, control or specialists
      nets: [[a/seed1], [a/seed2]]  # one list for each seed; the nets in a list answer together
      combination: arithmetic   # how they do, where a list holds several; specialists: the generalist comes first

Paths are relative to the file's own folder.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from asr_kd.choices import TeacherCombination, listed, words
from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import load_card
from asr_kd.scoring.systems import ROLES
from asr_kd.store.parsing import parse_yaml


@dataclass(frozen=True)
class SystemSpec:
    """One system: nets[seed] are the folders of the nets that answer together."""

    name: str
    role: str
    combination: str | None
    nets: tuple[tuple[Path, ...], ...]

    def cards(self) -> list[list[dict[str, Any]]]:
        """net.json of every net, by seed; raises AsrKdError where one is missing."""
        return [[load_card(path) for path in nets] for nets in self.nets]


def read_systems(path: str | Path) -> list[SystemSpec]:
    """Read systems.yaml; raises AsrKdError naming the file and the entry that is wrong."""
    path = Path(path)
    try:
        entries = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AsrKdError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(entries, list) or not entries:
        raise AsrKdError(f"{path}: expected a list of systems")
    systems = [_read_entry(path, number, entry) for number, entry in enumerate(entries, 1)]
    names = [system.name for system in systems]
    if len(set(names)) != len(names):
        raise AsrKdError(f"{path}: two systems share a name")
    return systems


def _read_entry(path: Path, number: int, entry: Any) -> SystemSpec:
    def require(holds: Any, what: str) -> None:
        if not holds:
            raise AsrKdError(f"{path}: system {number}: {what}")

    require(isinstance(entry, dict) and {"name", "role", "nets"} <= set(entry), "needs name, role and nets")
    unknown = set(entry) - {"name", "role", "nets", "combination"}
    require(not unknown, f"unknown key {', '.join(sorted(map(str, unknown)))}")
    name = entry["name"]
    require(isinstance(name, str), f"its name {name} is no word to YAML; put it in quotes")
    require(
        re.fullmatch(r"\.?[\w+-][\w.+-]*", name),
        "its name may hold letters, digits and . _ + - only, and is that of a folder",
    )
    require(entry["role"] in ROLES, f"role must be one of {', '.join(ROLES)}")
    seeds = entry["nets"]
    require(
        isinstance(seeds, list) and seeds and all(isinstance(nets, list) and nets for nets in seeds),
        "nets must be a list of lists, one for each seed",
    )
    combination = entry.get("combination")
    if max(map(len, seeds)) > 1:
        known = words(TeacherCombination)
        require(combination in known, f"combination must be {listed(known)}")
    require(all(isinstance(net, str) for nets in seeds for net in nets), "nets must be words; put them in quotes")
    nets = tuple(tuple(path.parent / net for net in nets) for nets in seeds)
    places = [tuple(net.resolve() for net in seed) for seed in nets]
    require(len(set(places)) == len(places), "two of its seeds are the same nets, which would count as two trainings")
    require(all(len(set(seed)) == len(seed) for seed in places), "a net is in one list twice")
    return SystemSpec(name, entry["role"], combination, nets)
