"""Counts of (label, prediction) pairs in bounded memory, whatever the number of states."""

import numpy as np

MAX_PAIRS = 1_000_000
# Pairs are merged into the table when this many wait, so that a call costs no more than its own frames.
_WAITING = 4_000_000


class PairCounts:
    """How often a label met a prediction; the most frequent pairs are kept once there are more than `max_pairs`.

    14,000 states have 196 million pairs, of which a test set shows a few million once or twice. Beyond `max_pairs`
    distinct ones, the count of the (max_pairs + 1)-th is subtracted from all, and what is not above 0 is dropped: the
    mergeable summary of Agarwal et al. 2012 ("Mergeable summaries", PODS, section 3). Counts are then too small by at
    most `max_undercount`, itself at most total / (max_pairs + 1); no count is ever too large.
    """

    def __init__(self, num_classes: int, max_pairs: int = MAX_PAIRS) -> None:
        self._num_classes, self._max_pairs = num_classes, max_pairs
        self._keys = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0
        self.max_undercount = 0

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """labels, predictions: (n,) ints in 0 … num_classes − 1."""
        self._waiting.append(np.asarray(labels, np.int64) * self._num_classes + predictions)
        self._num_waiting += len(labels)
        if self._num_waiting >= _WAITING:
            self._merge()

    def _merge(self) -> None:
        keys, inverse = np.unique(np.concatenate([self._keys, *self._waiting]), return_inverse=True)
        weights = np.concatenate([self._counts, np.ones(self._num_waiting, np.int64)])
        counts = np.bincount(inverse, weights=weights, minlength=len(keys)).astype(np.int64)
        if len(keys) > self._max_pairs:
            surplus = np.partition(counts, -self._max_pairs - 1)[-self._max_pairs - 1]
            keys, counts = keys[counts > surplus], counts[counts > surplus] - surplus
            self.max_undercount += int(surplus)
        self._keys, self._counts = keys, counts
        self._waiting, self._num_waiting = [], 0

    def top(self, num: int | None = None, *, wrong_only: bool = False) -> np.ndarray:
        """The most frequent pairs, (at most num, 3) int64: label, prediction, count; ties in order of the pair.

        wrong_only: leave out pairs whose prediction is the label.
        """
        self._merge()
        label, prediction = np.divmod(self._keys, self._num_classes)
        rows = np.stack([label, prediction, self._counts], axis=1)
        if wrong_only:
            rows = rows[label != prediction]
        return rows[np.argsort(-rows[:, 2], kind="stable")][:num]
