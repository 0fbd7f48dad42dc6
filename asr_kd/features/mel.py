"""Kaldi's triangular mel filters (mel-computations.cc), with the warp of the frequency axis for a vocal tract."""

import torch

from asr_kd.errors import AsrKdError
from asr_kd.features.options import FrontEndOptions

# Mel energies (n, num_mel_bins), and the energy (n,) of the windows where that is used.
MelBlock = tuple[torch.Tensor, torch.Tensor | None]


def mel_scale(freq: torch.Tensor) -> torch.Tensor:
    """Hz to mel (Kaldi's, which is HTK's)."""
    return 1127.0 * (1.0 + freq / 700.0).log()


def _inverse_mel_scale(mel: torch.Tensor) -> torch.Tensor:
    return 700.0 * ((mel / 1127.0).exp() - 1.0)


def vtln_warp(freq: torch.Tensor, options: FrontEndOptions) -> torch.Tensor:
    """Frequencies divided by the warp factor, bent below and above so that the outer edges stay (VtlnWarpFreq)."""
    low, high, factor = options.low_freq, options.upper_freq, options.vtln_warp
    knee_low, knee_high = options.vtln_low * max(1.0, factor), options.vtln_upper * min(1.0, factor)
    if knee_low >= knee_high:
        raise AsrKdError(f"vtln_warp {factor:g} is too strong: its knees {knee_low:g} and {knee_high:g} Hz cross")
    left = low + (knee_low / factor - low) / (knee_low - low) * (freq - low)
    right = high + (high - knee_high / factor) / (high - knee_high) * (freq - high)
    warped = torch.where(freq < knee_low, left, torch.where(freq < knee_high, freq / factor, right))
    return torch.where((freq < low) | (freq > high), freq, warped)


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
    if options.vtln_warp != 1.0:
        edges = mel_scale(vtln_warp(_inverse_mel_scale(edges), options))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    weights = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    if not weights.any(dim=0).all():
        raise AsrKdError(f"num_mel_bins={options.num_mel_bins} is too many: a filter covers no bin of the FFT")
    return torch.cat([weights, weights.new_zeros(options.fft_size // 2 + 1 - num_bins, options.num_mel_bins)])
