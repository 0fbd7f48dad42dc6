"""feats.h5: the frames of all utterances in one flat array, with their CMVN statistics and digests beside them.

    /feats             (num_frames, feat_dim) float32 or float16, rows of one utterance together, not compressed
    /utt/id            (num_utts,) strings             /utt/spk     (num_utts,) strings
    /utt/offset        (num_utts + 1,) int64           /utt/digest  (num_utts, 32) uint8, SHA-256 of its rows
    /cmvn/stats        (num_utts, 2, feat_dim + 1) float64, Kaldi's statistics of each utterance
    /skipped/id        ids of utterances that could not be used, and why in /skipped/reason

Attributes: format, version, kind, options (JSON), sample_rate, frame_length_ms, frame_shift_ms, snip_edges,
num_mel_bins, dtype, layout_digest, content_digest, inputs_digest (empty if unknown).

A file joined from shards has the same contents and digests; its /feats is a virtual data set over the shards, which
it names relative to its own folder, together with their content digests in /shards.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.features import cmvn
from asr_kd.features.options import FrontEndOptions
from asr_kd.features.splice import splice
from asr_kd.store.hdf5 import H5_ERRORS, Layout, create_h5, open_h5, read_layout, readable, write_layout

FORMAT_NAME = "asr_kd.feats"
CHUNK_ROWS = 1024
DTYPES = ("float32", "float16")
# Attributes that shards of one file must share, and that the joined file takes from them.
COMMON_ATTRIBUTES = (
    "kind",
    "options",
    "sample_rate",
    "frame_length_ms",
    "frame_shift_ms",
    "snip_edges",
    "num_mel_bins",
    "dtype",
)


class _Tables(NamedTuple):
    """Everything in the file but /feats and the attributes of the front end."""

    layout: Layout
    spk_ids: list[str]
    utt_digests: np.ndarray  # (num_utts, 32) uint8
    stats: np.ndarray  # (num_utts, 2, feat_dim + 1) float64
    skipped: list[tuple[str, str]]


def _content_digest(file: h5py.File, tables: _Tables) -> str:
    """SHA-256 over kind, options, dtype and each utterance's id, speaker, length and digest of its values.

    It is built from the digests of the utterances, so that a file joined from shards has the digest of one that was
    written in one go, without reading a frame again.
    """
    digest = hashlib.sha256()
    for name in ("kind", "options", "sample_rate", "dtype"):
        digest.update(f"{name} {file.attrs[name]}\n".encode())
    layout = tables.layout
    for row in zip(layout.utt_ids, tables.spk_ids, layout.lengths, tables.utt_digests, strict=True):
        digest.update(f"{row[0]} {row[1]} {row[2]} {row[3].tobytes().hex()}\n".encode())
    return digest.hexdigest()


def _write_strings(file: h5py.File, name: str, values: Sequence[str]) -> None:
    file.create_dataset(name, shape=(len(values),), data=list(values), dtype=h5py.string_dtype())


def _write_tables(file: h5py.File, tables: _Tables, inputs_digest: str) -> None:
    write_layout(file, tables.layout)
    _write_strings(file, "utt/spk", tables.spk_ids)
    file["utt/digest"] = tables.utt_digests
    file["cmvn/stats"] = tables.stats
    _write_strings(file, "skipped/id", [utt_id for utt_id, _ in tables.skipped])
    _write_strings(file, "skipped/reason", [reason for _, reason in tables.skipped])
    file.attrs["content_digest"] = _content_digest(file, tables)
    file.attrs["inputs_digest"] = inputs_digest


class FeatsWriter:
    """Write feats.h5 utterance by utterance; the file appears complete when the `with` block ends, or not at all.

    kind: "fbank", "mfcc" or what else the options stand for; options: as the features were computed;
    sample_rate: Hz; dtype: "float32", or "float16" for half the size; inputs_digest: of what the features were
    made from, for whoever asks whether they are up to date; feat_dim: columns, if not those of the options (deltas).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: str,
        options: FrontEndOptions,
        sample_rate: int,
        dtype: str = "float32",
        inputs_digest: str = "",
        feat_dim: int | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise AsrKdError(f"features are stored as {' or '.join(DTYPES)}, not as {dtype!r}")
        if sample_rate != options.sample_frequency:
            raise AsrKdError(f"the sample rate is {sample_rate}, but the options say {options.sample_frequency:g} Hz")
        self.path = Path(path)
        self.feat_dim = options.feat_dim if feat_dim is None else feat_dim
        self._options = options
        self._inputs_digest = inputs_digest
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._attributes = {
            "kind": kind,
            "options": options.to_json(),
            "sample_rate": int(sample_rate),
            "frame_length_ms": options.frame_length,
            "frame_shift_ms": options.frame_shift,
            "snip_edges": options.snip_edges,
            "num_mel_bins": options.num_mel_bins,
            "dtype": dtype,
        }
        self._utts: dict[str, tuple[str, int, bytes, np.ndarray]] = {}
        self.skipped: list[tuple[str, str]] = []
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    def __enter__(self) -> "FeatsWriter":
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(create_h5(self.path, FORMAT_NAME))
        self._file.attrs.update(self._attributes)
        self._feats = self._file.create_dataset(
            "feats",
            shape=(0, self.feat_dim),
            maxshape=(None, self.feat_dim),
            chunks=(CHUNK_ROWS, self.feat_dim),
            dtype=self._dtype,
        )
        return self

    def append(self, utt_id: str, spk_id: str, feats: np.ndarray) -> None:
        """Add an utterance's feats (num_frames, feat_dim).

        Raises AsrKdError for a second utterance of that id, another feat_dim, no frames, or values that are not
        finite in the stored type.
        """
        if utt_id in self._utts:
            raise AsrKdError(f"{self.path}: utterance id {utt_id!r} occurs twice")
        if feats.ndim != 2 or feats.shape[1] != self.feat_dim or len(feats) == 0:
            raise AsrKdError(f"{self.path}: {utt_id} has shape {feats.shape}, but (frames, {self.feat_dim}) is stored")
        with np.errstate(over="ignore"):  # an overflow of float16 is reported below
            stored = np.array(feats, dtype=self._dtype, order="C")
        if not np.isfinite(stored).all():
            raise AsrKdError(f"{self.path}: features of {utt_id} are not finite as {self._attributes['dtype']}")
        # Statistics are of what is stored, so that a reader can check them.
        self._utts[utt_id] = (spk_id, len(stored), hashlib.sha256(stored).digest(), cmvn.accumulate(stored))
        self._waiting.append(stored)
        self._num_waiting += len(stored)
        if self._num_waiting >= 8 * CHUNK_ROWS:
            self._flush()

    def skip(self, utt_id: str, reason: str) -> None:
        """Note in the file that an utterance is missing from it, and why."""
        self.skipped.append((utt_id, reason))

    def _flush(self) -> None:
        if self._waiting:
            start = self._feats.shape[0]
            self._feats.resize(start + self._num_waiting, axis=0)
            self._feats[start:] = np.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0

    def _finish(self) -> None:
        self._flush()
        rows = list(self._utts.values())
        layout = Layout.from_lengths(
            list(self._utts), [row[1] for row in rows], self._options.frame_shift, self._options.snip_edges
        )
        tables = _Tables(
            layout,
            spk_ids=[row[0] for row in rows],
            utt_digests=np.frombuffer(b"".join(row[2] for row in rows), dtype=np.uint8).reshape(-1, 32),
            stats=np.array([row[3] for row in rows]).reshape(-1, 2, self.feat_dim + 1),
            skipped=self.skipped,
        )
        _write_tables(self._file, tables, self._inputs_digest)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self._stack:  # whatever is raised in here discards the file
            if error is not None:
                raise error
            self._finish()


