"""Anyone's outputs of a net, utterance by utterance, as log posteriors.

Files: a Kaldi archive or script of matrices (`ark:FILE`, `scp:FILE`, or a path that ends in .ark, .ark.gz, .scp), or
HDF5 in one of two forms:

    flat            one of /post /posteriors /prob /log_post /logits /loglik (num_frames, num_pdfs), with /utt/id and
                    /utt/offset (num_utts + 1,) as in feats.h5
    by utterance    a data set (num_frames, num_pdfs) for each utterance, whose path in the file is the utterance's id

Values: probabilities or log probabilities, told apart by the values themselves, since rows of either sum to one; or
what the caller says that they are. Whatever is not what it should be is refused: a score of unnormalised outputs would
look like any other.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.hdf5 import open_any_h5, readable
from asr_kd.store.kaldi_ark import read_matrices
from asr_kd.store.table_names import names_table

FLAT_NAMES = ("post", "posteriors", "prob", "log_post", "logits", "loglik")
# Sums of rows may miss one by this much: half precision and Kaldi's compression round.
SUM_TOLERANCE = 0.01
# What a posterior of zero counts as, so that the cross-entropy stays finite: the floor of Kaldi's nnet1 (Xent::Eval).
PROB_FLOOR = 1e-20

_PROBABILITIES, _LOG_PROBABILITIES = "probabilities", "log probabilities"


def open_posteriors(
    path: str | Path, *, logits: bool = False, log_priors: np.ndarray | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (utt_id, log_post (num_frames, num_pdfs) float32) in the order of the file; each row sums to one.

    By default the values are probabilities or log probabilities. logits: they are outputs before the softmax, which is
    taken here. log_priors (num_pdfs,): they are log-likelihoods as a decoder gets them, log_post − log_prior; the
    priors are added back. Both together: the same, up to a constant a frame.

    Raises AsrKdError, naming the file and the utterance, for a file that is missing, damaged or of another form, for
    an id that comes twice, widths that change, NaN, and rows that do not sum to one.
    """
    path = str(path)
    kind: str | None = None
    num_pdfs: int | None = None if log_priors is None else len(log_priors)
    seen: set[str] = set()
    for utt_id, values in _read(path):
        where = f"{path}: utterance {utt_id!r}"
        if utt_id in seen:
            raise AsrKdError(f"{where} comes twice")
        seen.add(utt_id)
        num_pdfs = num_pdfs or values.shape[1]
        if values.shape[1] != num_pdfs:
            raise AsrKdError(f"{where} has {values.shape[1]} columns, but {num_pdfs} states are expected")
        values = values.astype(np.float32, copy=False)
        if np.isnan(values).any() or np.isposinf(values).any():
            raise AsrKdError(f"{where} holds NaN or infinity")
        if log_priors is not None:
            values = values + log_priors
        if logits:
            yield utt_id, _normalised(values, where)
            continue
        if kind is None:
            kind = _recognise(values, where, likelihoods=log_priors is not None)
        yield utt_id, _log_posteriors(values, kind, where)
    if not seen:
        raise AsrKdError(f"{path}: holds no utterance")


def _row_sums(values: np.ndarray, kind: str) -> np.ndarray:
    """Sum of probabilities of each row, (num_frames,) float64; large logits may overflow to infinity."""
    with np.errstate(over="ignore"):
        return (values if kind == _PROBABILITIES else np.exp(values)).sum(axis=1, dtype=np.float64)


def _recognise(values: np.ndarray, where: str, likelihoods: bool) -> str:
    """What rows sum to one as; probabilities are never below 0, logarithms of them never much above."""
    kinds = (_LOG_PROBABILITIES,) if likelihoods else (_PROBABILITIES, _LOG_PROBABILITIES)
    for kind in kinds:
        in_range = values.min(initial=0.0) >= 0 if kind == _PROBABILITIES else values.max(initial=0.0) <= SUM_TOLERANCE
        if in_range and np.abs(_row_sums(values, kind) - 1.0).max(initial=0.0) <= SUM_TOLERANCE:
            return kind
    if likelihoods:
        raise AsrKdError(
            f"{where}: with the priors added its rows do not sum to one; the priors are not those that were divided "
            "by, or a constant was added to each frame (--logits takes it away)"
        )
    raise AsrKdError(
        f"{where} holds neither probabilities nor their logarithms: no rows that sum to one; give --logits for outputs "
        "before the softmax, --counts for log-likelihoods"
    )


