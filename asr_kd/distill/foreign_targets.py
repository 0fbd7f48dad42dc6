"""Soft targets from teachers that are not ours: matrices of posteriors, or Kaldi's Posteriors of a few states a frame.

They are laid out as the features that a student will see, and what does not cover every frame of these, or names states
that the alignment does not have, is refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from asr_kd.distill.soft_targets import pack
from asr_kd.errors import AsrKdError
from asr_kd.nnet.inference import posteriors_of
from asr_kd.scoring.posteriors import SUM_TOLERANCE, open_posteriors
from asr_kd.store.ali import SUBSAMPLING
from asr_kd.store.hdf5 import Layout
from asr_kd.store.kaldi_posterior_reader import Posterior, read_posteriors

# Utterances of a table that come before their turn wait in memory, up to so many bytes.
MAX_WAITING_BYTES = 1 << 31

T = TypeVar("T", np.ndarray, Posterior)
Blocks = Iterator[tuple[slice, dict[str, np.ndarray]]]


def in_order(items: Iterable[tuple[str, T]], layout: Layout, name: str) -> Iterator[T]:
    """The item of each utterance of a layout, in its order; others are passed over.

    Raises AsrKdError where an utterance is missing, comes twice, has another number of frames, or where the order is so
    different that too much would have to be held.
    """
    waiting: dict[str, T] = {}
    seen: set[str] = set()
    num_bytes, stream = 0, iter(items)
    for utt_id in layout.utt_ids:
        while utt_id not in waiting:
            key, item = next(stream, (None, None))
            if key is None:
                raise AsrKdError(f"{name}: lacks utterance {utt_id!r}, which the features have")
            if key in seen:
                raise AsrKdError(f"{name}: utterance {key!r} comes twice")
            seen.add(key)
            if key not in layout.index:
                continue
            waiting[key] = item
            num_bytes += _size(item)
            if num_bytes > MAX_WAITING_BYTES:
                raise AsrKdError(
                    f"{name}: its utterances come in another order than the features', so that more than "
                    f"{MAX_WAITING_BYTES >> 30} GiB would wait in memory; name it as scp:FILE, sorted like the features"
                )
        item = waiting.pop(utt_id)
        num_bytes -= _size(item)
        _require_frames(item, layout, utt_id, name)
        yield item


def _size(item: T) -> int:
    return item.nbytes if isinstance(item, np.ndarray) else sum(array.nbytes for array in item)


def _require_frames(item: T, layout: Layout, utt_id: str, name: str) -> None:
    wanted = int(layout.lengths[layout.index[utt_id]])
    found = len(item) if isinstance(item, np.ndarray) else len(item.offset) - 1
    if found == wanted:
        return
    chain = f"; of chain models there is one for {SUBSAMPLING}, which is not enough"
    raise AsrKdError(
        f"{name}: utterance {utt_id!r} has targets for {found} frames, but {wanted} frames of features"
        + (chain if found == -(-wanted // SUBSAMPLING) else "")
    )


def dense_targets(
    tables: Sequence[str],
    layout: Layout,
    num_pdfs: int,
    *,
    temperature: float = 1.0,
    stored_temperature: float = 1.0,
    combination: str = "arithmetic",
    top_k: int | None = None,
    logits: bool = False,
    log_priors: np.ndarray | None = None,
) -> Blocks:
    """Blocks for write_targets from a table of matrices (num_frames, num_pdfs) for each teacher, averaged.

    tables, logits, log_priors: as open_posteriors takes them. Each teacher's distribution, made at stored_temperature,
    is brought to `temperature` before they are averaged, which is exact but for rounding: log posteriors are logits up
    to a constant a frame.
    Raises AsrKdError as open_posteriors and in_order do, and for another number of states.
    """
    teachers = [in_order(_matrices(table, logits=logits, log_priors=log_priors), layout, table) for table in tables]

    def joint() -> Iterator[tuple[slice, torch.Tensor]]:
        for utt_id, *log_posts in zip(layout.utt_ids, *teachers, strict=True):
            for table, log_post in zip(tables, log_posts, strict=True):
                if log_post.shape[1] != num_pdfs:
                    raise AsrKdError(f"{table}: {log_post.shape[1]} columns, but the alignment has {num_pdfs} states")
            logits = (torch.from_numpy(log_post) * stored_temperature for log_post in log_posts)
            yield layout.rows(utt_id), posteriors_of(logits, temperature, combination)

    return pack(joint(), top_k)


def _matrices(table: str, **how: object) -> Iterator[tuple[str, np.ndarray]]:
    """open_posteriors, whose error tells where the table is one for sparse_targets instead."""
    try:
        yield from open_posteriors(table, **how)
    except AsrKdError as error:
        try:
            next(read_posteriors(table))
        except (AsrKdError, StopIteration):
            raise error from None
        raise AsrKdError(f"{table}: is a Posterior table, not one of matrices; give it as --sparse") from error


def widest_frame(table: str) -> int:
    """The largest number of entries that a frame of a Posterior table has; raises AsrKdError for a table without any.

    Reads the whole table: a targets.h5 has as many columns.
    """
    widest = max((int(np.diff(post.offset).max(initial=0)) for _, post in read_posteriors(table)), default=0)
    if not widest:
        raise AsrKdError(f"{table}: holds no Posterior with an entry")
    return widest


def sparse_targets(
    table: str,
    layout: Layout,
    num_pdfs: int,
    top_k: int,
    *,
    normalize: bool = False,
    t2pdf: np.ndarray | None = None,
) -> Blocks:
    """Blocks for write_targets from a Posterior table: the top_k largest weights of each frame, and what is left.

    normalize: weights of a frame are scaled to sum to one, for those pruned at random, which do so only on average;
    otherwise what they lack to one is the mass of the states not named. t2pdf: the table names transition-ids, whose
    states these are, (num_transition_ids + 1,).
    Raises AsrKdError as in_order does, for states that the alignment lacks, negative weights, frames without any, and
    weights that sum to more than one.
    """
    for utt_id, posterior in zip(layout.utt_ids, in_order(read_posteriors(table), layout, table), strict=True):
        where = f"{table}: utterance {utt_id!r}"
        frame = np.repeat(np.arange(len(posterior.offset) - 1), np.diff(posterior.offset))
        pdf = posterior.pdf
        if t2pdf is not None:
            if pdf.size and (pdf.min() < 1 or pdf.max() >= len(t2pdf)):
                found = f"has transition-ids from {pdf.min()} to {pdf.max()}"
                raise AsrKdError(f"{where} {found}, but the model has those from 1 to {len(t2pdf) - 1}")
            pdf = t2pdf[pdf]
        if pdf.size and pdf.max() >= num_pdfs:
            raise AsrKdError(f"{where} has state {pdf.max()}, but the alignment has {num_pdfs}")
        yield (
            layout.rows(utt_id),
            _largest(frame, pdf, posterior.weight, len(posterior.offset) - 1, top_k, normalize, where),
        )


def _largest(
    frame: np.ndarray, pdf: np.ndarray, weight: np.ndarray, num_frames: int, top_k: int, normalize: bool, where: str
) -> dict[str, np.ndarray]:
    """The top_k largest weights a frame as arrays (num_frames, top_k), and the mass left over."""
    if weight.size and weight.min() < 0:
        raise AsrKdError(f"{where}, frame {frame[weight.argmin()]}: has the negative weight {weight.min():g}")
    # A state that a frame names twice has both weights; the largest come first in each frame.
    width = 1 + int(pdf.max(initial=0))
    keys, of_entry = np.unique(frame * width + pdf, return_inverse=True)
    weight = np.bincount(of_entry, weight.astype(np.float64), minlength=len(keys))
    frame, pdf = keys // width, keys % width
    sums = np.bincount(frame, weight, minlength=num_frames)
    wrong = sums <= 0 if normalize else (sums <= 0) | (sums > 1 + SUM_TOLERANCE)
    if wrong.any():
        first = int(wrong.argmax())
        raise AsrKdError(
            f"{where}, frame {first}: its weights sum to {sums[first]:.4g}, and targets to at most 1 and more than 0"
            + ("" if normalize else "; for weights that were pruned at random, give --normalize")
        )
    if normalize:
        weight, sums = weight / sums[frame], np.ones(num_frames)
    order = np.lexsort([-weight, frame])
    frame, pdf, weight = frame[order], pdf[order], weight[order]
    rank = np.arange(len(frame)) - np.searchsorted(frame, frame)
    kept = rank < top_k
    # Frames with fewer entries repeat their best state with no mass, which takes none from the rest.
    best = pdf[np.searchsorted(frame, np.arange(num_frames))]
    pdfs, prob = np.repeat(best[:, None], top_k, axis=1), np.zeros((num_frames, top_k), np.float32)
    pdfs[frame[kept], rank[kept]], prob[frame[kept], rank[kept]] = pdf[kept], weight[kept]
    tail = np.maximum(1.0 - prob.astype(np.float16).sum(axis=1, dtype=np.float64), 0.0)
    return {"prob": prob, "pdf": pdfs, "tail": tail}
