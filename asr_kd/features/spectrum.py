"""The steps that fbank and MFCC share, for many utterances at a time: arrays as in spectrum_cpu, tensors in torch.

Frames of all utterances pass through in blocks of one fixed size. So the shapes that torch and its libraries see never
depend on what else is in a batch, and neither do the bits of a frame.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from asr_kd.features.deltas import add_deltas
from asr_kd.features.mel import MelBlock, mel_matrix
from asr_kd.features.options import FrontEndOptions
from asr_kd.features.window import BLOCK_FRAMES, apart, covered, pack, place, window_function

# Kaldi floors energies at the smallest float32 step before the logarithm: silence is log(1.19e-7) = -15.94.
ENERGY_FLOOR = torch.finfo(torch.float32).eps
BLOCK_FRAMES_GPU = 16384

Samples = TypeVar("Samples", np.ndarray, torch.Tensor)
# finish(energies (n, num_mel_bins), log_energy (n,) or None, options, out (n, static_dim)) fills out
Finish = Callable[[torch.Tensor, torch.Tensor | None, FrontEndOptions, torch.Tensor], None]


class _Tables(NamedTuple):
    """What depends on the options alone."""

    window: torch.Tensor  # (window_size,)
    mel: torch.Tensor  # (2 * num_bins, num_mel_bins), for real and imaginary parts interleaved


@functools.lru_cache(maxsize=16)
def _tables(options: FrontEndOptions, device: torch.device) -> _Tables:
    # The power of a bin is the sum of two squares; the filters add them up, which saves a pass.
    mel = mel_matrix(options).repeat_interleave(2, dim=0).float()
    return _Tables(window_function(options).float().to(device), mel.to(device))


def _log_energy(energy: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    """Logarithm of the energy (n,) of frames, floored."""
    log_energy = energy.clamp(min=ENERGY_FLOOR).log_()
    return log_energy.clamp_(min=float(np.log(options.energy_floor))) if options.energy_floor > 0 else log_energy


class _Scratch(NamedTuple):
    """What a block passes through."""

    emphasised: torch.Tensor  # what n windows cover of the signal
    padded: torch.Tensor  # (n, fft_size), zero behind the window


def _window_block(signal: torch.Tensor, first: int, scratch: _Scratch, options: FrontEndOptions) -> torch.Tensor | None:
    """Fill scratch.padded with the windows from row `first` of a packed signal; energy (n,) if it is used.

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
    return (windows - mean if options.raw_energy else windowed).square().sum(dim=1)


def _filtered(padded: torch.Tensor, options: FrontEndOptions, use_power: bool) -> torch.Tensor:
    """Mel energies (n, num_mel_bins) of windows (n, fft_size)."""
    spectrum = torch.fft.rfft(padded)
    parts = torch.view_as_real(spectrum).flatten(1)
    if use_power:
        parts.square_()
    else:
        parts[:, ::2] = spectrum.abs()
        parts[:, 1::2] = 0
    return parts @ _tables(options, parts.device).mel


def _blocks_of_signal(
    signal: torch.Tensor, starts: range, options: FrontEndOptions, use_power: bool
) -> Iterator[MelBlock]:
    """As spectrum_cpu.mel_blocks, on any device, of a packed signal whose blocks start at rows `starts`."""
    scratch = _Scratch(signal.new_empty(covered(starts.step, options)), signal.new_zeros(starts.step, options.fft_size))
    for start in starts:
        energy = _window_block(signal, start, scratch, options)
        yield _filtered(scratch.padded, options, use_power), energy


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
    arrays = isinstance(utterances[0], np.ndarray)
    device = torch.device("cpu") if arrays else utterances[0].device
    block = BLOCK_FRAMES if device.type == "cpu" else BLOCK_FRAMES_GPU
    rows = place(utterances, options, 0 if arrays else apart(options))
    num_rows = -(-rows[-1].stop // block) * block
    if arrays:
        from asr_kd.features.spectrum_cpu import mel_blocks  # numba, which tensors do not need

        blocks = mel_blocks(utterances, options, use_power)
    else:
        signal = pack(utterances, rows, options, num_rows, block)
        blocks = _blocks_of_signal(signal, range(0, num_rows, block), options, use_power)
    feats = torch.empty(num_rows, options.static_dim, device=device)
    for out, (energies, energy) in zip(feats.split(block), blocks, strict=True):
        finish(energies, None if energy is None else _log_energy(energy, options), options, out)
    of_each = [_derived(feats[own], options) for own in rows]
    return [feats.numpy() for feats in of_each] if arrays else of_each


def _derived(feats: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    """What Kaldi makes of the features of a whole utterance: its mean subtracted, derivatives appended."""
    if options.subtract_mean:
        feats = feats - feats.mean(dim=0)
    if options.delta_order > 0:
        with_deltas = add_deltas(feats.cpu().numpy(), options.delta_order, options.delta_window)
        feats = torch.from_numpy(with_deltas).to(feats.device)
    return feats