def _log_posteriors(values: np.ndarray, kind: str, where: str) -> np.ndarray:
    sums = _row_sums(values, kind)
    wrong = np.flatnonzero(np.abs(sums - 1.0) > SUM_TOLERANCE)
    if len(wrong) or (kind == _PROBABILITIES and values.min(initial=0.0) < 0):
        row = int(wrong[0]) if len(wrong) else int(values.min(axis=1).argmin())
        raise AsrKdError(f"{where}, frame {row}: its {kind} sum to {sums[row]:.4g} or are not in their range")
    if kind == _PROBABILITIES:
        values = np.log(np.maximum(values, PROB_FLOOR))
    return np.maximum(values, np.float32(np.log(PROB_FLOOR))) - np.log(sums)[:, None].astype(np.float32)


def _normalised(values: np.ndarray, where: str) -> np.ndarray:
    """log-softmax of each row."""
    highest = values.max(axis=1, keepdims=True, initial=-np.inf)
    if not np.isfinite(highest).all():
        raise AsrKdError(f"{where}: every output of a frame is minus infinity")
    shifted = values - highest
    log_post = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.maximum(log_post, np.float32(np.log(PROB_FLOOR)))


def _read(path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Matrices as they are stored: (utt_id, (num_frames, num_pdfs) floats)."""
    if not names_table(path):
        yield from _read_h5(path)
        return
    for utt_id, values in read_matrices(path):
        if not values.size:
            raise AsrKdError(f"{path}: utterance {utt_id!r} has no frame")
        yield utt_id, values


def _read_h5(path: str) -> Iterator[tuple[str, np.ndarray]]:
    with open_any_h5(path, "posteriors as HDF5, ark:FILE or scp:FILE") as file, readable(path):
        flat = [name for name in FLAT_NAMES if name in file]
        if "utt/offset" not in file:
            yield from _read_by_utterance(path, file, "")
        elif not flat:
            raise AsrKdError(f"{path}: has a table of utterances but no posteriors: none of /{', /'.join(FLAT_NAMES)}")
        elif "pdf" in file or "tail" in file:
            raise AsrKdError(f"{path}: holds only the largest posteriors of each frame; all are needed")
        else:
            yield from _read_flat(path, file, flat[0])


def _read_flat(path: str, file: h5py.File, name: str) -> Iterator[tuple[str, np.ndarray]]:
    values, utt_ids, offsets = file[name], file["utt/id"].asstr()[:], file["utt/offset"][:].astype(np.int64)
    fits = len(offsets) == len(utt_ids) + 1 and offsets[0] == 0 and values.ndim > 0 and offsets[-1] == len(values)
    if not fits or (np.diff(offsets) < 0).any():
        raise AsrKdError(f"{path}: /utt/offset does not divide the rows of /{name}")
    _require_matrix(path, values)
    for utt_id, start, stop in zip(utt_ids, offsets[:-1], offsets[1:], strict=True):
        yield str(utt_id), values[start:stop]


def _read_by_utterance(path: str, group: h5py.Group, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _read_by_utterance(path, item, f"{prefix}{name}/")
        else:
            _require_matrix(path, item)
            yield f"{prefix}{name}", item[:]


def _require_matrix(path: str, values: h5py.Dataset) -> None:
    shape = values.shape or ()
    if len(shape) != 2 or not shape[1] or values.dtype.kind != "f":
        what = "x".join(map(str, shape)) or "a single value"
        raise AsrKdError(
            f"{path}: {values.name} is no matrix (num_frames, num_pdfs) of floats, but {what} of type {values.dtype}"
        )
