"""The frame shared by all HDF5 files of the project: a format name, a version, and a check of both."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_path
from asr_kd.store.hdf5_guard import require_readable, written_here
from asr_kd.store.places import has_h5_signature

# The newest that is read. Files are written as version 1, which every asr_kd reads, but where an older one would take
# their values for others.
FORMAT_VERSION = 2
# For the tables that HDF5 keeps of its own, beside the data.
RESERVED_BYTES = 1 << 18


@contextlib.contextmanager
def create_h5(path: str | Path, format_name: str, version: int = 1) -> Iterator[h5py.File]:
    """Open a new HDF5 file for writing; it appears at `path` complete and sealed, or not at all.

    Raises AsrKdError where the disk is full, the folder cannot be written, or a file of another kind is there.
    """
    require_same_kind(Path(path), format_name)
    with atomic_path(path, is_h5=True) as temporary, _system_errors():
        file = h5py.File(temporary, "w")
        try:
            file.attrs["format"] = format_name
            file.attrs["version"] = version
            reserve_space(file)
            yield file
            seal(file)
            reserve_space(file)
            file.flush()
            num_bytes = file.id.get_filesize()
        except BaseException:
            _abandon(file)
            raise
        file.close()
        os.truncate(temporary, num_bytes)  # give back what was reserved and not needed
    written_here(Path(path))


def require_same_kind(path: Path, format_name: str) -> None:
    """Raise AsrKdError where `path` is there and neither of this format nor a damaged HDF5 file.

    create_h5 asks this itself; work of hours that is written at its end asks before it begins.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    is_h5, found = has_h5_signature(path), None
    if is_h5:
        with contextlib.suppress(AsrKdError):
            found = h5_format(path)
    if not is_h5 or found not in (None, format_name):
        raise AsrKdError(f"{path}: exists and is {found or 'no HDF5 file'}, not {format_name}; name another file")


SEAL = "tables_digest"
# Data sets that are large, and have digests of their own in every format.
VALUES = {"feats", "cmvn/stats", "pdf", "phone", "tid", "prob", "tail"}


def seal(file: h5py.File) -> None:
    """Store a digest of all attributes, and of all data sets but VALUES."""
    file.attrs[SEAL] = _tables_digest(file)


def require_sealed(file: h5py.File) -> None:
    """Raise AsrKdError where attributes or tables were changed since `seal`; files of before 0.4 have none.

    For the end of all checks, since it cannot say what is wrong.
    """
    if SEAL in file.attrs and file.attrs[SEAL] != _tables_digest(file):
        raise AsrKdError(f"{file.filename}: its tables are not those of its {SEAL}; remove it and make it again")


def _tables_digest(file: h5py.File) -> str:
    digest = hashlib.sha256()

    def add(name: str, member: h5py.Group | h5py.Dataset) -> None:
        attrs = member.attrs
        for key in sorted(attrs):
            if key != SEAL:
                value = np.asarray(attrs[key]).tolist()
                digest.update(f"{name} {key} {json.dumps(value, default=str)}\n".encode())
        if isinstance(member, h5py.Dataset):
            digest.update(f"{name} {member.dtype} {member.shape}\n".encode())
            if name not in VALUES:
                values = member[()]
                texts = values.dtype.hasobject
                digest.update(json.dumps(values.tolist(), default=repr).encode() if texts else values.tobytes())

    add("/", file)
    file.visititems(add)
    return digest.hexdigest()


def reserve_space(file: h5py.File, num_bytes: int = 0, *, whole: bool = True) -> None:
    """Take the disk space for what HDF5 still holds in memory, and for `num_bytes` that are written next.

    So a full disk is met here, as an OSError: when HDF5 meets it while it empties its caches, it can neither go on nor
    close the file, and crashes the process in the end. whole: of all that the file has, in place of what is beyond its
    end: where a file system cannot reserve, the C library touches every block that it is asked for.
    """
    if hasattr(os, "posix_fallocate"):
        descriptor = file.id.get_vfd_handle()
        begin = 0 if whole else os.fstat(descriptor).st_size
        wanted = file.id.get_filesize() + num_bytes + RESERVED_BYTES
        if begin < wanted:
            os.posix_fallocate(descriptor, begin, wanted - begin)


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Turn HDF5's long reports of what the system refused into the system's own words."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if found := re.search(r"errno = (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


def _abandon(file: h5py.File) -> None:
    """Close a file that is not wanted, though its disk may be full: it is exchanged for one in memory first."""
    descriptor = file.id.get_vfd_handle()
    if hasattr(os, "memfd_create"):
        sink = os.memfd_create("abandoned")
        os.dup2(sink, descriptor)
        os.close(sink)
    with contextlib.suppress(RuntimeError, OSError):
        file.close()


def extend(dataset: h5py.Dataset, rows: np.ndarray) -> None:
    """Append `rows` to a data set that can grow, once there is space for them."""
    reserve_space(dataset.file, rows.nbytes + dataset.chunks[0] * rows[:1].nbytes, whole=False)
    start = dataset.shape[0]
    dataset.resize(start + len(rows), axis=0)
    dataset[start:] = rows


# What a damaged or foreign file makes h5py raise.
H5_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
# What is not the file's fault.
_OF_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ENOMEM}
# gzip packs no tighter; other filters are not used for what is stored here.
MAX_PACKING = 1100


