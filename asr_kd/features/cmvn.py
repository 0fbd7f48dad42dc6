"""Cepstral mean and variance normalisation as Kaldi's compute-cmvn-stats, apply-cmvn and apply-cmvn-sliding do it."""

from collections.abc import Sequence

import numpy as np

from asr_kd.errors import AsrKdError

# A dimension whose variance is lost in the rounding of its float32 values counts as constant.
CONSTANT_RELATIVE_VARIANCE = 1e-12
# Kaldi's floor of the variance within a window.
SLIDING_VARIANCE_FLOOR = 1e-10


def accumulate(feats: np.ndarray) -> np.ndarray:
    """Statistics of feats (num_frames, feat_dim): (2, feat_dim + 1) float64, [sums, count; sums of squares, 0].

    Statistics of several utterances (of a speaker, of a set) are added up.
    """
    wide = feats.astype(np.float64)
    ones = np.ones(len(wide))  # a product sums columns twice as fast as sum(axis=0)
    stats = np.zeros((2, feats.shape[1] + 1))
    stats[0, :-1] = ones @ wide
    stats[0, -1] = len(feats)
    stats[1, :-1] = ones @ np.square(wide, out=wide)
    return stats


def pool(stats: np.ndarray, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Statistics of each group (its speaker, say) from those of its utterances.

    stats: (num_utts, 2, feat_dim + 1); groups: (num_utts,) the name of each utterance's group.
    """
    total: dict[str, np.ndarray] = {}
    for group, of_utt in zip(groups, stats, strict=True):
        total[group] = total[group] + of_utt if group in total else of_utt
    return total


def _exact_mean_and_istd(stats: np.ndarray, norm_vars: bool) -> tuple[np.ndarray, np.ndarray]:
    count = stats[0, -1]
    if not np.isfinite(stats).all() or count < 1:
        raise AsrKdError("CMVN statistics are of less than one frame, or not finite")
    mean = stats[0, :-1] / count
    istd = np.ones_like(mean)
    if norm_vars:
        mean_square = stats[1, :-1] / count
        variance = mean_square - np.square(mean)
        varies = variance > CONSTANT_RELATIVE_VARIANCE * mean_square
        istd[varies] = 1.0 / np.sqrt(variance[varies])
    return mean, istd


def mean_and_istd(stats: np.ndarray, norm_vars: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse standard deviation, each (feat_dim,) float32; normalised is (feats - mean) * istd.

    Without norm_vars istd is 1. A dimension that does not vary is centred and not scaled (Kaldi would scale it by
    1e10).

    Raises AsrKdError if the statistics are of no frames or not finite.
    """
    mean, istd = _exact_mean_and_istd(stats, norm_vars)
    return mean.astype(np.float32), istd.astype(np.float32)


def apply_cmvn(feats: np.ndarray, stats: np.ndarray, *, norm_vars: bool = False) -> np.ndarray:
    """Features (num_frames, feat_dim) with the mean, and the deviation too with norm_vars, of stats removed: float32.

    stats: (2, feat_dim + 1) of the utterance, its speaker or a whole set, as Kaldi's apply-cmvn takes them. The result
    is Kaldi's to the bit, but for a dimension that does not vary: it is centred and not scaled.

    Raises AsrKdError for statistics of another feat_dim, of no frames, or not finite.
    """
    if stats.shape != (2, feats.shape[1] + 1):
        raise AsrKdError(f"CMVN statistics of shape {stats.shape} do not fit features of {feats.shape[1]} columns")
    mean, istd = _exact_mean_and_istd(stats, norm_vars)
    return feats.astype(np.float32) * istd.astype(np.float32) - (mean * istd).astype(np.float32)


def _windows(num_frames: int, cmn_window: int, min_cmn_window: int, center: bool) -> tuple[np.ndarray, np.ndarray]:
    """First frame of each frame's window and the one after its last, each (num_frames,)."""
    t = np.arange(num_frames)
    if center:
        start = t - cmn_window // 2
        end = start + cmn_window
        end = end - np.minimum(start, 0)
    else:
        # With the frame itself the window is of cmn_window + 1 frames, as in Kaldi.
        start = t - cmn_window
        end = np.maximum(t + 1, min_cmn_window)
    start = np.maximum(start, 0)
    beyond = np.maximum(end - num_frames, 0)
    return np.maximum(start - beyond, 0), end - beyond


def sliding_window_cmvn(
    feats: np.ndarray,
    *,
    cmn_window: int = 600,
    min_cmn_window: int = 100,
    center: bool = False,
    norm_vars: bool = False,
) -> np.ndarray:
    """Each frame normalised by the frames around it, as Kaldi's apply-cmvn-sliding: (num_frames, feat_dim) float32.

    cmn_window: frames in the window; center: the window lies around the frame, and is moved inwards at the edges;
    otherwise it lies before the frame and has at least min_cmn_window frames, as far as there are any. With norm_vars
    a window of one frame gives zeros.

    Raises AsrKdError for a window of no frames.
    """
    if cmn_window < 1 or min_cmn_window < 1:
        raise AsrKdError(f"cmn_window {cmn_window} and min_cmn_window {min_cmn_window} must be at least 1 frame")
    if center and min_cmn_window > cmn_window:
        raise AsrKdError(f"min_cmn_window {min_cmn_window} is larger than cmn_window {cmn_window}")
    if len(feats) == 0:
        return feats.astype(np.float32)
    start, end = _windows(len(feats), cmn_window, min_cmn_window, center)
    length = (end - start)[:, None]
    # Sums of windows are differences of running sums; without the overall mean they stay small and exact.
    centred = feats.astype(np.float64)
    centred -= centred.mean(axis=0)

    def mean_in_window(values: np.ndarray) -> np.ndarray:
        running = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
        return (running[end] - running[start]) / length

    mean = mean_in_window(centred)
    out = centred - mean
    if norm_vars:
        variance = np.maximum(mean_in_window(np.square(centred)) - np.square(mean), SLIDING_VARIANCE_FLOOR)
        out /= np.sqrt(variance)
        out[length[:, 0] == 1] = 0.0
    return out.astype(np.float32)
