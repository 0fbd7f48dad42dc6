"""Rows of a data set, read where they lie in their files.

HDF5 does one thing at a time in a process, and takes a fifth of a millisecond for whatever it is asked, in which a GPU
trains on hundreds of frames. What this project stores is not compressed, so that HDF5 has to say but once where the
rows are; from then on the system reads them, in as many threads as ask.
"""

import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.hdf5_guard import identity_of

# In one call: macOS takes less than 2 GiB.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class _Shard:
    """A file that is opened whenever it is read, since there may be more of them than a process may have open."""

    path: Path
    identity: tuple[int, ...]


@dataclass(frozen=True)
class _Piece:
    """Rows `begin` to `end` of a data set lie in a file, in its own where `shard` is None, from byte `offset` on."""

    begin: int
    end: int
    shard: _Shard | None
    offset: int


class StoredRows:
    """The rows of a data set (num_rows, ...), those of a virtual one where they come from.

    dtype, shape: the data set's. Threads may read at the same time, and the data set's file may have been closed.
    """

    def __init__(self, dataset: h5py.Dataset):
        """Raises AsrKdError where rows are compressed, or were never stored."""
        self.dtype, self.shape = dataset.dtype, dataset.shape
        self._name = f"{dataset.file.filename}: {dataset.name}"
        self._row_bytes = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))
        self._pieces: list[_Piece] = []
        for piece in sorted(_pieces(dataset), key=lambda each: each.begin):
            if piece.begin != (self._pieces[-1].end if self._pieces else 0):
                break
            self._add(piece)
        if (self._pieces[-1].end if self._pieces else 0) != len(dataset):
            raise AsrKdError(f"{self._name} was not stored as a whole, or not as this project does it")
        self._ends = [piece.end for piece in self._pieces]
        self._descriptor = os.dup(dataset.file.id.get_vfd_handle())
        weakref.finalize(self, os.close, self._descriptor)

    def _add(self, piece: _Piece) -> None:
        """One piece more, or a longer last one, where the file goes on with it."""
        if self._pieces:
            last = self._pieces[-1]
            if piece.shard == last.shard and piece.offset == last.offset + (last.end - last.begin) * self._row_bytes:
                piece = _Piece(self._pieces.pop().begin, piece.end, last.shard, last.offset)
        self._pieces.append(piece)

    def read(self, rows: slice) -> np.ndarray:
        """Rows begin to end (n, ...), a new array; raises AsrKdError where a file has changed."""
        begin, end = max(rows.start, 0), min(rows.stop, self.shape[0])
        out = np.empty((max(end - begin, 0), *self.shape[1:]), dtype=self.dtype)
        into = memoryview(out.reshape(-1).view(np.uint8))
        for piece in self._pieces[bisect_right(self._ends, begin) :]:
            if piece.begin >= end:
                break
            here = slice(max(piece.begin, begin), min(piece.end, end))
            offset = piece.offset + (here.start - piece.begin) * self._row_bytes
            part = into[(here.start - begin) * self._row_bytes : (here.stop - begin) * self._row_bytes]
            if piece.shard is None:
                self._fill(part, self._descriptor, offset)
            else:
                with _opened(piece.shard) as shard:
                    self._fill(part, shard.fileno(), offset)
        return out

    def _fill(self, part: memoryview, descriptor: int, offset: int) -> None:
        while part:
            count = os.preadv(descriptor, [part[:_MOST_BYTES]], offset)
            if not count:
                raise AsrKdError(f"{self._name} was cut off while it was read")
            part, offset = part[count:], offset + count


def _opened(shard: _Shard) -> BinaryIO:
    try:
        file = shard.path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise AsrKdError(f"{shard.path}: was removed while it was in use") from error
    if identity_of(file.fileno()) != shard.identity:
        file.close()
        raise AsrKdError(f"{shard.path}: was replaced while it was in use")
    return file


def _pieces(dataset: h5py.Dataset, first: int = 0, shard: _Shard | None = None) -> Iterator[_Piece]:
    """Where rows lie, in whatever order; they are counted from `first` on."""
    name, num_rows = f"{dataset.file.filename}: {dataset.name}", len(dataset)
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            yield from _pieces_of_shard(Path(dataset.file.filename).parent / source.file_name, source, dataset)
    elif dataset.id.get_create_plist().get_nfilters():
        raise AsrKdError(f"{name} is compressed, as this project does not store it; h5repack -f NONE OLD NEW undoes it")
    elif dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is not None:
            yield _Piece(first, first + num_rows, shard, offset)
    elif dataset.chunks[1:] != dataset.shape[1:]:
        raise AsrKdError(f"{name} has its rows in parts, as this project does not store them; make it again")
    else:
        chunks: list[tuple[int, int]] = []
        dataset.id.chunk_iter(lambda chunk: chunks.append((chunk.chunk_offset[0], chunk.byte_offset)))
        for begin, offset in chunks:
            yield _Piece(first + begin, first + min(begin + dataset.chunks[0], num_rows), shard, offset)


def _pieces_of_shard(path: Path, source: Any, joined: h5py.Dataset) -> Iterator[_Piece]:
    """source: h5py's VDSmap."""
    (first, *_), (last, *_) = source.vspace.get_select_bounds()
    identity = identity_of(path)
    with h5py.File(path, "r") as file:
        shard = file[source.dset_name]
        if (shard.dtype, shard.shape) != (joined.dtype, (last + 1 - first, *joined.shape[1:])):
            raise AsrKdError(f"{path}: its rows are not those that {joined.file.filename} was joined from")
        yield from _pieces(shard, first, _Shard(path, identity))
