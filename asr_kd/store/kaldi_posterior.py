"""Kaldi's Posterior tables: a few states of every frame with their weights, the targets of its training tools.

nnet-train-frmshuff (nnet1) and nnet3-get-egs read them. Format: PosteriorHolder in Kaldi's src/hmm/posterior.cc.
Pruning is Kaldi's RandPrune (src/base/kaldi-math.h), which keeps expectations.
"""

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.kaldi_ark import write_objects
from asr_kd.store.kaldi_stream import INT_RECORD

# An entry in a binary archive: two numbers, each with its size in bytes before it.
ENTRY = np.dtype([("pdf_size", "u1"), ("pdf", "<i4"), ("weight_size", "u1"), ("weight", "<f4")])


class Posterior(NamedTuple):
    """States and weights of the frames of an utterance, of every frame as many as it has.

    offset: (num_frames + 1,) int64, frame t owns entries offset[t]:offset[t + 1]; pdf: (num_entries,) int, in foreign
    tables perhaps transition-ids; weight: (num_entries,) float32.
    """

    offset: np.ndarray
    pdf: np.ndarray
    weight: np.ndarray

    @classmethod
    def from_rows(cls, weight: np.ndarray, pdf: np.ndarray | None = None) -> "Posterior":
        """The entries above 0 of weight (num_frames, n); pdf: their states, (num_frames, n), the columns if None."""
        frame, column = np.nonzero(weight > 0)
        offset = np.concatenate([[0], np.cumsum(np.bincount(frame, minlength=len(weight)))])
        states = column if pdf is None else pdf[frame, column].astype(np.int64)
        return cls(offset, states, weight[frame, column].astype(np.float32))


def rand_prune(weight: np.ndarray, min_post: float, rng: np.random.Generator) -> np.ndarray:
    """Kaldi's RandPrune: a weight below min_post becomes min_post with probability weight / min_post, else 0.

    Its expectation stays what it was; weights of min_post and above stay themselves. weight: any shape, at least 0.
    """
    small = (weight > 0) & (weight < min_post)
    pruned = weight.copy()
    pruned[small] = np.where(rng.random(int(small.sum())) * min_post < weight[small], min_post, 0.0)
    return pruned


def generator_of(seed: int, utt_id: str) -> np.random.Generator:
    """Random numbers of an utterance: the same whatever else is exported beside it, and in whatever order."""
    digest = hashlib.sha256(f"{seed} {utt_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def write_posteriors(wspecifier: str, items: Iterable[tuple[str, Posterior]]) -> int:
    """Write (key, Posterior) to a table, complete or not at all; returns how many.

    Raises AsrKdError for a key with spaces, frames that do not divide the entries, states that are no int32 from 0,
    and weights that are not finite.
    """
    return write_objects(wspecifier, items, _encode)


def _encode(posterior: Posterior, text: bool) -> bytes:
    """Text is `[ pdf weight pdf weight ] [ … ]`, a pair of brackets a frame."""
    _check(posterior)
    offset, pdf, weight = posterior
    if text:
        entries = [f"{p} {w:.9g} " for p, w in zip(pdf.tolist(), weight.tolist(), strict=True)]
        frames = (f"[ {''.join(entries[begin:end])}] " for begin, end in pairwise(offset.tolist()))
        return f"{''.join(frames)}\n".encode()
    counts = np.diff(offset)
    heads, records = np.empty(len(counts) + 1, INT_RECORD), np.empty(len(pdf), ENTRY)
    heads["size"], heads["value"][0], heads["value"][1:] = 4, len(counts), counts
    records["pdf_size"], records["pdf"], records["weight_size"], records["weight"] = 4, pdf, 4, weight
    # The number of frames, then of each frame the number of its entries, then these: all are put where they begin.
    before = np.concatenate([[0], offset[:-1]])  # entries before each head
    frame = np.repeat(np.arange(len(counts)), counts)
    data = np.empty(heads.nbytes + records.nbytes, np.uint8)
    _put(data, heads, INT_RECORD.itemsize * np.arange(len(heads)) + ENTRY.itemsize * before)
    _put(data, records, INT_RECORD.itemsize * (frame + 2) + ENTRY.itemsize * np.arange(len(records)))
    return b"\0B" + data.tobytes()


def _put(data: np.ndarray, records: np.ndarray, at: np.ndarray) -> None:
    size = records.itemsize
    data[at[:, None] + np.arange(size)] = records.view(np.uint8).reshape(len(records), size)


def _check(posterior: Posterior) -> None:
    offset, pdf, weight = posterior
    if not len(offset) or offset[0] != 0 or (np.diff(offset) < 0).any() or not offset[-1] == len(pdf) == len(weight):
        raise AsrKdError(f"its frames do not divide its {len(pdf)} states and {len(weight)} weights")
    if pdf.size and (pdf.dtype.kind not in "iu" or pdf.min() < 0 or pdf.max() >= 1 << 31):
        raise AsrKdError("its states are not whole numbers from 0 that fit in 32 bits")
    if not np.isfinite(weight).all():
        raise AsrKdError("its weights are not finite")
