"""targets.h5: soft targets keyed by utterance and frame, with fingerprints of everything they came from."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.hdf5 import Layout, create_h5, extend, open_h5, read_layout, readable, require_sealed, write_layout
from asr_kd.store.log_codes import probabilities
from asr_kd.store.stored_rows import StoredRows

FORMAT = "asr_kd.targets"
PART_FORMAT = "asr_kd.targets_part"
PART_CHUNK = 1024
PART_BLOCK = 8 * PART_CHUNK
SEQUENCE_KEYS = ("sequence_weight", "sequence_acwt", "sequence_ali")
# What write_targets says of values and frames; other attributes tell where they came from.
_OF_VALUES = {"format", "version", "frame_shift_ms", "snip_edges", "layout_digest", "tables_digest", "values_digest"}
_OF_VALUES |= {"num_pdfs", "top_k"}

VALUES = ("prob", "pdf", "tail")
# prob as it is stored, pdf and tail; the last two None where dense.
Stored = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
# Rows, and the arrays of these rows.
Blocks = Iterable[tuple[slice, dict[str, np.ndarray]]]


def write_targets(
    path: str | Path,
    layout: Layout,
    blocks: Blocks,
    *,
    num_pdfs: int,
    top_k: int | None,
    attributes: dict[str, Any],
    bits: int = 16,
) -> None:
    """Stream soft targets to disk.

    blocks: (rows, arrays) in frame order, arrays `prob` (n, num_pdfs) if dense, else `prob` (n, k), `pdf` (n, k) and
    `tail` (n,). Stored: /prob and /tail float16, /pdf uint16 (int32 above 65536 states). bits: 8 where `prob` are codes
    of asr_kd/store/log_codes.py, which are stored as such. attributes: temperature, combination, members' digests,
    content_digest of the features that the teachers saw.
    Raises AsrKdError if the blocks do not cover every frame once.
    """
    num_frames = layout.num_frames
    with create_h5(path, FORMAT, _version(bits)) as file:
        write_layout(file, layout)
        file.attrs["num_pdfs"] = num_pdfs
        file.attrs["top_k"] = top_k or 0
        for key, value in attributes.items():
            file.attrs[key] = value
        columns = _columns(num_pdfs, top_k, bits).items()
        stored = {name: file.create_dataset(name, (num_frames, *width), dtype) for name, (width, dtype) in columns}
        done, digests = 0, {name: hashlib.sha256() for name in VALUES}
        for rows, arrays in blocks:
            if rows.start != done or rows.stop > num_frames:
                raise AsrKdError(f"{path}: soft targets came out of order at frame {rows.start}")
            for name, dataset in stored.items():
                values = np.ascontiguousarray(arrays[name], dtype=dataset.dtype)
                digests[name].update(values.tobytes())
                dataset[rows] = values
            done = rows.stop
        if done != num_frames:
            raise AsrKdError(f"{path}: soft targets for {done} of {num_frames} frames")
        file.attrs["values_digest"] = " ".join(digest.hexdigest() for digest in digests.values())


def _version(bits: int) -> int:
    """Of the file: older readers would take codes for probabilities."""
    return 2 if bits == 8 else 1


def _columns(num_pdfs: int, top_k: int | None, bits: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """What is stored of a frame: shape and type by name."""
    prob = np.uint8 if bits == 8 else np.float16
    if not top_k:
        return {"prob": ((num_pdfs,), prob)}
    index = np.uint16 if num_pdfs <= 1 << 16 else np.int32
    return {"prob": ((top_k,), prob), "pdf": ((top_k,), index), "tail": ((), np.float16)}


def write_part(path: str | Path, blocks: Blocks, *, num_pdfs: int, top_k: int | None, bits: int = 16) -> None:
    """Stream a part of the frames of a targets.h5 to disk, for read_parts: blocks as for write_targets, of any rows."""
    with create_h5(path, PART_FORMAT, _version(bits)) as file:
        stored = {}
        for name, (width, dtype) in _columns(num_pdfs, top_k, bits).items():
            sizes = {"maxshape": (None, *width), "chunks": (PART_CHUNK, *width)}
            stored[name] = file.create_dataset(name, (0, *width), dtype, **sizes)
        for _, arrays in blocks:
            for name, dataset in stored.items():
                extend(dataset, np.ascontiguousarray(arrays[name], dtype=dataset.dtype))


def read_parts(paths: Iterable[str | Path]) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """The blocks of parts that follow each other, for write_targets; raises AsrKdError for one that is damaged."""
    begin = 0
    for path in paths:
        with open_h5(path, PART_FORMAT) as file, readable(path):
            for first in range(0, len(file["prob"]), PART_BLOCK):
                arrays = {name: file[name][first : first + PART_BLOCK] for name in file}
                rows = slice(begin, begin + len(arrays["prob"]))
                yield rows, arrays
                begin = rows.stop


def _check_shapes(path: Path, layout: Layout, num_pdfs: int, prob: Any, pdf: Any, tail: Any) -> None:
    """prob, pdf, tail: arrays or data sets, pdf and tail None where dense."""
    rows = layout.num_frames
    if any(len(array) != rows for array in (prob, pdf, tail) if array is not None) or (pdf is None) != (tail is None):
        raise AsrKdError(f"{path}: its arrays do not fit its {rows} frames")
    if prob.dtype != np.float16 and (prob.dtype != np.uint8 or pdf is None):
        raise AsrKdError(f"{path}: holds soft targets as {prob.dtype}, which are float16 or codes of 8 bits")
    if pdf is None and prob.shape[1] != num_pdfs:
        raise AsrKdError(f"{path}: {prob.shape[1]} columns for {num_pdfs} states")
    if pdf is not None and pdf.shape != prob.shape:
        raise AsrKdError(f"{path}: has states of shape {pdf.shape} for probabilities of shape {prob.shape}")


def _check_values(path: Path, num_pdfs: int, prob: np.ndarray, pdf: np.ndarray | None, tail: np.ndarray | None) -> None:
    if pdf is not None and (pdf.max(initial=0) >= num_pdfs or pdf.min(initial=0) < 0):
        raise AsrKdError(f"{path}: names a state beyond its {num_pdfs}")
    for array in (prob, tail):
        if array is not None and not (np.isfinite(array) & (array >= 0)).all():
            raise AsrKdError(f"{path}: holds soft targets that are no probabilities")
    if pdf is None and (abs(prob.sum(axis=1, dtype=np.float32) - 1) > 0.01).any():
        raise AsrKdError(f"{path}: holds soft targets of all states that do not sum to 1 in every frame")


def _checked(file: h5py.File, read: Callable[[slice], Stored], blocks: Iterable[slice]) -> Iterator[Stored]:
    """What `read` finds in blocks of rows, which are all of a targets.h5 in order.

    Raises AsrKdError for values that cannot be targets, and after the last block if values or tables are not those of
    their digests; files of before 0.2 have none.
    """
    path, num_pdfs = Path(file.filename), int(file.attrs["num_pdfs"])
    digests = [hashlib.sha256() for _ in range(3)]
    for rows in blocks:
        arrays = read(rows)
        _check_values(path, num_pdfs, *arrays)
        for digest, array in zip(digests, arrays, strict=True):
            digest.update(b"" if array is None else np.ascontiguousarray(array))
        yield arrays
    found = " ".join(digest.hexdigest() for digest in digests)
    if file.attrs.get("values_digest", found) != found:
        raise AsrKdError(f"{path}: its values are not those of its values_digest; remove it and make it again")
    require_sealed(file)


class UttTargets(NamedTuple):
    """Soft targets of one utterance, as TargetsReader has them; pdf and tail are None where dense."""

    utt_id: str
    prob: np.ndarray
    pdf: np.ndarray | None
    tail: np.ndarray | None


def stream_targets(path: str | Path) -> Iterator[UttTargets]:
    """The targets of one utterance after another, at the memory of one.

    Raises AsrKdError as TargetsReader does, at the last utterance for values that are not those of their digest.
    """
    with open_h5(path, FORMAT) as file, readable(path):
        layout, stored = _Targets(Path(path), file).layout, [file.get(name) for name in VALUES]

        def read(rows: slice) -> Stored:
            return tuple(None if each is None else each[rows] for each in stored)

        utts = map(layout.rows, layout.utt_ids)
        for utt_id, (prob, pdf, tail) in zip(layout.utt_ids, _checked(file, read, utts), strict=True):
            yield UttTargets(utt_id, probabilities(prob, tail), pdf, tail)


def stored_digest(path: str | Path) -> str:
    """What tells a targets.h5 from every other, at no cost: digests that were stored with its values.

    Raises AsrKdError for a file that is no targets.h5, or of before 0.2, when there were none.
    """
    with open_h5(path, FORMAT) as file, readable(path):
        if "values_digest" not in file.attrs:
            raise AsrKdError(f"{path}: has no values_digest; make it again (asr-kd soft-targets)")
        return f"{file.attrs['layout_digest']} {file.attrs['values_digest']}"


class _Targets:
    """What a targets.h5 says of its values."""

    def __init__(self, path: Path, file: h5py.File):
        self.path = path
        self.layout = read_layout(file)
        self.num_pdfs = int(file.attrs["num_pdfs"])
        self.temperature = float(file.attrs["temperature"])
        self.combination = str(file.attrs["mean"])
        self.content_digest = str(file.attrs["content_digest"])
        self.model_digest = str(file.attrs["model_digest"])
        self.members = list(file.attrs["members"])
        self.attributes = {key: file.attrs[key] for key in file.attrs.keys() - _OF_VALUES}
        # What smooth-targets did to them.
        self.sequence = {key: self.attributes[key] for key in SEQUENCE_KEYS if key in self.attributes}
        if not 0 < self.temperature < np.inf:
            raise AsrKdError(f"{path}: its temperature is {self.temperature}")
        _check_shapes(path, self.layout, self.num_pdfs, *(file.get(name) for name in VALUES))

    def require_fit(
        self, layout: Layout, content_digest: str, num_pdfs: int, model_digest: str, *, allow_views: bool = False
    ) -> None:
        """Raise AsrKdError unless these targets were made for exactly these frames and states.

        allow_views: accept other values of the same layout (an augmented view of the same frames).
        """
        if self.layout.digest != layout.digest:
            raise AsrKdError(f"{self.path}: made for other utterances or frame counts than the features at hand")
        if self.content_digest != content_digest and not allow_views:
            raise AsrKdError(
                f"{self.path}: the teachers saw other feature values than these; make the targets again, "
                "or allow views of the same layout (--allow-views)"
            )
        if self.num_pdfs != num_pdfs:
            raise AsrKdError(f"{self.path}: targets over {self.num_pdfs} states, but the alignment has {num_pdfs}")
        if self.model_digest != model_digest:
            raise AsrKdError(f"{self.path}: targets over states of another HMM than the alignment's")


class TargetsReader(_Targets):
    """A targets.h5, read whole.

    prob (num_frames, k or num_pdfs) float16; pdf (num_frames, k) uint16 or int32, tail (num_frames,) float16, or None.
    stored_prob: as it is stored, of 8 bits perhaps.
    """

    def __init__(self, path: str | Path):
        """Raises AsrKdError if the file is missing, damaged, foreign, or its arrays do not fit each other."""
        with open_h5(path, FORMAT) as file, readable(path):
            super().__init__(Path(path), file)
            whole = tuple(file[name][:] if name in file else None for name in VALUES)
            [(self.stored_prob, self.pdf, self.tail)] = _checked(file, lambda _: whole, [slice(None)])

    @cached_property
    def prob(self) -> np.ndarray:
        return probabilities(self.stored_prob, self.tail)

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Mean soft target of every state over frames `rows` (n,) int64, (num_pdfs,) float64.

        What top-k targets left in their tails is no state's, so that means are too small by it.
        """
        total = np.zeros(self.num_pdfs)
        for block in np.array_split(rows, -(-len(rows) // 65536)):
            tail = None if self.tail is None else self.tail[block]
            prob = probabilities(self.stored_prob[block], tail).astype(np.float64)
            if self.pdf is None:
                total += prob.sum(axis=0)
            else:
                total += np.bincount(self.pdf[block].ravel(), weights=prob.ravel(), minlength=self.num_pdfs)
        return total / len(rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the values."""
        digest = hashlib.sha256()
        for array in (self.stored_prob, self.pdf, self.tail):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class TargetsRows(_Targets):
    """A targets.h5 of which some frames are read at a time.

    stored_prob, pdf, tail: StoredRows of the shapes and types of TargetsReader's, pdf and tail None where dense;
    has_tail: whether a frame has mass in its tail; digest: of the values, as it stands in the file. All values are read
    once to begin with, and checked as TargetsReader checks them.
    """

    def __init__(self, path: str | Path, block_frames: int = 1 << 17):
        """Raises AsrKdError as TargetsReader does, and for files of before 0.2, which have no digest."""
        self._file = open_h5(path, FORMAT)
        with readable(path):
            super().__init__(Path(path), self._file)
            self.stored_prob, self.pdf, self.tail = (
                StoredRows(self._file[name]) if name in self._file else None for name in VALUES
            )
            self.digest, self.has_tail = stored_digest(path), False
            begins = range(0, self.layout.num_frames, block_frames)
            blocks = (slice(begin, begin + block_frames) for begin in begins)
            for _, _, tail in _checked(self._file, self.read, blocks):
                self.has_tail |= tail is not None and bool(tail.any())

    def read(self, rows: slice) -> Stored:
        """stored_prob, pdf and tail of frames `rows`; raises AsrKdError if they cannot be read."""
        with readable(self.path):
            datasets = (self.stored_prob, self.pdf, self.tail)
            return tuple(None if stored is None else stored.read(rows) for stored in datasets)
