"""Frame scores of anyone's posteriors on anyone's alignment, and what is published of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.breakdown import calibration_entry, confusion_entry, per_phone_rows
from asr_kd.scoring.estimates import FRAME_METRICS, Estimates
from asr_kd.scoring.frame_detail import FrameDetail, over_seeds
from asr_kd.scoring.frames import FrameScorer, FrameScores
from asr_kd.scoring.labels import LabelledSet
from asr_kd.scoring.significance import NUM_RESAMPLES

FORMAT = "asr_kd.frame_results"


def score_posteriors(
    posteriors: Iterable[tuple[str, np.ndarray]], labelled: LabelledSet, where: str
) -> tuple[FrameScores, int]:
    """Score (utt_id, log_post) pairs, as `open_posteriors` gives them, in any order; where: their file, for messages.

    Returns the scores and the number of utterances that have no labels and were passed over.

    Raises AsrKdError where an utterance with labels is missing or has another number of frames.
    """
    scorer, offset = FrameScorer(labelled.labels), labelled.labels.utt_offset
    rows = {utt_id: u for u, utt_id in enumerate(labelled.utt_ids) if labelled.labelled[u]}
    num_labelled, passed_over = len(rows), 0
    for utt_id, log_post in posteriors:
        u = rows.pop(utt_id, None)
        if u is None:
            passed_over += 1
            continue
        num_frames = int(offset[u + 1] - offset[u])
        if len(log_post) != num_frames:
            raise AsrKdError(
                f"{where}: utterance {utt_id!r} has {len(log_post)} frames, but its alignment has {num_frames}"
            )
        try:
            scorer.add(int(offset[u]), log_post)
        except AsrKdError as error:
            raise AsrKdError(f"{where}: utterance {utt_id!r}: {error}") from error
    if rows:
        raise AsrKdError(
            f"{where}: lacks {len(rows)} of the {num_labelled} utterances of the alignment, the first is "
            f"{next(iter(rows))!r}"
        )
    return scorer.result(), passed_over


@dataclass(frozen=True)
class FrameSystem:
    """Frame scores of one system, with the fields that `Estimates` and FRAME_METRICS ask for."""

    name: str
    utt_ids: Sequence[str]
    spk_ids: Sequence[str]
    num_frames: np.ndarray  # (U,)
    num_nonsil: np.ndarray  # (U,)
    correct: np.ndarray  # (S, U)
    correct_nonsil: np.ndarray  # (S, U)
    correct_top5: np.ndarray  # (S, U)
    xent_sum: np.ndarray  # (S, U)
    detail: FrameDetail

    @classmethod
    def of_seeds(
        cls, name: str, utt_ids: Sequence[str], spk_ids: Sequence[str], seeds: Sequence[FrameScores]
    ) -> "FrameSystem":
        """One system of the scores of its seeds."""
        by_seed = ("correct", "correct_nonsil", "correct_top5", "xent_sum")
        stacked = {field: np.stack([getattr(scores, field) for scores in seeds]) for field in by_seed}
        detail = over_seeds([scores.detail for scores in seeds])
        return cls(name, utt_ids, spk_ids, seeds[0].num_frames, seeds[0].num_nonsil, detail=detail, **stacked)


def build_frame_results(
    systems: Sequence[FrameSystem],
    resampling_unit: str = "auto",
    *,
    num_resamples: int = NUM_RESAMPLES,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What is published of systems scored on one alignment; all pairs are compared, later minus earlier.

    Accuracies and their differences in percent and points, cross-entropy in nats; `calibration`, `per_phone` (gains
    over the first system) and `confusions` as breakdown.py describes them. about: added as it is.

    Raises AsrKdError where two systems share a name or have different numbers of states.
    """
    first = systems[0]
    if len({system.name for system in systems}) < len(systems):
        raise AsrKdError("systems to compare must have distinct names.")
    num_states = {len(system.detail.state_frames) for system in systems}
    if len(num_states) > 1:
        raise AsrKdError(f"systems to compare have different numbers of states: {sorted(num_states)}.")
    estimates = Estimates(systems, FRAME_METRICS, resampling_unit, num_resamples)
    details = {system.name: system.detail for system in systems}
    tests = [estimates.compare(b, a, metric) for a, b in combinations(systems, 2) for metric in FRAME_METRICS]
    return {
        "format": FORMAT,
        **(about or {}),
        "num_utts": int(np.count_nonzero(first.num_frames)),
        "num_frames": int(first.num_frames.sum()),
        "num_states": num_states.pop(),
        "resampling_unit": estimates.resampling_unit,
        "resampling_note": estimates.resampling_note,
        "bootstrap": {"num_resamples": num_resamples, "seed": 0, "num_units": estimates.num_units},
        "systems": [
            {
                "name": system.name,
                "num_seeds": len(system.correct),
                **{metric: estimates.estimate(system, metric) for metric in FRAME_METRICS},
                "calibration": calibration_entry(system.detail),
            }
            for system in systems
        ],
        "comparisons": [test for test in tests if test is not None],
        "per_phone": per_phone_rows(details, first.name, estimates.units),
        "confusions": {name: confusion_entry(detail) for name, detail in details.items()},
    }
