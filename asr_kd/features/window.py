"""Samples to overlapping windows, with the frame count and the edges of Kaldi's feature-window.cc."""

import math

import torch

from asr_kd.errors import AsrKdError
from asr_kd.features.options import FrontEndOptions


def num_frames(num_samples: int, options: FrontEndOptions) -> int:
    """Frames that `num_samples` samples give (Kaldi's NumFrames); 0 if they are too few."""
    size, shift = options.window_size, options.window_shift
    if options.snip_edges:
        return 0 if num_samples < size else 1 + (num_samples - size) // shift
    return (num_samples + shift // 2) // shift


def frame_samples(samples: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    """View `samples` (num_samples,) as windows (num_frames, window_size); rows share memory.

    With snip_edges=false the windows are centred on their frames and the signal is mirrored at its ends.

    Raises AsrKdError if the samples do not fill one frame.
    """
    size, shift = options.window_size, options.window_shift
    count = num_frames(len(samples), options)
    if count == 0:
        raise AsrKdError(
            f"{len(samples)} samples are shorter than one "
            + (f"window of {size}" if options.snip_edges else f"frame of {shift}")
        )
    if not options.snip_edges:
        first = shift // 2 - size // 2
        position = torch.arange(first, first + (count - 1) * shift + size, device=samples.device)
        position = position.remainder(2 * len(samples))  # a mirrored signal has this period
        samples = samples[torch.minimum(position, 2 * len(samples) - 1 - position)]
    return samples.contiguous().as_strided((count, size), (shift, 1))


def window_function(options: FrontEndOptions) -> torch.Tensor:
    """Weights of the window, (window_size,) float64."""
    phase = torch.arange(options.window_size, dtype=torch.float64) * (2 * math.pi / (options.window_size - 1))
    match options.window_type:
        case "povey":  # Hanning's, but with steeper flanks, and still zero at its ends
            return (0.5 - 0.5 * phase.cos()).pow(0.85)
        case "hamming":
            return 0.54 - 0.46 * phase.cos()
        case "hanning":
            return 0.5 - 0.5 * phase.cos()
        case "sine":
            return (0.5 * phase).sin()
        case "blackman":
            a = options.blackman_coeff
            return a - 0.5 * phase.cos() + (0.5 - a) * (2 * phase).cos()
        case "rectangular":
            return torch.ones_like(phase)
    raise AsrKdError(f"unknown window_type {options.window_type!r}")
