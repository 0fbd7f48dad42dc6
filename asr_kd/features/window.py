"""Samples to overlapping windows, with the frame count and the edges of Kaldi's feature-window.cc."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.features.options import FrontEndOptions

VECTOR = 64
# Large enough that the calls themselves cost little, small enough that a block stays in the caches of a core.
BLOCK_FRAMES = 256


def num_frames(num_samples: int, options: FrontEndOptions) -> int:
    """Frames that `num_samples` samples give (Kaldi's NumFrames); 0 if they are too few."""
    size, shift = options.window_size, options.window_shift
    if options.snip_edges:
        return 0 if num_samples < size else 1 + (num_samples - size) // shift
    return (num_samples + shift // 2) // shift


def require_a_frame(num_samples: int, options: FrontEndOptions) -> None:
    """Raises AsrKdError if samples do not fill one frame."""
    if num_frames(num_samples, options) == 0:
        raise AsrKdError(
            f"{num_samples} samples are shorter than one "
            + (f"window of {options.window_size}" if options.snip_edges else f"frame of {options.window_shift}")
        )


def _mirrored(samples: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Samples first..stop - 1 of a signal that is mirrored at its ends again and again."""
    position = torch.arange(first, stop, device=samples.device).remainder(2 * len(samples))
    return samples[torch.minimum(position, 2 * len(samples) - 1 - position)]


def _put(signal: torch.Tensor, samples: torch.Tensor, count: int, options: FrontEndOptions) -> None:
    """Write the samples that `count` windows need to the start of `signal`."""
    size, shift = options.window_size, options.window_shift
    num_samples = samples.shape[0]
    first = 0 if options.snip_edges else shift // 2 - size // 2  # without snip_edges windows are centred on frames
    stop = first + (count - 1) * shift + size
    inner = slice(max(first, 0), min(stop, num_samples))
    at = inner.start - first
    signal[at : at + inner.stop - inner.start] = samples[inner]
    if first < 0:
        signal[:at] = _mirrored(samples, first, 0)
    if stop > num_samples:
        signal[at + inner.stop - inner.start : stop - first] = _mirrored(samples, num_samples, stop)


def place(
    utterances: Sequence[np.ndarray] | Sequence[torch.Tensor], options: FrontEndOptions, apart: int = 0
) -> list[slice]:
    """The rows of each utterance's frames where those of all follow each other, with `apart` rows between them.

    Raises AsrKdError if an utterance is not of one channel or does not fill one frame.
    """
    rows: list[slice] = []
    for samples in utterances:
        if samples.ndim != 1:
            raise AsrKdError(f"samples of one channel were expected, but their shape is {tuple(samples.shape)}")
        require_a_frame(len(samples), options)
        first = rows[-1].stop + apart if rows else 0
        rows.append(slice(first, first + num_frames(len(samples), options)))
    return rows


def apart(options: FrontEndOptions) -> int:
    """Rows between two utterances in one signal, whose windows would hold samples of both."""
    return -(-options.window_size // options.window_shift) - 1


def covered(block: int, options: FrontEndOptions) -> int:
    """Samples that `block` windows cover, made a multiple of what a processor computes at once.

    At a remainder, bits could differ.
    """
    return -(-((block - 1) * options.window_shift + options.window_size) // VECTOR) * VECTOR


def pack(
    utterances: Sequence[torch.Tensor], rows: Sequence[slice], options: FrontEndOptions, num_rows: int, block: int
) -> torch.Tensor:
    """Several utterances in one signal, float32, whose windows are rows; `rows` of them are each utterance's.

    Window i begins at 1 + i · window_shift: a sample before the first makes the difference of neighbours one of two
    views, and each utterance begins where a window does. The few rows between two utterances hold no frame. The number
    of rows is a multiple of `block`, and from the start of each block there are 1 + covered(block) samples.
    """
    shift = options.window_shift
    signal = torch.zeros(1 + (num_rows - block) * shift + covered(block, options), device=utterances[0].device)
    for samples, own in zip(utterances, rows, strict=True):
        _put(signal[1 + own.start * shift :], samples, own.stop - own.start, options)
    return signal


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
