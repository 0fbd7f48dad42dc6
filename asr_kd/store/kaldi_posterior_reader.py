"""Kaldi's Posterior tables, read: a few states (or transition-ids) of every frame with their weights.

Format: PosteriorHolder in Kaldi's src/hmm/posterior.cc, binary or text: `key [ id weight id weight ] [ … ] …`.
"""

from collections.abc import Iterator

import numpy as np

from asr_kd.store.kaldi_ark import read_objects
from asr_kd.store.kaldi_posterior import ENTRY, Posterior
from asr_kd.store.kaldi_stream import KaldiStream

# No utterance comes near: a day of speech.
_MAX_FRAMES = 10_000_000


def read_posteriors(rspecifier: str) -> Iterator[tuple[str, Posterior]]:
    """The keys and Posteriors of a table, one after the other.

    Raises AsrKdError naming file, key and byte for what is truncated, damaged or no Posterior.
    """
    return read_objects(rspecifier, _read_posterior)


def _read_posterior(stream: KaldiStream) -> Posterior:
    counts, ids, weights = _read_binary(stream) if stream.is_binary() else _read_text(stream)
    if ids.size and ids.min() < 0:
        raise stream.error(f"has the negative id {ids.min()}")
    if not np.isfinite(weights).all():
        raise stream.error("has a weight that is not finite")
    return Posterior(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), ids, weights)


def _read_binary(stream: KaldiStream) -> tuple[list[int], np.ndarray, np.ndarray]:
    num_frames = stream.int32()
    if not 0 <= num_frames <= _MAX_FRAMES:
        raise stream.error(f"declares {num_frames} frames")
    counts, pieces = [], []
    for _ in range(num_frames):
        count = stream.int32()
        if count < 0:
            raise stream.error(f"declares {count} entries of a frame")
        counts.append(count)
        pieces.append(stream.read(count * ENTRY.itemsize))
    entries = np.frombuffer(b"".join(pieces), ENTRY)
    if not ((entries["pdf_size"] == 4).all() and (entries["weight_size"] == 4).all()):
        raise stream.error("has entries that are not an id and a weight of 4 bytes each")
    return counts, entries["pdf"].astype(np.int64), entries["weight"].astype(np.float32)


def _read_text(stream: KaldiStream) -> tuple[list[int], np.ndarray, np.ndarray]:
    *frames, rest = stream.read_line().split("]")
    counts, fields = [], []
    for frame in frames:
        bracket, *pairs = frame.split() or [""]
        if bracket != "[" or len(pairs) % 2:
            raise stream.error(f"has {frame.strip()[:40]!r} where [ id weight … ] belongs")
        counts.append(len(pairs) // 2)
        fields += pairs
    if rest.strip():
        raise stream.error(f"has {rest.strip()[:40]!r} behind its last ]")
    try:
        ids = np.fromiter(map(int, fields[::2]), np.int32, len(fields) // 2)
        with np.errstate(over="ignore"):
            weights = np.fromiter(map(float, fields[1::2]), np.float64, len(fields) // 2).astype(np.float32)
    except (ValueError, OverflowError) as error:
        raise stream.error(f"holds what is no id or weight ({str(error)[:80]})") from error
    return counts, ids.astype(np.int64), weights
