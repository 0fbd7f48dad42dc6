"""Cepstral mean and variance normalisation with Kaldi's statistics (compute-cmvn-stats, apply-cmvn)."""

import numpy as np

from asr_kd.errors import AsrKdError

# A dimension whose variance is lost in the rounding of its float32 values counts as constant.
CONSTANT_RELATIVE_VARIANCE = 1e-12


def accumulate(feats: np.ndarray) -> np.ndarray:
    """Statistics of feats (num_frames, feat_dim): (2, feat_dim + 1) float64, [sums, count; sums of squares, 0].

    Statistics of several utterances (of a speaker, of a set) are added up.
    """
    wide = feats.astype(np.float64)
    stats = np.zeros((2, feats.shape[1] + 1))
    stats[0, :-1] = wide.sum(axis=0)
    stats[0, -1] = len(feats)
    stats[1, :-1] = np.square(wide).sum(axis=0)
    return stats


def mean_and_istd(stats: np.ndarray, norm_vars: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse standard deviation, each (feat_dim,) float32; normalised is (feats - mean) * istd.

    Without norm_vars istd is 1. A dimension that does not vary is centred and not scaled (Kaldi would scale it by
    1e10).

    Raises AsrKdError if the statistics are of no frames or not finite.
    """
    count = stats[0, -1]
    if not np.isfinite(stats).all() or count <= 0:
        raise AsrKdError("CMVN statistics are empty or not finite")
    mean = stats[0, :-1] / count
    istd = np.ones_like(mean)
    if norm_vars:
        mean_square = stats[1, :-1] / count
        variance = mean_square - np.square(mean)
        varies = variance > CONSTANT_RELATIVE_VARIANCE * mean_square
        istd[varies] = 1.0 / np.sqrt(variance[varies])
    return mean.astype(np.float32), istd.astype(np.float32)
