"""How far a net's confidence is from its accuracy: reliability diagram and expected calibration error.

The confidence of a frame is its largest posterior. Guo, Pleiss, Sun & Weinberger 2017 (arXiv:1706.04599, section 2)
cut [0, 1] into bins of equal width; Nguyen & O'Connor 2015 (arXiv:1508.05154) into bins of equally many frames, which
do not leave the bins of rare confidences to chance. Both are made here from one histogram of fine cells, so that any
number of frames fits into the same few kilobytes.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

NUM_BINS = 15
# A multiple of NUM_BINS, so that the bins of equal width are exact; cells are 1/3000 of confidence wide.
NUM_CELLS = 200 * NUM_BINS


@dataclass(frozen=True)
class Bins:
    """Bins of confidence in ascending order: `edges` (num_bins + 1,), the others (num_bins,).

    `confidence` and `accuracy` are means over the frames of the bin as fractions, 0 where it has none.
    """

    edges: np.ndarray
    num_frames: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def expected_error(self) -> float:
        """Σ_b (n_b / n) |accuracy_b − confidence_b|, a fraction; 0 without frames."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.average(gaps, weights=self.num_frames)) if self.num_frames.sum() else 0.0

    @property
    def max_error(self) -> float:
        """max_b |accuracy_b − confidence_b| over bins with frames, a fraction; 0 without frames."""
        return float(np.abs(self.accuracy - self.confidence)[self.num_frames > 0].max(initial=0.0))

    def to_json(self) -> dict[str, Any]:
        return {name: values.tolist() for name, values in asdict(self).items()}


class ConfidenceHistogram:
    """Frames by confidence in NUM_CELLS cells: how many, how many right, and the sum of their confidences."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, NUM_CELLS))

    def add(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """confidence: (n,) in [0, 1]; correct: (n,) bool."""
        # A cell is open on the left, as in the definition of the bins; rounding may lift a posterior above 1.
        cell = np.clip(np.ceil(np.asarray(confidence, np.float64) * NUM_CELLS).astype(np.int64) - 1, 0, NUM_CELLS - 1)
        for row, weights in enumerate((None, correct, confidence)):
            self._sums[row] += np.bincount(cell, weights=weights, minlength=NUM_CELLS)

    @property
    def num_frames(self) -> int:
        return int(self._sums[0].sum())

    def equal_width(self) -> Bins:
        """NUM_BINS bins of the same width."""
        return self._bins(np.arange(0, NUM_CELLS + 1, NUM_CELLS // NUM_BINS))

    def equal_mass(self) -> Bins:
        """At most NUM_BINS bins with as equally many frames as the cells allow; no cell is divided."""
        below = np.concatenate([[0], np.cumsum(self._sums[0])])
        wanted = below[-1] * np.arange(1, NUM_BINS) / NUM_BINS
        cuts = np.searchsorted(below, wanted)
        return self._bins(np.unique(np.concatenate([[0], cuts, [NUM_CELLS]])))

    def _bins(self, cuts: np.ndarray) -> Bins:
        num, correct, confidence = np.add.reduceat(self._sums, cuts[:-1], axis=1)
        some = np.maximum(num, 1)
        return Bins(cuts / NUM_CELLS, num.astype(np.int64), confidence / some, correct / some)

    def summary(self) -> dict[str, Any]:
        """What is stored of it: both kinds of bins, and their errors in points (percent)."""
        width, mass = self.equal_width(), self.equal_mass()
        return {
            "ece": 100.0 * width.expected_error,
            "ece_equal_mass": 100.0 * mass.expected_error,
            "max_error": 100.0 * mass.max_error,
            "mean_confidence": 100.0 * float(self._sums[2].sum() / max(self.num_frames, 1)),
            "equal_width": width.to_json(),
            "equal_mass": mass.to_json(),
        }
