"""results.json: what programs read of an experiment, built from the systems' scores."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.breakdown import calibration_entry, confusion_entry, per_phone_rows
from asr_kd.scoring.schema import HEADLINE, METRICS, check_results
from asr_kd.scoring.significance import (
    NUM_RESAMPLES,
    ClusterBootstrap,
    Difference,
    mapsswe,
    share_of_gain,
)
from asr_kd.scoring.systems import SystemScores, mean_over_seeds

RESAMPLING_UNITS = ("utterance", "speaker")

# metric → (what is counted, per seed and utterance; what it is divided by, per utterance; whether more is better)
_COUNTS: dict[str, tuple[Callable[[SystemScores], np.ndarray], Callable[[SystemScores], np.ndarray], bool]] = {
    "frame_accuracy": (lambda s: s.correct, lambda s: s.num_frames, True),
    "frame_accuracy_nonsil": (lambda s: s.correct_nonsil, lambda s: s.num_nonsil, True),
    "frame_accuracy_top5": (lambda s: s.correct_top5, lambda s: s.num_frames, True),
    "wer": (lambda s: s.errors.sum(axis=2), lambda s: s.num_ref_words, False),
    "per": (lambda s: s.phone_errors.sum(axis=2), lambda s: s.num_ref_phones, False),
}


def build_results(
    recipe: str,
    preset: str,
    split: str,
    systems: Sequence[SystemScores],
    headline: Mapping[str, str],
    resampling_unit: str = "utterance",
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The content of results.json for systems scored on one set.

    `headline` names the baseline, ensemble and student that are compared with each other. Accuracies and error rates
    are in percent, differences in points (a − b), shares are fractions; `ci95` are bootstrap intervals over
    `resampling_unit` for the mean over seeds, and p values are those of `ClusterBootstrap.compare` and `mapsswe`, not
    corrected for the number of comparisons. In `gain_recovered` a gain is an increase of accuracy or a reduction of
    the error rate, and `shortfall_points` is the ensemble's gain less the student's, for both.
    Beyond the schema there are: of each system `frame_accuracy_nonsil` (null where all is silence),
    `frame_accuracy_top5` and `calibration` (null where they were not scored); `refused_tests` (a comparison that could
    not be tested, with its reason), `num_speakers`, `bootstrap`, `per_phone` (of the headline systems) and
    `confusions` (by name of baseline and student), as asr_kd/scoring/breakdown.py describes them.

    Raises AsrKdError where systems were not scored on the same utterances, labels and transcripts.
    """
    by_name = _check_systems(systems, headline)
    if resampling_unit not in RESAMPLING_UNITS:
        raise AsrKdError(f"resampling unit must be one of {', '.join(RESAMPLING_UNITS)}, not {resampling_unit}.")
    first = systems[0]
    units = first.utt_ids if resampling_unit == "utterance" else first.spk_ids
    bootstrap = ClusterBootstrap(units, _columns(systems), num_resamples, seed)
    trio = {role: by_name[headline[role]] for role in HEADLINE}
    comparisons, refused = _compare_all(bootstrap, trio)
    results = {
        "recipe": recipe,
        "preset": preset,
        "split": split,
        "num_utts": len(first.utt_ids),
        "num_speakers": len(set(first.spk_ids)),
        "num_frames": int(first.num_frames.sum()),
        "num_words": int(first.num_ref_words.sum()),
        "resampling_unit": resampling_unit,
        "bootstrap": {"num_resamples": num_resamples, "seed": seed, "num_units": bootstrap.num_units},
        "headline": {role: headline[role] for role in HEADLINE},
        "systems": [_system_entry(bootstrap, system) for system in systems],
        "comparisons": comparisons,
        "refused_tests": refused,
        "gain_recovered": {metric: _gain_entry(bootstrap, trio, metric) for metric in ("frame_accuracy", "wer")},
        **_breakdown(trio, units),
    }
    check_results(results)
    return results


def _breakdown(trio: Mapping[str, SystemScores], units: Sequence[str]) -> dict[str, Any]:
    """Phones and confusions, where all of the headline systems were scored to that depth."""
    details = {system.name: system.detail for system in trio.values() if system.detail is not None}
    baseline, student = trio["baseline"].name, trio["student"].name
    if len(details) < len({system.name for system in trio.values()}):
        return {"per_phone": [], "confusions": {}}
    return {
        "per_phone": per_phone_rows(details, baseline, units),
        "confusions": {name: confusion_entry(details[name]) for name in dict.fromkeys((baseline, student))},
    }


def _check_systems(systems: Sequence[SystemScores], headline: Mapping[str, str]) -> dict[str, SystemScores]:
    by_name = {system.name: system for system in systems}
    if not systems or len(by_name) < len(systems):
        raise AsrKdError("systems to report must have distinct names, and there must be at least one.")
    for role in HEADLINE:
        if headline.get(role) not in by_name:
            raise AsrKdError(f"the headline's {role}, {headline.get(role)}, is none of {', '.join(by_name)}.")
    for system in systems[1:]:
        for field in ("utt_ids", "spk_ids", "num_frames", "num_nonsil", "num_ref_words", "num_ref_phones", "refs"):
            ours, theirs = getattr(systems[0], field), getattr(system, field)
            if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
                raise AsrKdError(f"systems {systems[0].name} and {system.name} were scored on different {field}.")
    return by_name


