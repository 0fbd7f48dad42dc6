"""What a tree is grown from: moments of the frames of every context (Kaldi's acc-tree-stats).

A Gaussian's likelihood on frames follows from their number, sum and sum of squares; all are additive, so that a tree
never looks at a frame again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from asr_kd.hmm.model import HmmModel

# Frames whose squares are held at a time.
CHUNK_FRAMES = 100_000
# Smallest variance of a Gaussian in the likelihoods that choose splits (acc-tree-stats --var-floor).
VARIANCE_FLOOR = 0.01


@dataclass(frozen=True)
class Moments:
    """Moments of `n` sets of frames: count (n,), sum and sumsq (n, feat_dim), all float64."""

    count: np.ndarray
    sum: np.ndarray
    sumsq: np.ndarray

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: np.ndarray) -> "Moments":
        return Moments(self.count[rows], self.sum[rows], self.sumsq[rows])

    def total(self) -> "Moments":
        """All sets as one."""
        return Moments(*(part.sum(0, keepdims=True) for part in (self.count, self.sum, self.sumsq)))

    def grouped(self, group: np.ndarray, num_groups: int) -> "Moments":
        """Sets added up by group (n,), each 0 … num_groups − 1."""
        adder = csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), shape=(num_groups, len(group)))
        return Moments(adder @ self.count, adder @ self.sum, adder @ self.sumsq)

    def unions(self, member: np.ndarray) -> "Moments":
        """Sets added up by membership (m, n): row i of the result is the union of the sets in row i of `member`."""
        member = member.astype(np.float64)
        return Moments(member @ self.count, member @ self.sum, member @ self.sumsq)

    def minus(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.sum - other.sum, self.sumsq - other.sumsq)

    def gaussians(self, floor: float = VARIANCE_FLOOR) -> tuple[np.ndarray, np.ndarray]:
        """Mean and floored variance of each set, (n, feat_dim) both; those of an empty set mean nothing."""
        count = np.maximum(self.count, 1e-10)[:, None]
        mean = self.sum / count
        return mean, np.maximum(self.sumsq / count - mean**2, floor)

    def loglik(self, floor: float = VARIANCE_FLOOR) -> np.ndarray:
        """Log-likelihood of each set's frames under one diagonal Gaussian of their own, (n,); 0 for an empty set.

        GaussClusterable::Objf in Kaldi; with a floored variance it is that of the floored Gaussian.
        """
        count = np.maximum(self.count, 1e-10)[:, None]
        mean = self.sum / count
        variance = self.sumsq / count - mean**2
        floored = np.maximum(variance, floor)
        return -0.5 * self.count * (np.log(2 * np.pi * floored) + variance / floored).sum(1)


@dataclass(frozen=True)
class TreeStats:
    """Moments of every context seen, sorted by phone, pdf-class, left and right phone.

    events: (num_contexts, 4) int64 of left phone, phone, right phone (Kaldi's ids, 0 beyond an utterance or where the
    phone has no context), pdf-class; moments: Moments of num_contexts sets.
    """

    events: np.ndarray
    moments: Moments

    @classmethod
    def from_frames(cls, events: np.ndarray, feats: np.ndarray) -> "TreeStats":
        """From the event of each frame (num_frames, 4) and feats (num_frames, feat_dim)."""
        size = int(events.max()) + 1 if len(events) else 1
        left, phone, right, state = events.T.astype(np.int64)
        keys, context = np.unique(((phone * size + state) * size + left) * size + right, return_inverse=True)
        parts = Moments(*(np.zeros(shape) for shape in (len(keys), *[(len(keys), feats.shape[1])] * 2)))
        for first in range(0, len(feats), CHUNK_FRAMES):
            chosen = slice(first, first + CHUNK_FRAMES)
            wide = feats[chosen].astype(np.float64)
            one = Moments(np.ones(len(wide)), wide, wide**2).grouped(context[chosen], len(keys))
            for mine, added in zip(vars(parts).values(), vars(one).values(), strict=True):
                mine += added
        columns = keys // size % size, keys // size**3, keys % size, keys // size**2 % size
        return cls(np.stack(columns, axis=1), parts)


def frame_events(
    model: HmmModel, alignment: np.ndarray, lengths: np.ndarray, context_free: Iterable[int] = ()
) -> np.ndarray:
    """The event of each frame, (num_frames, 4) int64; zeros where the alignment is 0 (not aligned).

    alignment: flat transition-ids of a model whose graphs are made with reorder, of utterances of `lengths` frames.
    context_free: phone ids whose own neighbours do not count (silence, noise), as --ci-phones of acc-tree-stats; as
    neighbours of others they do.
    """
    rows = np.flatnonzero(alignment)
    tids = alignment[rows]
    utt = np.repeat(np.arange(len(lengths)), lengths)[rows]
    new_utt = np.diff(utt, prepend=-1) != 0
    begins = new_utt | model.enters_phone[tids]
    instance = np.cumsum(begins) - 1
    phone, first_of_utt = model.t2phone[tids[begins]] + 1, new_utt[begins]
    left = np.where(first_of_utt, 0, np.roll(phone, 1))
    right = np.where(np.roll(first_of_utt, -1), 0, np.roll(phone, -1))
    free = np.isin(phone, list(context_free))
    window = np.stack([np.where(free, 0, left), phone, np.where(free, 0, right)], axis=1)
    events = np.zeros((len(alignment), 4), dtype=np.int64)
    events[rows, :3] = window[instance] if len(rows) else 0
    events[rows, 3] = model.t2class[tids]
    return events


def accumulate(
    model: HmmModel,
    alignment: np.ndarray,
    lengths: np.ndarray,
    feats: np.ndarray,
    context_free: Iterable[int] = (),
) -> TreeStats:
    """Statistics of the aligned frames; arguments as of frame_events, feats (num_frames, feat_dim)."""
    aligned = alignment > 0
    return TreeStats.from_frames(frame_events(model, alignment, lengths, context_free)[aligned], feats[aligned])
