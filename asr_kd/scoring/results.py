"""results.json: what programs read of an experiment, built from the systems' scores."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.breakdown import calibration_entry, confusion_entry, per_phone_rows
from asr_kd.scoring.estimates import FRAME_METRICS, WORD_METRICS, Estimates, comparison_entry
from asr_kd.scoring.schema import HEADLINE, METRICS, check_results
from asr_kd.scoring.significance import NUM_RESAMPLES, mapsswe, share_of_gain
from asr_kd.scoring.systems import SystemScores, error_kinds, mean_over_seeds

# What all systems of a report have in common.
_SHARED = ("utt_ids", "spk_ids", "num_frames", "num_nonsil", "num_ref_words", "num_ref_phones", "per_unit", "refs")


def build_results(
    recipe: str,
    preset: str,
    split: str,
    systems: Sequence[SystemScores],
    headline: Mapping[str, str],
    resampling_unit: str = "auto",
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The content of results.json for systems scored on one set.

    `headline` names the baseline, ensemble and student that are compared with each other. Accuracies and error rates
    are in percent, differences in points (a − b), shares are fractions; `ci95` are bootstrap intervals over
    `resampling_unit` for the mean over seeds, and p values are those of `ClusterBootstrap.compare` and `mapsswe`, not
    corrected for the number of comparisons. In `gain_recovered` a gain is an increase of accuracy or a reduction of
    the error rate, and `shortfall_points` is the ensemble's gain less the student's, for both; its
    `ensemble_minus_baseline` has the sign of `comparisons`, but an interval that counts the variance of seeds in.
    Counts of errors are those of the first seed. Beyond the schema there are: their `mean` over seeds; of each system
    `frame_accuracy_nonsil` (null where all is silence), `frame_accuracy_top5` and `calibration` (null where they were
    not scored); `refused_tests` (a comparison that could not be tested, with its reason), `num_speakers`, `bootstrap`,
    `resampling_note` (why that unit), `per_unit` (what `per` counts: phone or letter), `oov` (reference words that the
    recogniser's vocabulary lacks, null where that was not known), `per_phone` (of the headline systems) and
    `confusions` (by name of baseline and student), as asr_kd/scoring/breakdown.py describes them.

    Raises AsrKdError where systems were not scored on the same utterances, labels and transcripts.
    """
    by_name = _check_systems(systems, headline)
    first = systems[0]
    estimates = Estimates(systems, FRAME_METRICS | WORD_METRICS, resampling_unit, num_resamples, seed)
    if estimates.bootstrap is None:
        raise AsrKdError("intervals need at least two utterances (or speakers) to resample.")
    trio = {role: by_name[headline[role]] for role in HEADLINE}
    comparisons, refused = _compare_all(estimates, trio)
    results = {
        "recipe": recipe,
        "preset": preset,
        "split": split,
        "num_utts": len(first.utt_ids),
        "num_speakers": len(set(first.spk_ids)),
        "num_frames": int(first.num_frames.sum()),
        "num_words": int(first.num_ref_words.sum()),
        "oov": _oov_entry(first),
        "per_unit": first.per_unit,
        "resampling_unit": estimates.resampling_unit,
        "resampling_note": estimates.resampling_note,
        "bootstrap": {"num_resamples": num_resamples, "seed": seed, "num_units": estimates.num_units},
        "headline": {role: headline[role] for role in HEADLINE},
        "systems": [_system_entry(estimates, system) for system in systems],
        "comparisons": comparisons,
        "refused_tests": refused,
        "gain_recovered": {metric: _gain_entry(estimates, trio, metric) for metric in ("frame_accuracy", "wer")},
        **_breakdown(trio, estimates.units),
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
        for field in _SHARED:
            ours, theirs = getattr(systems[0], field), getattr(system, field)
            if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
                raise AsrKdError(f"systems {systems[0].name} and {system.name} were scored on different {field}.")
    return by_name


def _oov_entry(system: SystemScores) -> dict[str, Any] | None:
    if system.num_oov_words is None:
        return None
    num = int(system.num_oov_words.sum())
    return {"num_words": num, "share": num / int(system.num_ref_words.sum())}


def _system_entry(estimates: Estimates, system: SystemScores) -> dict[str, Any]:
    def error_rate(metric: str, errors: np.ndarray | None) -> dict[str, Any] | None:
        entry = estimates.estimate(system, metric)
        if entry is not None:
            entry.update(error_kinds(errors))
        return entry

    return {
        "name": system.name,
        "role": system.role,
        "num_members": system.num_members,
        "combination": system.combination,
        "num_parameters": system.num_parameters,
        "seeds": list(system.seeds),
        "frame_accuracy": estimates.estimate(system, "frame_accuracy"),
        "frame_accuracy_nonsil": estimates.estimate(system, "frame_accuracy_nonsil"),
        "frame_accuracy_top5": estimates.estimate(system, "frame_accuracy_top5"),
        "wer": error_rate("wer", system.errors),
        "per": error_rate("per", system.phone_errors),
        "cross_entropy": float(mean_over_seeds(system.xent_sum).sum() / system.num_frames.sum()),
        "calibration": None if system.detail is None else calibration_entry(system.detail),
        "decode_rtf": float(system.decode_rtf),
        "train_frames_per_second": float(system.train_frames_per_second),
        "train_seconds": float(system.train_seconds),
    }


def _compare_all(
    estimates: Estimates, trio: Mapping[str, SystemScores]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Comparisons of the headline systems with each other on every metric, and those that were refused."""
    done: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    pairs = (("ensemble", "baseline"), ("student", "baseline"), ("student", "ensemble"))
    for (role_a, role_b), metric in itertools.product(pairs, METRICS):
        a, b = trio[role_a], trio[role_b]
        test = estimates.compare(a, b, metric)
        if test is not None:
            done.append(test)
        if metric == "wer":
            entry = comparison_entry(a.name, b.name, metric, mapsswe(a.refs, a.hyps, b.hyps))
            (refused if "reason" in entry else done).append(entry)
    return done, refused


def _gain_entry(estimates: Estimates, trio: Mapping[str, SystemScores], metric: str) -> dict[str, Any]:
    sign = 1.0 if estimates.metrics[metric].more_is_better else -1.0
    systems = [trio[role] for role in HEADLINE]
    per_seed = [sign * estimates.metrics[metric].per_seed(system) for system in systems]
    share = share_of_gain(*per_seed, estimates.covariance(systems, metric), estimates.num_units)
    return {
        "value": share.value,
        "ci95": None if share.ci95 is None else list(share.ci95),
        "p_at_least_086": share.p_at_least,
        "shortfall_points": share.shortfall,
        "ensemble_minus_baseline": {
            "difference": sign * share.gain,
            "ci95": sorted(sign * bound for bound in share.gain_ci95),
        },
        "reason": share.reason,
    }
