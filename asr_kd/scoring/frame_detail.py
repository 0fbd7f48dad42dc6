"""States, phones, confusions and calibration of one system: what is kept beside the counts per utterance."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError

# Confusions stored of a system; more are of no use to a reader, and 14,000 states make millions.
MAX_STORED_CONFUSIONS = 1000


@dataclass(frozen=True)
class FrameDetail:
    """Counts of labelled frames by state and phone; K states, P phones, U utterances in the order of the scores.

    `…_correct` and the confusions are summed over `num_seeds` seeds, `…_frames` are those of the labels, once.
    state_frames, state_correct: (K,); state_phone: (K,) index into `phones`, -1 if unknown; phones: empty where the
    alignment does not tell them; phone_frames, phone_correct: (U, P) frames of a phone, and those whose state is right.
    state_confusions: (n, 3) label, prediction, count, most frequent first, wrong ones only; each count is too small by
    at most max_undercount. phone_confusions: the same of phones, right ones included; P stands for a predicted state
    whose phone is not known. calibration: `ConfidenceHistogram.summary` of each seed.
    """

    num_seeds: int
    state_frames: np.ndarray
    state_correct: np.ndarray
    state_phone: np.ndarray
    phones: list[str]
    phone_frames: np.ndarray
    phone_correct: np.ndarray
    state_confusions: np.ndarray
    phone_confusions: np.ndarray
    max_undercount: int
    calibration: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, of the state confusions the most frequent."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["state_confusions"] = self.state_confusions[:MAX_STORED_CONFUSIONS]
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], num_utts: int) -> "FrameDetail":
        """What `to_json` made; raises AsrKdError where fields are missing or shapes do not agree."""
        try:
            arrays = {name: np.asarray(content[name], dtype=np.int64) for name in _SHAPES}
            detail = cls(**{**content, **arrays})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AsrKdError(f"the frame scores by state and phone are not complete ({error})") from error
        sizes = {"K": len(detail.state_frames), "P": len(detail.phones), "U": num_utts, "3": 3}
        for name, axes in _SHAPES.items():
            value = arrays[name]
            if not value.size and 0 in (sizes.get(axis, 0) for axis in axes):
                arrays[name] = value.reshape([sizes.get(axis, 0) for axis in axes])
            elif value.ndim != len(axes) or any(sizes.get(a, n) != n for a, n in zip(axes, value.shape, strict=True)):
                raise AsrKdError(f"the frame scores by state and phone do not agree: {name} has shape {value.shape}")
        return dataclasses.replace(detail, **arrays)

    @property
    def state_accuracy(self) -> np.ndarray:
        """Percent of each state's frames that are right, mean over seeds, (K,); nan where it has none."""
        den = self.state_frames * self.num_seeds
        return 100.0 * self.state_correct / np.where(den > 0, den, np.nan)

    def phone_matrix(self) -> np.ndarray:
        """Frames by true and predicted phone, (P, P + 1) int64, summed over seeds; last column: phone unknown."""
        matrix = np.zeros((len(self.phones), len(self.phones) + 1), dtype=np.int64)
        label, prediction, count = self.phone_confusions.T
        matrix[label, prediction] = count
        return matrix


# Axes of each array: U utterances, K states, P phones, n anything.
_SHAPES = {
    "state_frames": "K",
    "state_correct": "K",
    "state_phone": "K",
    "phone_frames": "UP",
    "phone_correct": "UP",
    "state_confusions": "n3",
    "phone_confusions": "n3",
}


def over_seeds(details: Sequence[FrameDetail]) -> FrameDetail:
    """The details of several seeds of one system, scored on the same labels, as one."""
    first = details[0]
    return dataclasses.replace(
        first,
        num_seeds=sum(detail.num_seeds for detail in details),
        state_correct=np.sum([detail.state_correct for detail in details], axis=0),
        phone_correct=np.sum([detail.phone_correct for detail in details], axis=0),
        state_confusions=_merge_triples([detail.state_confusions for detail in details]),
        phone_confusions=_merge_triples([detail.phone_confusions for detail in details]),
        max_undercount=sum(detail.max_undercount for detail in details),
        calibration=[bins for detail in details for bins in detail.calibration],
    )


def _merge_triples(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Counts of equal pairs added, most frequent first, ties in order of the pair."""
    rows = np.concatenate(tables)
    pairs, inverse = np.unique(rows[:, :2], axis=0, return_inverse=True)
    counts = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(counts, inverse.ravel(), rows[:, 2])
    order = np.argsort(-counts, kind="stable")
    return np.column_stack([pairs, counts])[order]
