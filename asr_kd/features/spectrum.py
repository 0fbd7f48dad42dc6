"""The steps that fbank and MFCC share, from samples to mel energies, for many utterances at a time in torch.

Frames of all utterances pass through in blocks of one fixed size. So the shapes that torch and its libraries see never
depend on what else is in a batch, and neither do the bits of a frame.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from asr_kd.features.deltas import add_deltas
from asr_kd.features.mel import mel_matrix
from asr_kd.features.options import FrontEndOptions
from asr_kd.features.window import pack, window_function

# Kaldi floors energies at the smallest float32 step before the logarithm: silence is log(1.19e-7) = -15.94.
ENERGY_FLOOR = torch.finfo(torch.float32).eps
# Large enough that the calls themselves cost little, small enough that a block stays in the caches of a core.
BLOCK_FRAMES = 512
BLOCK_FRAMES_GPU = 16384
# Neighbouring filters share most of their bins of the FFT: a product for each few of them skips most zeros.
FILTERS_AT_ONCE = 10
VECTOR = 64

Samples = TypeVar("Samples", np.ndarray, torch.Tensor)
# finish(energies (num_mel_bins, n), log_energy (n,) or None, options, out (n, static_dim)) fills out
Finish = Callable[[torch.Tensor, torch.Tensor | None, FrontEndOptions, torch.Tensor], None]


class _Filters(NamedTuple):
    """Filters first..stop - 1 on the columns that they touch of a spectrum, real and imaginary parts interleaved."""

    filters: slice
    columns: slice
    weights: torch.Tensor  # (filters, columns)


class _Tables(NamedTuple):
    """What depends on the options alone."""

    window: torch.Tensor  # (window_size,)
    mel: list[_Filters]


@functools.lru_cache(maxsize=16)
def _tables(options: FrontEndOptions, device: torch.device) -> _Tables:
    # The power of a bin is the sum of two squares; the filters add them up, which saves a pass.
    weights = mel_matrix(options).repeat_interleave(2, dim=0).T.float()
    mel = []
    for first in range(0, options.num_mel_bins, FILTERS_AT_ONCE):
        filters = slice(first, min(first + FILTERS_AT_ONCE, options.num_mel_bins))
        touched = weights[filters].any(dim=0).nonzero().flatten()
        columns = slice(int(touched[0]), int(touched[-1]) + 1)
        mel.append(_Filters(filters, columns, weights[filters, columns].contiguous().to(device)))
    return _Tables(window_function(options).float().to(device), mel)


def _log_energy(frames: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    energy = frames.square().sum(dim=1).clamp(min=ENERGY_FLOOR).log_()
    return energy.clamp_(min=float(np.log(options.energy_floor))) if options.energy_floor > 0 else energy


class _Scratch(NamedTuple):
    """What a block passes through."""

    emphasised: torch.Tensor  # what n windows cover of the signal
    padded: torch.Tensor  # (n, fft_size), zero behind the window
    energies: torch.Tensor  # (num_mel_bins, n)


def _window_block(signal: torch.Tensor, first: int, scratch: _Scratch, options: FrontEndOptions) -> torch.Tensor | None:
    """Fill scratch.padded with the windows from row `first` of a packed signal; log energy (n,) if it is used.

    Kaldi's ProcessWindow takes the mean off each window, then emphasises, then weights. Windows overlap and all three
    steps are linear, so that a sample is emphasised once, for all windows that hold it, and the emphasised mean is
    taken off. x[t] - a x[t - 1] is summed as (x[t] - x[t - 1]) + (1 - a) x[t - 1]: a constant comes out exactly so.
    """
    window = _tables(options, signal.device).window
    size, shift, left = options.window_size, options.window_shift, 1 - options.preemphasis_coefficient
    num_rows, emphasised = len(scratch.padded), scratch.emphasised
    windows = signal[1 + first * shift :].as_strided((num_rows, size), (shift, 1))
    before, here = signal[first * shift :][: len(emphasised)], signal[1 + first * shift :][: len(emphasised)]
    torch.sub(here, before, out=emphasised).add_(before, alpha=left)
    windowed = scratch.padded[:, :size]
    of_signal = emphasised.as_strided((num_rows, size), (shift, 1))
    if options.remove_dc_offset:
        mean = windows.mean(dim=1, keepdim=True)
        torch.sub(of_signal, mean * left, out=windowed)
    else:
        mean = windows.new_zeros(1)
        windowed.copy_(of_signal)
    if window[0]:  # the first sample of a window is its own predecessor
        windowed[:, :1] = (windows[:, :1] - mean) * left
    windowed.mul_(window)
    if not options.use_energy:
        return None
    return _log_energy(windows - mean if options.raw_energy else windowed, options)


def _analyse_block(scratch: _Scratch, options: FrontEndOptions, use_power: bool) -> None:
    """Fill scratch.energies from scratch.padded."""
    spectrum = torch.fft.rfft(scratch.padded)
    parts = torch.view_as_real(spectrum).flatten(1)
    if use_power:
        parts.square_()
    else:
        parts[:, ::2] = spectrum.abs()
        parts[:, 1::2] = 0
    parts = parts.T
    for filters, columns, weights in _tables(options, parts.device).mel:
        torch.mm(weights, parts[columns], out=scratch.energies[filters])


def log_floored(energies: torch.Tensor) -> torch.Tensor:
    """Logarithm in place, floored as Kaldi does."""
    return energies.clamp_(min=ENERGY_FLOOR).log_()


@torch.no_grad()
def analyse(
    utterances: Sequence[Samples], options: FrontEndOptions, finish: Finish, use_power: bool = True
) -> list[Samples]:
    """Features (num_frames, feat_dim) float32 of each utterance; `finish` makes them from a block of mel energies.

    utterances: (num_samples,) each, at int16 scale. Arrays of numpy give arrays, tensors give tensors on their device.

    Raises AsrKdError if an utterance is not of one channel or does not fill one frame.
    """
    if not utterances:
        return []
    if isinstance(utterances[0], np.ndarray):
        tensors = [torch.from_numpy(np.ascontiguousarray(samples)) for samples in utterances]
        return [feats.numpy() for feats in analyse(tensors, options, finish, use_power)]
    device = utterances[0].device
    block = BLOCK_FRAMES if device.type == "cpu" else BLOCK_FRAMES_GPU
    # A multiple of what a processor computes at once: at a remainder bits could differ.
    num_covered = -(-((block - 1) * options.window_shift + options.window_size) // VECTOR) * VECTOR
    signal, rows, num_rows = pack(utterances, options, block, num_covered)
    scratch = _Scratch(
        signal.new_empty(num_covered),
        signal.new_zeros(block, options.fft_size),
        signal.new_empty(options.num_mel_bins, block),
    )
    feats = signal.new_empty(num_rows, options.static_dim)
    for start in range(0, num_rows, block):
        log_energy = _window_block(signal, start, scratch, options)
        _analyse_block(scratch, options, use_power)
        finish(scratch.energies, log_energy, options, feats[start : start + block])
    return [_derived(feats[own], options) for own in rows]


def _derived(feats: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    """What Kaldi makes of the features of a whole utterance: its mean subtracted, derivatives appended."""
    if options.subtract_mean:
        feats = feats - feats.mean(dim=0)
    if options.delta_order > 0:
        with_deltas = add_deltas(feats.cpu().numpy(), options.delta_order, options.delta_window)
        feats = torch.from_numpy(with_deltas).to(feats.device)
    return feats