def open_feats(path: str | Path) -> h5py.File:
    """Open feats.h5 for reading; a joined one reads its own shards beside it, and nothing else.

    HDF5 fills what a missing shard should give with zeros, so that a shard that is missing or changed is refused.

    Raises AsrKdError for whatever is not a whole feats.h5.
    """
    path = Path(path).resolve()  # so that HDF5 looks for shards beside the file, not beside a link to it
    file = open_h5(path, FORMAT_NAME, virtual="/feats")
    try:
        with readable(path):
            feats = file.get("feats")
            if not isinstance(feats, h5py.Dataset) or feats.ndim != 2 or str(feats.dtype) not in DTYPES:
                raise AsrKdError(f"{path}: lacks its two-dimensional data set /feats")
            if feats.is_virtual:
                _check_shards(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _check_shards(file: h5py.File, path: Path) -> None:
    """Every shard lies in a folder `*.shards` beside the joined file, is there, and is the one that was joined."""
    try:
        shards = dict(zip(file["shards/path"].asstr()[:], file["shards/content_digest"].asstr()[:], strict=True))
    except H5_ERRORS as error:
        raise AsrKdError(f"{path}: is joined from shards, but lacks the list of them") from error
    if not {source.file_name for source in file["feats"].virtual_sources()} <= set(shards):
        raise AsrKdError(f"{path}: reads files that are not in its list of shards")
    num_rows = 0
    for name, digest in shards.items():
        relative = PurePosixPath(name)
        if (
            len(relative.parts) != 2
            or not relative.parts[0].endswith(".shards")
            or ".." in relative.parts
            or "%" in name
        ):
            raise AsrKdError(f"{path}: its shard {name!r} lies outside of its folder of shards")
        shard = path.parent / relative
        if not shard.is_file():
            raise AsrKdError(f"{path}: its shard {shard} is missing; keep the folder beside the file")
        with open_h5(shard, FORMAT_NAME) as opened:
            if opened.attrs.get("content_digest") != digest:
                raise AsrKdError(f"{path}: its shard {shard} was changed since it was joined; extract again")
            if not isinstance(opened.get("feats"), h5py.Dataset) or opened["feats"].is_virtual:
                raise AsrKdError(f"{path}: its shard {shard} holds no frames of its own")
            num_rows += len(opened["feats"])
    if num_rows != len(file["feats"]):
        raise AsrKdError(f"{path}: has {len(file['feats'])} frames, but its shards have {num_rows}; extract again")


class FeatsReader:
    """Read feats.h5: `reader[utt_id]` is (num_frames, feat_dim) float32.

    The tables are read at once, the frames when asked for. The open file is not shared with a forked or spawned
    process: there, it is opened again.

    layout: Layout; feat_dim: columns; spk_ids: speaker of each utterance; attrs: the file's attributes;
    content_digest: of values and options; skipped: [(utt_id, reason)] of what is missing.

    Raises AsrKdError for what is not a whole feats.h5.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._feats: h5py.Dataset | None = None
        self._pid = -1
        with open_feats(path) as file:
            self.attrs = dict(file.attrs)
            self.layout = read_layout(file)
            try:
                self.content_digest = str(self.attrs["content_digest"])
                self.spk_ids = list(file["utt/spk"].asstr()[:])
                self.skipped = list(zip(file["skipped/id"].asstr()[:], file["skipped/reason"].asstr()[:], strict=True))
                stats_shape = file["cmvn/stats"].shape
            except H5_ERRORS as error:
                raise AsrKdError(f"{path}: is not complete ({error})") from error
            num_rows, self.feat_dim = file["feats"].shape
        num_utts = self.layout.num_utts
        if (
            num_rows != self.layout.num_frames
            or len(self.spk_ids) != num_utts
            or stats_shape != (num_utts, 2, self.feat_dim + 1)
        ):
            raise AsrKdError(f"{path}: its frames do not match its table of utterances")

    def _opened(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open_feats(self.path), os.getpid()
            self._feats = self._file["feats"]  # kept open: its cache of chunks (and of shards) goes with it
            if self._file.attrs["content_digest"] != self.content_digest:
                raise AsrKdError(f"{self.path}: was replaced while it was in use")
        return self._file

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_feats": None, "_pid": -1}

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = self._feats = None

    def __enter__(self) -> "FeatsReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, utt_id: str) -> bool:
        return utt_id in self.layout.index

    def read_rows(self, rows: slice) -> np.ndarray:
        """Frames `rows` in the order of the layout, (n, feat_dim) float32."""
        out = np.empty((rows.stop - rows.start, self.feat_dim), dtype=np.float32)
        if len(out):
            self._opened()
            self._feats.read_direct(out, source_sel=rows)
            if self._feats.is_virtual and not np.isfinite(out[:, 0]).all():
                raise AsrKdError(f"{self.path}: a shard of it was removed while it was in use")
        return out

    def __getitem__(self, utt_id: str) -> np.ndarray:
        """Frames of one utterance, (num_frames, feat_dim) float32; raises AsrKdError if it is unknown."""
        return self.read_rows(self.layout.rows(utt_id))

    def read_all(self) -> np.ndarray:
        """All frames in the order of the layout, (num_frames, feat_dim) float32."""
        return self.read_rows(slice(0, self.layout.num_frames))

    def windows(self, utt_id: str, left: int, right: int) -> np.ndarray:
        """Each frame with its context: (num_frames, (left + 1 + right) * feat_dim) float32.

        The first and last frame are repeated at the edges, as Kaldi's splice-feats does.
        """
        return splice(self[utt_id], left, right)

    @property
    def utt_digests(self) -> np.ndarray:
        """SHA-256 of each utterance's stored values, (num_utts, 32) uint8."""
        return self._opened()["utt/digest"][:]

    @property
    def cmvn_stats(self) -> np.ndarray:
        """Kaldi's statistics of each utterance, (num_utts, 2, feat_dim + 1) float64."""
        return self._opened()["cmvn/stats"][:]


def _check_alike(shards: Sequence[FeatsReader]) -> None:
    """All shards were made in the same way; raises AsrKdError naming the first that was not."""
    for shard in shards:
        for name in (*COMMON_ATTRIBUTES, "feat_dim"):
            expected, found = (s.feat_dim if name == "feat_dim" else s.attrs[name] for s in (shards[0], shard))
            if expected != found:
                raise AsrKdError(f"{shard.path}: its {name} is {found!r}, but that of {shards[0].path} is {expected!r}")


def _relative_name(path: Path, shard: Path) -> str:
    """A shard's path from the joined file's folder."""
    folder = shard.resolve().parent
    if folder.parent != path.parent.resolve() or not folder.name.endswith(".shards"):
        raise AsrKdError(f"{shard}: a shard must lie in the folder {path.name}.shards beside {path}")
    name = f"{folder.name}/{shard.name}"
    if "%" in name:
        raise AsrKdError(f"{shard}: a shard's path cannot hold '%', to which HDF5 gives a meaning")
    return name


def _join_tables(shards: Sequence[FeatsReader]) -> _Tables:
    """The tables of all shards, one after the other."""
    digests, stats = [], []
    for shard in shards:  # one is open at a time: there may be more shards than a process may have files
        digests.append(shard.utt_digests)
        stats.append(shard.cmvn_stats)
        shard.close()
    first = shards[0].layout
    layout = Layout.from_lengths(
        [utt_id for shard in shards for utt_id in shard.layout.utt_ids],
        np.concatenate([shard.layout.lengths for shard in shards]),
        first.frame_shift_ms,
        first.snip_edges,
    )
    spk_ids = [spk_id for shard in shards for spk_id in shard.spk_ids]
    skipped = [entry for shard in shards for entry in shard.skipped]
    return _Tables(layout, spk_ids, np.concatenate(digests), np.concatenate(stats), skipped)


def join_shards(path: str | Path, shard_paths: Sequence[str | Path], *, inputs_digest: str = "") -> None:
    """Make one feats.h5 of shards, in their order, without copying a frame; all digests are as if written in one go.

    The shards must lie below the folder of `path` and stay there: the joined file names them by relative path.

    Raises AsrKdError if there are none, if they are elsewhere, were made with different options or share utterances.
    """
    path = Path(path)
    if not shard_paths:
        raise AsrKdError(f"{path}: there are no shards to join")
    names = [_relative_name(path, Path(shard)) for shard in shard_paths]
    shards = [FeatsReader(shard) for shard in shard_paths]
    _check_alike(shards)
    tables = _join_tables(shards)
    layout, first = tables.layout, shards[0]
    dtype = np.dtype(first.attrs["dtype"]).newbyteorder("<")
    virtual = h5py.VirtualLayout((layout.num_frames, first.feat_dim), dtype=dtype)
    start = 0
    for name, shard in zip(names, shards, strict=True):
        if count := shard.layout.num_frames:
            virtual[start : start + count] = h5py.VirtualSource(name, "feats", (count, first.feat_dim))
            start += count
    with create_h5(path, FORMAT_NAME) as file:
        file.attrs.update({name: first.attrs[name] for name in COMMON_ATTRIBUTES})
        file.create_virtual_dataset("feats", virtual, fillvalue=np.nan)  # what HDF5 gives for a lost shard
        _write_strings(file, "shards/path", names)
        _write_strings(file, "shards/content_digest", [shard.content_digest for shard in shards])
        _write_tables(file, tables, inputs_digest)
