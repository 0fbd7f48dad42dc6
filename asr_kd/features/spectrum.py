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
from asr_kd.features.window import pack_windows, window_function

# Kaldi floors energies at the smallest float32 step before the logarithm: silence is log(1.19e-7) = -15.94.
ENERGY_FLOOR = torch.finfo(torch.float32).eps
# Large enough that the calls themselves cost little, small enough that a block stays in the caches of a core.
BLOCK_FRAMES = 512
BLOCK_FRAMES_GPU = 16384
# Neighbouring filters share most of their bins of the FFT: a product for each few of them skips most zeros.
FILTERS_AT_ONCE = 10

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

    window: torch.Tensor  # (window_size,), with pre-emphasis of the first sample, its own predecessor
    delayed: torch.Tensor  # (window_size - 1,): window times pre-emphasis, for the preceding sample
    mel: list[_Filters]


@functools.lru_cache(maxsize=16)
def _tables(options: FrontEndOptions, device: torch.device) -> _Tables:
    window = window_function(options)
    delayed = options.preemphasis_coefficient * window[1:]
    window[0] *= 1 - options.preemphasis_coefficient
    # The power of a bin is the sum of two squares; the filters add them up, which saves a pass.
    weights = mel_matrix(options).repeat_interleave(2, dim=0).T.float()
    mel = []
    for first in range(0, options.num_mel_bins, FILTERS_AT_ONCE):
        filters = slice(first, min(first + FILTERS_AT_ONCE, options.num_mel_bins))
        touched = weights[filters].any(dim=0).nonzero().flatten()
        columns = slice(int(touched[0]), int(touched[-1]) + 1)
        mel.append(_Filters(filters, columns, weights[filters, columns].contiguous().to(device)))
    return _Tables(window.float().to(device), delayed.float().to(device), mel)


def _log_energy(frames: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    energy = frames.square().sum(dim=1).clamp(min=ENERGY_FLOOR).log_()
    return energy.clamp_(min=float(np.log(options.energy_floor))) if options.energy_floor > 0 else energy


class _Scratch(NamedTuple):
    """What a block passes through."""

    frames: torch.Tensor  # (n, window_size)
    padded: torch.Tensor  # (n, fft_size), zero behind the window
    energies: torch.Tensor  # (num_mel_bins, n)


def _analyse_block(
    windows: torch.Tensor, scratch: _Scratch, options: FrontEndOptions, use_power: bool
) -> torch.Tensor | None:
    """Fill scratch.energies from windows (n, window_size); log energy (n,) if it is used.

    The order of steps is Kaldi's ProcessWindow: mean, raw energy, pre-emphasis, window.
    """
    window, delayed, mel = _tables(options, windows.device)
    frames = windows
    if options.remove_dc_offset:
        frames = torch.sub(windows, windows.mean(dim=1, keepdim=True), out=scratch.frames)
    windowed = scratch.padded[:, : options.window_size]
    torch.mul(frames, window, out=windowed)
    windowed[:, 1:].addcmul_(frames[:, :-1], delayed, value=-1)
    spectrum = torch.fft.rfft(scratch.padded)
    parts = torch.view_as_real(spectrum).flatten(1)
    if use_power:
        parts.square_()
    else:
        parts[:, ::2] = spectrum.abs()
        parts[:, 1::2] = 0
    parts = parts.T
    for filters, columns, weights in mel:
        torch.mm(weights, parts[columns], out=scratch.energies[filters])
    if not options.use_energy:
        return None
    return _log_energy(frames if options.raw_energy else windowed, options)


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
    windows, rows = pack_windows(utterances, options, block)
    scratch = _Scratch(
        windows.new_empty(block, options.window_size),
        windows.new_zeros(block, options.fft_size),
        windows.new_empty(options.num_mel_bins, block),
    )
    feats = windows.new_empty(len(windows), options.static_dim)
    for start in range(0, len(windows), block):
        part = slice(start, start + block)
        log_energy = _analyse_block(windows[part], scratch, options, use_power)
        finish(scratch.energies, log_energy, options, feats[part])
    return [_derived(feats[own], options) for own in rows]


def _derived(feats: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    """What Kaldi makes of the features of a whole utterance: its mean subtracted, derivatives appended."""
    if options.subtract_mean:
        feats = feats - feats.mean(dim=0)
    if options.delta_order > 0:
        with_deltas = add_deltas(feats.cpu().numpy(), options.delta_order, options.delta_window)
        feats = torch.from_numpy(with_deltas).to(feats.device)
    return feats
