"""Mel cepstra as Kaldi's compute-mfcc-feats makes them."""

import functools
import math

import numpy as np
import torch

from asr_kd.features.fbank import Samples, log_floored, mel_energies
from asr_kd.features.options import MfccOptions


@functools.lru_cache(maxsize=16)
def _liftered_dct(options: MfccOptions, device: torch.device) -> torch.Tensor:
    """Log-mel to cepstra with the lifter folded in, (num_mel_bins, num_ceps) float32."""
    n = options.num_mel_bins
    bins = torch.arange(n, dtype=torch.float64)[:, None]
    ceps = torch.arange(options.num_ceps, dtype=torch.float64)
    dct = math.sqrt(2.0 / n) * (math.pi / n * (bins + 0.5) * ceps).cos()
    dct[:, 0] = math.sqrt(1.0 / n)
    q = options.cepstral_lifter
    if q != 0.0:
        dct *= 1.0 + 0.5 * q * (math.pi * ceps / q).sin()
    return dct.float().to(device)


def compute_mfcc(samples: Samples, options: MfccOptions | None = None) -> Samples:
    """Cepstra (num_frames, num_ceps) float32 of one utterance; equal to Kaldi's compute-mfcc-feats at dither 0.

    samples: (num_samples,) at int16 scale. A numpy array gives a numpy array, a tensor a tensor on its device.
    The log energy replaces C0 if use_energy.

    Raises AsrKdError if the samples do not fill one frame.
    """
    options = options or MfccOptions()
    if isinstance(samples, np.ndarray):
        return compute_mfcc(torch.from_numpy(np.ascontiguousarray(samples)), options).numpy()
    energies, log_energy = mel_energies(samples, options)
    feats = log_floored(energies) @ _liftered_dct(options, energies.device)
    if log_energy is not None:
        feats[:, 0] = log_energy
    return feats
