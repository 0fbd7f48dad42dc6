"""From samples to mel energies on a processor: compiled passes before and after torch's FFT, in blocks.

A frame passes through in a block of one fixed size, whichever utterances share it. So its bits do not depend on its
company: not those of the FFT, and not those of the compiled passes, which treat all rows alike.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from asr_kd.compiled import compiled, compiled_sum
from asr_kd.features.mel import MelBlock, mel_matrix
from asr_kd.features.options import FrontEndOptions
from asr_kd.features.window import BLOCK_FRAMES, num_frames, window_function

# Frames side by side where filters are applied, so that one instruction does the same for several of them ...
LANES = 64
# ... and a row of them is this long: rows a power of two apart would compete for the same lines of the cache.
LANE_STRIDE = LANES + 16
compiled_pass = functools.partial(compiled, fastmath={"contract"})


@compiled_sum
def _sum(values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for i in range(len(values)):
        total += values[i]
    return total


@compiled_sum
def _sum_of_squares(values: np.ndarray, mean: np.float32) -> np.float32:
    total = np.float32(0)
    for i in range(len(values)):
        total += (values[i] - mean) * (values[i] - mean)
    return total


@compiled_pass
def _window_frames(
    signal: np.ndarray,
    shift: int,
    window: np.ndarray,
    left: np.float32,
    remove_mean: bool,
    raw_energy: bool,
    frames: np.ndarray,
    energy: np.ndarray,
) -> None:
    """Fill `frames` (n, >= window_size) with Kaldi's ProcessWindow of the n windows of `signal`, and energy (n,).

    It takes the mean off, then emphasises, then weights. x[t] - a x[t - 1] is summed as (x[t] - x[t - 1]) +
    (1 - a) x[t - 1], where left = 1 - a: a constant comes out exactly so. The first sample is its own predecessor.
    energy may be of no length, where it is not used.
    """
    size = len(window)
    for row in range(len(frames)):
        first = row * shift
        samples = signal[first : first + size]
        mean = _sum(samples) / np.float32(size) if remove_mean else np.float32(0)
        before, here, weights = samples[: size - 1], samples[1:], window[1:]
        frame = frames[row, :size]
        frame[0] = left * (samples[0] - mean) * window[0]
        others = frame[1:]
        for i in range(size - 1):
            others[i] = ((here[i] - before[i]) + left * (before[i] - mean)) * weights[i]
        if len(energy):
            energy[row] = _sum_of_squares(samples, mean) if raw_energy else _sum_of_squares(frame, np.float32(0))


@compiled_pass
def _apply_filters(
    spectrum: np.ndarray,
    use_power: bool,
    lowest_filter: np.ndarray,
    weights: np.ndarray,
    power: np.ndarray,
    sums: np.ndarray,
    energies: np.ndarray,
) -> None:
    """Fill energies (n, num_mel_bins) from spectrum (n, 2 · num_bins), real and imaginary parts interleaved.

    lowest_filter (num_bins,), weights (num_bins, 2): of the two neighbouring filters that a bin belongs to. power
    (num_bins, LANE_STRIDE) and sums (num_mel_bins + 1, LANE_STRIDE) are scratch. n is a multiple of LANES.
    """
    for start in range(0, len(spectrum), LANES):
        sums[:] = 0
        for lane in range(LANES):
            parts = spectrum[start + lane]
            for k in range(len(weights)):
                power[k, lane] = parts[2 * k] * parts[2 * k] + parts[2 * k + 1] * parts[2 * k + 1]
        for k in range(len(weights)):
            of_bin = power[k, :LANES]
            if not use_power:
                for lane in range(LANES):
                    of_bin[lane] = np.sqrt(of_bin[lane])
            falling, rising = sums[lowest_filter[k], :LANES], sums[lowest_filter[k] + 1, :LANES]
            falls, rises = weights[k, 0], weights[k, 1]
            for lane in range(LANES):
                falling[lane] += falls * of_bin[lane]
            for lane in range(LANES):
                rising[lane] += rises * of_bin[lane]
        for lane in range(LANES):
            for j in range(energies.shape[1]):
                energies[start + lane, j] = sums[j, lane]


class _Tables(NamedTuple):
    """What depends on the options alone."""

    window: np.ndarray  # (window_size,)
    lowest_filter: np.ndarray  # (num_bins,)
    weights: np.ndarray  # (num_bins, 2)


@functools.lru_cache(maxsize=16)
def _tables(options: FrontEndOptions) -> _Tables:
    filters = mel_matrix(options).numpy()
    lowest = (filters != 0).argmax(axis=1)
    padded = np.pad(filters, ((0, 0), (0, 1)))
    weights = np.take_along_axis(padded, lowest[:, None] + [0, 1], axis=1)
    return _Tables(window_function(options).float().numpy(), lowest, weights.astype(np.float32))


def _covered(samples: np.ndarray, count: int, options: FrontEndOptions) -> np.ndarray:
    """What `count` windows cover of a signal, mirrored at its ends where they reach beyond."""
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if options.snip_edges:
        return samples
    first = options.window_shift // 2 - options.window_size // 2  # windows are centred on frames
    stop = first + (count - 1) * options.window_shift + options.window_size
    beyond = (max(0, -first), max(0, stop - len(samples)))
    return np.pad(samples, beyond, mode="symmetric")[max(0, first) :]


def mel_blocks(utterances: Sequence[np.ndarray], options: FrontEndOptions, use_power: bool) -> Iterator[MelBlock]:
    """Mel energies of the frames of all utterances in turn, by blocks that are each valid until the next is asked for.

    The last one may have more rows than frames are left.
    """
    tables = _tables(options)
    frames = torch.zeros(BLOCK_FRAMES, options.fft_size)
    rows = frames.numpy()
    energy = np.zeros(BLOCK_FRAMES if options.use_energy else 0, np.float32)
    power = np.empty((len(tables.weights), LANE_STRIDE), np.float32)
    sums = np.empty((options.num_mel_bins + 1, LANE_STRIDE), np.float32)
    energies = np.empty((BLOCK_FRAMES, options.num_mel_bins), np.float32)
    result = torch.from_numpy(energies), torch.from_numpy(energy) if options.use_energy else None
    left = np.float32(1 - options.preemphasis_coefficient)
    how = (options.window_shift, tables.window, left, options.remove_dc_offset, options.raw_energy)

    def finished() -> MelBlock:
        spectrum = torch.fft.rfft(frames).numpy().view(np.float32)
        _apply_filters(spectrum, use_power, tables.lowest_filter, tables.weights, power, sums, energies)
        return result

    filled = 0
    for samples in utterances:
        count, done = num_frames(len(samples), options), 0
        signal = _covered(samples, count, options)
        while done < count:
            taken = min(count - done, BLOCK_FRAMES - filled)
            block = slice(filled, filled + taken)
            _window_frames(signal[done * options.window_shift :], *how, rows[block], energy[block])
            filled, done = filled + taken, done + taken
            if filled == BLOCK_FRAMES:
                yield finished()
                filled = 0
    if filled:
        yield finished()
