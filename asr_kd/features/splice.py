"""A frame with its neighbours, as Kaldi's splice-feats makes it."""

import numpy as np

from asr_kd.errors import AsrKdError


def splice(feats: np.ndarray, left: int, right: int) -> np.ndarray:
    """Windows of frames: (num_frames, feat_dim) to (num_frames, (left + 1 + right) * feat_dim), oldest frame first.

    At the edges the first or last frame is repeated. Raises AsrKdError for a negative context or no frames.
    """
    if left < 0 or right < 0:
        raise AsrKdError(f"a context of {left} frames left and {right} right is negative")
    num_frames, feat_dim = feats.shape
    if num_frames == 0:
        raise AsrKdError("an utterance without frames has no windows")
    padded = np.pad(feats, ((left, right), (0, 0)), mode="edge")
    # Rows of the padded matrix lie one after another, so that a window is a run of memory.
    step = padded.itemsize * feat_dim
    shape = (num_frames, (left + 1 + right) * feat_dim)
    return np.lib.stride_tricks.as_strided(padded, shape, (step, padded.itemsize)).copy()
