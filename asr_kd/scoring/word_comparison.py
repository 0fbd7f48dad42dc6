"""Word error rates of several systems on the same utterances, with intervals, and their comparisons in pairs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.estimates import comparison_entry
from asr_kd.scoring.significance import (
    NUM_RESAMPLES,
    ClusterBootstrap,
    Difference,
    matched_pairs,
    place_errors,
)
from asr_kd.scoring.systems import ERROR_KINDS, error_kinds
from asr_kd.scoring.tables import Column, Row, Table, format_mean_count, format_number, format_points
from asr_kd.scoring.wer import WordScores

# What the rate of errors is called, short and in full, by what is counted.
RATES = {
    "word": ("WER", "word error rate"),
    "char": ("CER", "character error rate"),
    "phone": ("PER", "phone error rate"),
}


@dataclass(frozen=True)
class WordSystem:
    """A system, scored once per seed on the same utterances; its figures are means over seeds."""

    name: str
    seeds: list[WordScores]

    @property
    def mean_errors(self) -> np.ndarray:
        """Errors of each utterance, (num_utts,) float64."""
        return np.mean([scores.errors.sum(axis=1) for scores in self.seeds], axis=0)

    @property
    def mean_words(self) -> np.ndarray:
        """Reference words of each utterance, (num_utts,); seeds differ only where references have alternatives."""
        return np.mean([scores.num_ref for scores in self.seeds], axis=0)


def compare_systems(
    systems: Sequence[WordSystem],
    units: Sequence[str],
    *,
    has_alternatives: bool = False,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Entries `systems`, `comparisons` and `refused_tests`, as results.json has them: percent, and points a − b.

    `units` names what is resampled for each utterance: itself, or its speaker. Every pair of systems is compared by
    the paired bootstrap and by MAPSSWE; p values are not corrected for the number of pairs. References with
    alternatives have no words in common to bound MAPSSWE's segments, so it is refused there. Intervals are None where
    there is only one unit.

    Raises AsrKdError where names repeat or systems were scored on different utterances.
    """
    _check(systems)
    columns = {}
    for system in systems:
        columns[f"errors of {system.name}"] = system.mean_errors
        columns[f"words of {system.name}"] = system.mean_words
    bootstrap = ClusterBootstrap(units, columns, num_resamples) if len(set(units)) > 1 else None
    placed = {s.name: None if has_alternatives else place_errors([x.alignments for x in s.seeds]) for s in systems}
    comparisons, refused = [], []
    for a, b in itertools.combinations(systems, 2):
        tests: list[Difference] = []
        if bootstrap:
            nums, dens = zip(*((f"errors of {s.name}", f"words of {s.name}") for s in (a, b)), strict=True)
            tests.append(bootstrap.compare(*nums, *dens))
        if has_alternatives:
            difference = _wer(a) - _wer(b)
            reason = "references with alternatives have no fixed words to bound segments"
            tests.append(Difference(difference, None, None, "MAPSSWE", 0, reason))
        else:
            tests.append(matched_pairs(placed[a.name], placed[b.name], a.seeds[0].num_ref))
        for test in tests:
            (comparisons if test.reason is None else refused).append(comparison_entry(a.name, b.name, "wer", test))
    return {
        "num_units": len(set(units)),
        "systems": [_entry(system, bootstrap) for system in systems],
        "comparisons": comparisons,
        "refused_tests": refused,
    }


def _check(systems: Sequence[WordSystem]) -> None:
    names = [system.name for system in systems]
    if not names or len(set(names)) < len(names):
        raise AsrKdError("systems to compare must have distinct names, and there must be at least one")
    for scores in (scores for system in systems for scores in system.seeds):
        if scores.utt_ids != systems[0].seeds[0].utt_ids:
            raise AsrKdError("systems to compare must be scored on the same utterances")


def _wer(system: WordSystem) -> float:
    return float(system.mean_errors.sum() / system.mean_words.sum())


def _entry(system: WordSystem, bootstrap: ClusterBootstrap | None) -> dict[str, Any]:
    num, den = f"errors of {system.name}", f"words of {system.name}"
    first = system.seeds[0]
    return {
        "name": system.name,
        "wer": {
            "value": 100.0 * _wer(system),
            "ci95": [100.0 * bound for bound in bootstrap.interval(num, den)] if bootstrap else None,
            "per_seed": [100.0 * scores.wer for scores in system.seeds],
            **error_kinds(np.stack([scores.errors for scores in system.seeds])),
        },
        "num_words": int(first.num_ref.sum()),
        "ser": {
            "value": float(np.mean([100.0 * scores.num_wrong_utts / len(scores.utt_ids) for scores in system.seeds])),
        },
        "num_absent": [scores.num_absent for scores in system.seeds],
    }


def systems_table(results: dict[str, Any]) -> Table:
    """Error rate, interval and kinds of errors of each system, and its error rate by seed if it has several.

    results: of `compare_systems`, with the `unit` that was counted.
    """
    percent, rate = format_number(2), RATES[results["unit"]][0]
    columns = [
        Column("name", "System", text=True),
        Column("wer", f"{rate} %", percent, interval=True),
        *(Column(kind, kind.capitalize(), format_mean_count) for kind in ERROR_KINDS),
        Column("ser", "SER %", percent),
        Column("per_seed", f"{rate} % of seeds", text=True),
    ]
    rows = []
    for system in results["systems"]:
        wer = system["wer"]
        cells = {"name": system["name"], "wer": wer, **wer["mean"]}
        per_seed = " ".join(map(percent, wer["per_seed"])) if len(wer["per_seed"]) > 1 else None
        rows.append(Row({**cells, "ser": system["ser"]["value"], "per_seed": per_seed}))
    caption = "Error rates with 95 % intervals; insertions, deletions and substitutions; all are means over seeds."
    return Table("systems", caption, columns, rows)


def results_text(results: dict[str, Any]) -> str:
    """The table of systems and the comparisons, for a terminal; results as for `systems_table`."""
    width = max(len("system"), *(len(system["name"]) for system in results["systems"]))
    lines = [f"{'system':{width}}    {RATES[results['unit']][0]} %  95 % interval    ins    del    sub   SER %  seeds"]
    for system in results["systems"]:
        wer = system["wer"]
        interval = "              -" if wer["ci95"] is None else f"[{wer['ci95'][0]:6.2f}, {wer['ci95'][1]:6.2f}]"
        counts = "".join(f"{format_mean_count(count):>7}" for count in wer["mean"].values())
        seeds = len(wer["per_seed"])
        name = f"{system['name']:{width}}"
        lines.append(f"{name}  {wer['value']:7.2f} {interval}{counts} {system['ser']['value']:7.2f} {seeds:6d}")
    for test in results["comparisons"]:
        low, high = test["ci95"]
        lines.append(
            f"{test['a']} − {test['b']}: {format_points(test['difference'])} points "
            f"[{format_points(low)}, {format_points(high)}], "
            f"p = {test['p_value']:.3g} ({test['test']}, n = {test['n']})"
        )
    for test in results["refused_tests"]:
        lines.append(f"{test['a']} − {test['b']}: {test['test']} refused: {test['reason']}")
    return "\n".join(lines) + "\n"
