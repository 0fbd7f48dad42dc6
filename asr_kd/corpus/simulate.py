"""A speaker in a room with noise, simulated so that the time alignment of the clean speech stays valid.

Every function takes its randomness from the generator that it is given and keeps the number of samples.
"""

from collections.abc import Sequence

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import fftconvolve

NOISE_KINDS = ("white", "pink", "hum", "babble")


def room_impulse_response(
    rng: np.random.Generator, rt60: float, direct_to_reverberant_db: float, sample_rate: int
) -> np.ndarray:
    """An impulse response that starts with its direct path: 1, then a gap, then an exponentially decaying noise tail.

    rt60: seconds in which the tail's power falls by 60 dB; `direct_to_reverberant_db` sets the tail's energy against
    the direct path's. The tail follows Polack's statistical model. Causal, the direct path at sample 0, so that
    speech keeps its place in time. Returns (num_samples,) float64.
    """
    num_samples = max(2, round(rt60 * sample_rate))
    time = np.arange(num_samples) / sample_rate
    tail = rng.standard_normal(num_samples) * np.exp(-3.0 * np.log(10.0) * time / rt60)
    tail[: max(1, round(rng.uniform(0.001, 0.006) * sample_rate))] = 0.0
    energy = np.sum(tail**2)
    if energy > 0:
        tail *= np.sqrt(10.0 ** (-direct_to_reverberant_db / 10.0) / energy)
    tail[0] = 1.0
    return tail


def reverberate(samples: np.ndarray, impulse_response: np.ndarray) -> np.ndarray:
    """Convolve (num_samples,) with an impulse response and cut the tail: (num_samples,) float64."""
    return fftconvolve(samples, impulse_response)[: len(samples)]


def make_noise(
    rng: np.random.Generator, kind: str, num_samples: int, sample_rate: int, voices: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Noise of unit power, (num_samples,) float64; `kind` is one of NOISE_KINDS, babble is made of `voices`.

    Raises ValueError for another kind, or babble without voices.
    """
    if kind == "white":
        noise = rng.standard_normal(num_samples)
    elif kind == "pink":
        length = next_fast_len(num_samples, real=True)
        spectrum = np.fft.rfft(rng.standard_normal(length))
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
        spectrum[0] = 0.0
        noise = np.fft.irfft(spectrum, length)[:num_samples]
    elif kind == "hum":
        noise = _hum(rng, num_samples, sample_rate)
    elif kind == "babble" and len(voices):
        noise = np.zeros(num_samples)
        for voice in voices:
            repeated = np.resize(voice, num_samples + len(voice))
            start = int(rng.integers(len(voice)))
            noise += repeated[start : start + num_samples] / (np.std(voice) + 1e-9)
    else:
        raise ValueError(f"no noise of the kind {kind!r} can be made of {len(voices)} voices")
    return noise / np.sqrt(np.mean(noise**2) + 1e-12)


def add_noise(speech: np.ndarray, noise: np.ndarray, snr_db: float, is_speech: np.ndarray) -> np.ndarray:
    """Add `noise` at `snr_db`, the ratio of powers where `is_speech`, a mask, holds; all (num_samples,)."""
    power = np.mean(speech[is_speech] ** 2) if is_speech.any() else np.mean(speech**2)
    noise_power = np.mean(noise**2)
    if power == 0 or noise_power == 0:
        return speech.copy()
    return speech + noise * np.sqrt(power / noise_power * 10.0 ** (-snr_db / 10.0))


def set_level(samples: np.ndarray, level_dbfs: float, peak: float = 0.95) -> np.ndarray:
    """Scale to an RMS of `level_dbfs` against int16 full scale, less where the peak would pass `peak` of it; int16."""
    rms = np.sqrt(np.mean(samples**2))
    if rms == 0:
        return np.zeros(len(samples), dtype=np.int16)
    gain = 32768.0 * 10.0 ** (level_dbfs / 20.0) / rms
    gain = min(gain, peak * 32767.0 / np.max(np.abs(samples)))
    return np.rint(samples * gain).astype(np.int16)


def _hum(rng: np.random.Generator, num_samples: int, sample_rate: int) -> np.ndarray:
    mains = rng.choice([50.0, 60.0]) * rng.uniform(0.995, 1.005)
    amplitudes = rng.uniform(0.2, 1.0, 24)
    phases = rng.uniform(0.0, 2.0 * np.pi, len(amplitudes))
    # Powers of one rotating phasor: a sine for each harmonic would cost more than the rest of the simulation.
    fundamental = np.exp(2j * np.pi * mains / sample_rate * np.arange(num_samples))
    phasor, hum = np.ones(num_samples, dtype=complex), 0.1 * rng.standard_normal(num_samples)
    for harmonic, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), start=1):
        phasor *= fundamental
        hum += amplitude / np.sqrt(harmonic) * (phasor.real * np.cos(phase) + phasor.imag * np.sin(phase))
    return hum