def open_any_h5(path: str | Path, what: str = "an HDF5 file", *, virtual: str | None = None) -> h5py.File:
    """Open an HDF5 file of whatever form for reading, and make sure that it leads nowhere but to itself.

    A file from a stranger may point at any file of this machine (external links, raw external storage, virtual data
    sets) or declare more than it holds; both are refused. virtual: the one data set that may be virtual, whose
    sources are for the caller to check. what: for the message if there is no file.

    Raises AsrKdError for a missing, damaged or foreign file.
    """
    path = Path(path)
    _require_h5(path, f" ({what} was expected)")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise AsrKdError(f"{path}: not a readable HDF5 file ({error})") from error
    try:
        with readable(path):
            _check_members(file, path.stat().st_size, virtual)
    except BaseException:
        file.close()
        raise
    return file


def _require_h5(path: Path, expected: str = "") -> None:
    """Raise AsrKdError, with what was `expected`, unless there is a file that may be read and begins as HDF5 does."""
    if not path.is_file():
        raise AsrKdError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}{expected}")
    require_readable(path)
    if not h5py.is_hdf5(path):
        raise AsrKdError(f"{path}: {'is not an HDF5 file' if path.stat().st_size else 'is empty'}{expected}")


def h5_format(path: str | Path) -> str | None:
    """The format that an HDF5 file says it has, None if it says none; raises AsrKdError if it is not HDF5."""
    _require_h5(Path(path))
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("format")
    except H5_ERRORS as error:
        raise AsrKdError(f"{path}: not a readable HDF5 file ({error})") from error
    return found if isinstance(found, str) else None