def _scored(system: SystemScores, metric: str) -> bool:
    if metric == "per":
        return system.phone_errors is not None
    if metric == "frame_accuracy_top5":
        return system.correct_top5 is not None
    return metric != "frame_accuracy_nonsil" or bool(system.num_nonsil.any())


def _columns(systems: Sequence[SystemScores]) -> dict[str, np.ndarray]:
    """What is resampled: the denominators of all metrics, and each system's counts averaged over its seeds."""
    columns = {}
    for system, (metric, (count, total, _)) in itertools.product(systems, _COUNTS.items()):
        if _scored(system, metric):
            columns[_num(system, metric)] = mean_over_seeds(count(system))
            columns[_den(metric)] = total(system)
    return columns


def _num(system: SystemScores, metric: str) -> str:
    return f"{metric} of {system.name}"


def _den(metric: str) -> str:
    return f"total for {metric}"


def _per_seed(system: SystemScores, metric: str) -> np.ndarray:
    """The metric of each seed in percent, (S,)."""
    count, total, _ = _COUNTS[metric]
    return 100.0 * count(system).sum(axis=1) / total(system).sum()


def _system_entry(bootstrap: ClusterBootstrap, system: SystemScores) -> dict[str, Any]:
    def metric_entry(metric: str, errors: np.ndarray | None = None) -> dict[str, Any] | None:
        if not _scored(system, metric):
            return None
        num, den = _num(system, metric), _den(metric)
        entry: dict[str, Any] = {
            "value": 100.0 * bootstrap.ratio(num, den),
            "ci95": [100.0 * bound for bound in bootstrap.interval(num, den)],
            "per_seed": _per_seed(system, metric).tolist(),
        }
        if errors is not None:
            entry.update(zip(("ins", "del", "sub"), errors[0].sum(axis=0).tolist(), strict=True))
        return entry

    return {
        "name": system.name,
        "role": system.role,
        "num_members": system.num_members,
        "combination": system.combination,
        "num_parameters": system.num_parameters,
        "seeds": list(system.seeds),
        "frame_accuracy": metric_entry("frame_accuracy"),
        "frame_accuracy_nonsil": metric_entry("frame_accuracy_nonsil"),
        "frame_accuracy_top5": metric_entry("frame_accuracy_top5"),
        "wer": metric_entry("wer", system.errors),
        "per": metric_entry("per", system.phone_errors),
        "cross_entropy": float(mean_over_seeds(system.xent_sum).sum() / system.num_frames.sum()),
        "calibration": None if system.detail is None else calibration_entry(system.detail),
        "decode_rtf": float(system.decode_rtf),
        "train_frames_per_second": float(system.train_frames_per_second),
        "train_seconds": float(system.train_seconds),
    }


def _compare_all(
    bootstrap: ClusterBootstrap, trio: Mapping[str, SystemScores]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Comparisons of the headline systems with each other on every metric, and those that were refused."""
    done: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    pairs = (("ensemble", "baseline"), ("student", "baseline"), ("student", "ensemble"))
    for (role_a, role_b), metric in itertools.product(pairs, METRICS):
        a, b = trio[role_a], trio[role_b]
        if not (_scored(a, metric) and _scored(b, metric)):
            continue
        tests = [bootstrap.compare(_num(a, metric), _num(b, metric), _den(metric))]
        if metric == "wer":
            tests.append(mapsswe(a.refs, a.hyps, b.hyps))
        for test in tests:
            (done if test.reason is None else refused).append(_comparison_entry(a.name, b.name, metric, test))
    return done, refused


def _comparison_entry(a: str, b: str, metric: str, test: Difference) -> dict[str, Any]:
    entry = {"a": a, "b": b, "metric": metric, **asdict(test)}
    entry["difference"] = 100.0 * test.difference
    entry["ci95"] = None if test.ci95 is None else [100.0 * bound for bound in test.ci95]
    if test.reason is None:
        del entry["reason"]
    return entry


def _gain_entry(bootstrap: ClusterBootstrap, trio: Mapping[str, SystemScores], metric: str) -> dict[str, Any]:
    sign = 1.0 if _COUNTS[metric][2] else -1.0
    covariance = 100.0**2 * bootstrap.covariance([_num(trio[role], metric) for role in HEADLINE], _den(metric))
    share = share_of_gain(*(sign * _per_seed(trio[role], metric) for role in HEADLINE), covariance, bootstrap.num_units)
    return {
        "value": share.value,
        "ci95": None if share.ci95 is None else list(share.ci95),
        "p_at_least_086": share.p_at_least,
        "shortfall_points": share.shortfall,
        "reason": share.reason,
    }
