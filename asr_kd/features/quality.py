"""What is odd about a recording, though it can be used: clipping and silence."""

import numpy as np
import torch

# Full scale of 16 bits; the most negative value is one further away from zero.
FULL_SCALE = 32767.0
CLIPPED_SHARE = 1e-3
# Digital silence may carry a dither of one step up or down.
SILENCE_RANGE = 2.0


def remark_on(samples: np.ndarray) -> str | None:
    """A remark about samples (num_samples,) at int16 scale, or None: clipped in 0.1 % of the samples, or silent."""
    low, high = (float(extreme) for extreme in torch.aminmax(torch.from_numpy(samples)))  # in one pass
    if high - low <= SILENCE_RANGE:
        return "silent: its samples do not vary"
    if max(high, -low) < FULL_SCALE:
        return None
    clipped = float(np.mean(np.abs(samples) >= FULL_SCALE))
    return f"clipped: {100 * clipped:.1f} % of its samples are at full scale" if clipped >= CLIPPED_SHARE else None
