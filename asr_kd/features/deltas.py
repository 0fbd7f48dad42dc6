"""Time derivatives, as Kaldi's add-deltas makes them."""

import numpy as np

from asr_kd.errors import AsrKdError


def _kernels(order: int, window: int) -> list[np.ndarray]:
    """Weights of orders 0..order over neighbouring frames; order k has 2 * k * window + 1 of them (DeltaFeatures)."""
    slope = np.arange(-window, window + 1, dtype=np.float64)
    slope /= np.square(slope).sum()
    kernels = [np.ones(1)]
    for _ in range(order):
        kernels.append(np.convolve(kernels[-1], slope))
    return kernels


def add_deltas(feats: np.ndarray, order: int = 2, window: int = 2) -> np.ndarray:
    """Append derivatives up to `order`: (num_frames, feat_dim) to (num_frames, feat_dim * (order + 1)) float32.

    A derivative is a regression over `window` frames on either side; a higher order convolves again and, as in
    Kaldi, repeats the first and last frame of `feats` itself, not of the lower derivative.

    Raises AsrKdError for a negative order, an empty window or no frames.
    """
    if order < 0 or window < 1:
        raise AsrKdError(f"deltas need order >= 0 and window >= 1, not {order} and {window}")
    num_frames, feat_dim = feats.shape
    if num_frames == 0:
        raise AsrKdError("an utterance without frames has no deltas")
    margin = order * window
    padded = np.pad(feats.astype(np.float32), ((margin, margin), (0, 0)), mode="edge")
    out = np.zeros((num_frames, order + 1, feat_dim), dtype=np.float32)
    for k, kernel in enumerate(_kernels(order, window)):
        first = margin - k * window
        for offset, weight in enumerate(kernel.astype(np.float32)):
            out[:, k] += weight * padded[first + offset : first + offset + num_frames]
    return out.reshape(num_frames, (order + 1) * feat_dim)