def open_h5(path: str | Path, format_name: str, *, virtual: str | None = None) -> h5py.File:
    """Open an HDF5 file of the project for reading, with the checks of open_any_h5.

    Raises AsrKdError for a missing, damaged or foreign file, another format, or a newer version.
    """
    file = open_any_h5(path, f"an HDF5 file of format {format_name}", virtual=virtual)
    try:
        with readable(path):
            found, version = file.attrs.get("format"), file.attrs.get("version")
            if found != format_name or version is None:
                raise AsrKdError(f"{path}: is of format {found!r}, but {format_name!r} was expected")
            if int(version) > FORMAT_VERSION:
                raise AsrKdError(
                    f"{path}: format version {version} is newer than this program reads ({FORMAT_VERSION})"
                )
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn whatever h5py raises over a damaged or incomplete file into an AsrKdError that names it."""
    try:
        yield
    except H5_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _OF_SYSTEM:
            raise
        raise AsrKdError(f"{path}: is damaged or incomplete ({error})") from error


def _check_members(group: h5py.Group, file_size: int, virtual: str | None, depth: int = 0) -> None:
    """Refuse links that leave the file, values that lie outside of it, and sizes that it cannot hold."""
    where = group.file.filename
    if depth > 2:
        raise AsrKdError(f"{where}: its groups are nested deeper than those of this project's files")
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise AsrKdError(f"{where}: {group.name.rstrip('/')}/{name} is a link to elsewhere, which is not followed")
        member = group[name]
        if isinstance(member, h5py.Group):
            _check_members(member, file_size, virtual, depth + 1)
            continue
        if not isinstance(member, h5py.Dataset):
            continue
        if member.external or (member.is_virtual and member.name != virtual):
            raise AsrKdError(f"{where}: {member.name} is stored in another file, which is not read")
        packing = MAX_PACKING if member.id.get_create_plist().get_nfilters() else 1
        if not member.is_virtual and member.nbytes > packing * file_size:
            raise AsrKdError(f"{where}: {member.name} declares {member.nbytes} bytes, more than the file can hold")


@dataclass(frozen=True)
class Layout:
    """Which frame of the flat arrays belongs to which utterance.

    utt_ids: (num_utts,); offsets: (num_utts + 1,) int64, utterance u owns rows offsets[u]:offsets[u + 1].
    Alignments, features and soft targets fit together if and only if their layout digests are equal.
    """

    utt_ids: tuple[str, ...]
    offsets: np.ndarray
    frame_shift_ms: float
    snip_edges: bool

    @property
    def num_utts(self) -> int:
        return len(self.utt_ids)

    @property
    def num_frames(self) -> int:
        return int(self.offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each utterance, (num_utts,) int64."""
        return np.diff(self.offsets)

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each utterance id."""
        return {utt_id: row for row, utt_id in enumerate(self.utt_ids)}

    def rows(self, utt_id: str) -> slice:
        """The frames of one utterance; raises AsrKdError if it is unknown."""
        if utt_id not in self.index:
            raise AsrKdError(f"utterance {utt_id!r} is not in this file")
        u = self.index[utt_id]
        return slice(int(self.offsets[u]), int(self.offsets[u + 1]))

    def part(self, utts: slice) -> "Layout":
        """The layout of some utterances that follow each other."""
        offsets = self.offsets[utts.start : utts.stop + 1]
        return Layout(self.utt_ids[utts], offsets - offsets[0], self.frame_shift_ms, self.snip_edges)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over utterance ids, frame counts, frame shift and snip_edges, in order."""
        digest = hashlib.sha256()
        digest.update(f"{self.frame_shift_ms:g} {int(self.snip_edges)}\n".encode())
        for utt_id, length in zip(self.utt_ids, self.lengths, strict=True):
            digest.update(f"{utt_id} {length}\n".encode())
        return digest.hexdigest()

    @classmethod
    def from_lengths(
        cls, utt_ids: Sequence[str], lengths: Sequence[int], frame_shift_ms: float = 10.0, snip_edges: bool = True
    ) -> "Layout":
        """Build a layout from frame counts; raises AsrKdError for a duplicate id."""
        if len(set(utt_ids)) != len(utt_ids):
            duplicate = next(u for i, u in enumerate(utt_ids) if u in utt_ids[:i])
            raise AsrKdError(f"utterance id {duplicate!r} occurs twice")
        offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)
        return cls(tuple(utt_ids), offsets, frame_shift_ms, snip_edges)


def blocks_of_utterances(offsets: np.ndarray, block_frames: int) -> Iterator[slice]:
    """Runs of whole utterances of at most `block_frames` frames, or of one utterance that is longer.

    offsets: (num_utts + 1,), as of a Layout.
    """
    begin, num_utts = 0, len(offsets) - 1
    while begin < num_utts:
        end = int(np.searchsorted(offsets, offsets[begin] + block_frames, side="right")) - 1
        end = min(max(end, begin + 1), num_utts)
        yield slice(begin, end)
        begin = end


def runs_of(utts: np.ndarray) -> list[slice]:
    """Numbers of utterances as the runs of neighbours that they are made of, in their order."""
    runs = np.split(utts, np.flatnonzero(np.diff(utts) != 1) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]


def write_layout(file: h5py.File, layout: Layout) -> None:
    """Store /utt/id and /utt/offset and the layout attributes."""
    file.create_dataset("utt/id", data=list(layout.utt_ids), dtype=h5py.string_dtype())
    file["utt/offset"] = layout.offsets
    file.attrs["frame_shift_ms"] = layout.frame_shift_ms
    file.attrs["snip_edges"] = layout.snip_edges
    file.attrs["layout_digest"] = layout.digest


def read_layout(file: h5py.File) -> Layout:
    """Read what write_layout stored; raises AsrKdError if it is missing or its digest does not match."""
    try:
        layout = Layout(
            tuple(file["utt/id"].asstr()[:]),
            file["utt/offset"][:].astype(np.int64),
            float(file.attrs["frame_shift_ms"]),
            bool(file.attrs["snip_edges"]),
        )
        stored = file.attrs["layout_digest"]
    except H5_ERRORS as error:
        raise AsrKdError(f"{file.filename}: lacks its table of utterances ({error})") from error
    offsets = layout.offsets
    if offsets.ndim != 1 or len(offsets) != len(layout.utt_ids) + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise AsrKdError(f"{file.filename}: its table of utterances is inconsistent")
    if layout.digest != stored:
        raise AsrKdError(f"{file.filename}: its utterances do not match its layout_digest; it was changed by hand")
    return layout
