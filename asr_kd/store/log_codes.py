"""Probabilities in eight bits: their logarithms in even steps of 4.5 %, down to 2^-16; what is smaller is nothing.

The k largest targets of a frame are known to sum to what its tail leaves: codes need to say their ratios alone.
"""

import numpy as np
import torch

_NOTHING = 255
_COARSE = 1 / 64
_STEP = -16.0 / (_NOTHING - 1)  # log2 of the ratio of neighbours


def encoded(prob: torch.Tensor) -> torch.Tensor:
    """The codes that are nearest by the logarithm, uint8; prob: at most 1, of any shape."""
    return (prob.float().log2() / _STEP).round().clamp(0, _NOTHING).byte()


def ratios(device: torch.device) -> torch.Tensor:
    """What each code stands for, (256,) float32; looked up, since what is computed depends on a batch's size."""
    values = torch.exp2(torch.arange(_NOTHING + 1, dtype=torch.float64) * _STEP).float()
    values[_NOTHING] = 0
    return values.to(device)


def decoded(codes: torch.Tensor, tail: torch.Tensor | None, of_codes: torch.Tensor) -> torch.Tensor:
    """Probabilities (n, k) float32 of codes (n, k), which sum to 1 − tail in every row.

    tail: (n,) float16, None for 0; of_codes: ratios on the device of the codes.
    Where the tail has nearly all, its rounding is coarser than that of the codes, which are taken as they are.
    """
    values = of_codes[codes.int()]
    total = values.sum(dim=-1)
    mass = torch.ones_like(total) if tail is None else 1.0 - tail.float()
    scale = torch.where(mass > _COARSE, mass / total.clamp(min=_COARSE), 1.0)
    return values * scale.unsqueeze(-1)


def probabilities(stored: np.ndarray, tail: np.ndarray | None) -> np.ndarray:
    """float16 probabilities of codes, of any number of rows; what is no code is returned as it is."""
    if stored.dtype != np.uint8:
        return stored
    tail, codes = None if tail is None else torch.from_numpy(tail), torch.from_numpy(stored)
    return decoded(codes, tail, ratios(codes.device)).half().numpy()
