"""Log-mel filterbanks as Kaldi's compute-fbank-feats makes them, a block of frames at a time in torch."""

import functools
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.features.options import FbankOptions, FrontEndOptions
from asr_kd.features.window import frame_samples, window_function

# Kaldi floors energies at the smallest float32 step before the logarithm: silence is log(1.19e-7) = -15.94.
ENERGY_FLOOR = torch.finfo(torch.float32).eps
# All passes over a block of frames stay in a core's L2 cache at this size.
BLOCK_FRAMES = 256

Samples = TypeVar("Samples", np.ndarray, torch.Tensor)


class _Tables(NamedTuple):
    """What depends on the options alone."""

    window: torch.Tensor  # (window_size,)
    delayed: torch.Tensor  # (window_size - 1,): window times pre-emphasis, for the preceding sample
    mel: torch.Tensor  # (num_fft_bins, num_mel_bins)


def mel_scale(freq: torch.Tensor) -> torch.Tensor:
    """Hz to mel (Kaldi's, which is HTK's)."""
    return 1127.0 * (1.0 + freq / 700.0).log()


def mel_matrix(options: FrontEndOptions) -> torch.Tensor:
    """Triangular filters, even on the mel scale: (fft_size // 2 + 1, num_mel_bins) float64.

    As in Kaldi's MelBanks the bin at the Nyquist frequency has no weight.

    Raises AsrKdError if a filter is so narrow that it covers no bin of the FFT.
    """
    num_bins = options.fft_size // 2
    freq = torch.arange(num_bins, dtype=torch.float64) * (options.sample_frequency / options.fft_size)
    mel = mel_scale(freq)[:, None]
    low, high = mel_scale(torch.tensor([options.low_freq, options.upper_freq], dtype=torch.float64))
    edges = low + (high - low) / (options.num_mel_bins + 1) * torch.arange(options.num_mel_bins + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    weights = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    if not weights.any(dim=0).all():
        raise AsrKdError(f"num_mel_bins={options.num_mel_bins} is too many: a filter covers no bin of the FFT")
    return torch.cat([weights, weights.new_zeros(options.fft_size // 2 + 1 - num_bins, options.num_mel_bins)])


@functools.lru_cache(maxsize=16)
def _tables(options: FrontEndOptions, device: torch.device) -> _Tables:
    window = window_function(options)
    delayed = options.preemphasis_coefficient * window[1:]
    return _Tables(*(t.float().to(device) for t in (window, delayed, mel_matrix(options))))


def _log_energy(frames: torch.Tensor) -> torch.Tensor:
    return frames.square().sum(dim=1).clamp(min=ENERGY_FLOOR).log()


def _analyse(
    frames: torch.Tensor, padded: torch.Tensor, options: FrontEndOptions, use_power: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mel energies (n, num_mel_bins) and log energy (n,) of a block of windows; `padded` (n, fft_size) is scratch.

    The order of steps is Kaldi's ProcessWindow: mean, raw energy, pre-emphasis, window.
    """
    window, delayed, mel = _tables(options, frames.device)
    if options.remove_dc_offset:
        frames = frames - frames.mean(dim=1, keepdim=True)
    size = options.window_size
    windowed = padded[:, :size]
    torch.mul(frames, window, out=windowed)
    windowed[:, 1:].addcmul_(frames[:, :-1], delayed, value=-1)
    windowed[:, 0] *= 1 - options.preemphasis_coefficient  # the first sample is its own predecessor
    log_energy = None
    if options.use_energy:
        log_energy = _log_energy(frames if options.raw_energy else windowed)
    spectrum = torch.fft.rfft(padded)
    power = (spectrum * spectrum.conj()).real.contiguous()  # five times faster than summing the two squares
    return (power if use_power else power.sqrt_()) @ mel, log_energy


@torch.no_grad()
def mel_energies(
    samples: torch.Tensor, options: FrontEndOptions, use_power: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mel energies (num_frames, num_mel_bins), not yet floored, and log energy (num_frames,) or None if unused.

    samples: (num_samples,) at int16 scale, on any device. Raises AsrKdError if they do not fill one frame.
    """
    if samples.ndim != 1:
        raise AsrKdError(f"samples of one channel were expected, but their shape is {tuple(samples.shape)}")
    frames = frame_samples(samples.to(torch.float32), options)
    count = len(frames)
    block = BLOCK_FRAMES if frames.device.type == "cpu" else count
    padded = frames.new_zeros(min(block, count), options.fft_size)
    energies = frames.new_empty(count, options.num_mel_bins)
    log_energy = frames.new_empty(count) if options.use_energy else None
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        energies[rows], block_energy = _analyse(frames[rows], padded[: rows.stop - start], options, use_power)
        if log_energy is not None:
            log_energy[rows] = block_energy
    if log_energy is not None and options.energy_floor > 0:
        log_energy.clamp_(min=float(np.log(options.energy_floor)))
    return energies, log_energy


def log_floored(energies: torch.Tensor) -> torch.Tensor:
    """Logarithm in place, floored as Kaldi does."""
    return energies.clamp_(min=ENERGY_FLOOR).log_()


def compute_fbank(samples: Samples, options: FbankOptions | None = None) -> Samples:
    """Filterbanks (num_frames, feat_dim) float32 of one utterance; equal to Kaldi's compute-fbank-feats at dither 0.

    samples: (num_samples,) at int16 scale. A numpy array gives a numpy array, a tensor a tensor on its device.
    The log energy comes first if use_energy.

    Raises AsrKdError if the samples do not fill one frame.
    """
    options = options or FbankOptions()
    if isinstance(samples, np.ndarray):
        return compute_fbank(torch.from_numpy(np.ascontiguousarray(samples)), options).numpy()
    energies, log_energy = mel_energies(samples, options, options.use_power)
    feats = log_floored(energies) if options.use_log_fbank else energies
    return feats if log_energy is None else torch.cat([log_energy[:, None], feats], dim=1)
