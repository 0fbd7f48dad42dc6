"""Writing feats.h5 (its format: asr_kd.store.feats): utterance by utterance, or joined from shards."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from asr_kd.choices import FeatsDtype, require_choice
from asr_kd.errors import AsrKdError
from asr_kd.features import cmvn
from asr_kd.store.feats import FORMAT_NAME, FeatsReader, content_digest
from asr_kd.store.hdf5 import Layout, create_h5, extend, seal, write_layout

CHUNK_ROWS = 1024
# Whole chunks are written, so that none is touched twice.
BUFFER_ROWS = 8 * CHUNK_ROWS
STATS_CHUNK = 64
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


class FrameOptions(Protocol):
    """What a file tells of how its frames were made; asr_kd.features.options has those of speech."""

    sample_frequency: float
    frame_length: float
    frame_shift: float
    snip_edges: bool
    num_mel_bins: int

    @property
    def feat_dim(self) -> int: ...

    def to_json(self) -> str: ...


def _write_strings(file: h5py.File, name: str, values: Sequence[str]) -> None:
    file.create_dataset(name, shape=(len(values),), data=list(values), dtype=h5py.string_dtype())


def _create_stats(file: h5py.File, feat_dim: int) -> h5py.Dataset:
    shape = (2, feat_dim + 1)
    return file.create_dataset("cmvn/stats", (0, *shape), "<f8", maxshape=(None, *shape), chunks=(STATS_CHUNK, *shape))


class _Tables:
    """Everything in the file but /feats, /cmvn and the attributes of the front end."""

    def __init__(self) -> None:
        self.utts: dict[str, tuple[str, int]] = {}  # speaker and number of frames
        self.digests = bytearray()  # SHA-256 of each utterance's stored values
        self.skipped: list[tuple[str, str]] = []
        self.noted: list[tuple[str, str]] = []

    def add_file(self, reader: FeatsReader) -> None:
        """Append those of a shard; raises AsrKdError for an utterance that is there already."""
        lengths = reader.layout.lengths.tolist()
        for utt_id, spk_id, length in zip(reader.layout.utt_ids, reader.spk_ids, lengths, strict=True):
            if utt_id in self.utts:
                raise AsrKdError(f"{reader.path}: utterance id {utt_id!r} occurs twice")
            self.utts[utt_id] = (spk_id, length)
        self.digests += reader.utt_digests.tobytes()
        self.skipped += reader.skipped
        self.noted += reader.noted

    def write(self, file: h5py.File) -> None:
        """Store the tables and the digests of layout and content in a file that has its other attributes."""
        layout = Layout.from_lengths(
            list(self.utts),
            [length for _, length in self.utts.values()],
            float(file.attrs["frame_shift_ms"]),
            bool(file.attrs["snip_edges"]),
        )
        write_layout(file, layout)
        spk_ids = [spk_id for spk_id, _ in self.utts.values()]
        _write_strings(file, "utt/spk", spk_ids)
        digests = np.frombuffer(self.digests, dtype=np.uint8).reshape(-1, 32)
        file["utt/digest"] = digests
        for name, what, entries in (("skipped", "reason", self.skipped), ("noted", "remark", self.noted)):
            _write_strings(file, f"{name}/id", [utt_id for utt_id, _ in entries])
            _write_strings(file, f"{name}/{what}", [text for _, text in entries])
        file.attrs["content_digest"] = content_digest(file.attrs, layout, spk_ids, digests)


class FeatsWriter:
    """Write feats.h5 utterance by utterance; the file appears complete when the `with` block ends, or not at all.

    kind: "fbank", "mfcc" or what else the options stand for; options: as the features were computed;
    sample_rate: Hz; dtype: "float32", or "float16" for half the size; feat_dim: columns, if not those of the options.
    `inputs_digest` and `inputs_stamp` may be set until the block ends, for whoever asks later whether the features are
    up to date. Of the frames, a few thousand are held in memory.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: str,
        options: FrameOptions,
        sample_rate: int,
        dtype: FeatsDtype = "float32",
        inputs_stamp: str = "",
        feat_dim: int | None = None,
    ) -> None:
        require_choice("dtype of features", dtype, FeatsDtype)
        if sample_rate != options.sample_frequency:
            raise AsrKdError(f"the sample rate is {sample_rate}, but the options say {options.sample_frequency:g} Hz")
        self.path = Path(path)
        self.feat_dim = options.feat_dim if feat_dim is None else feat_dim
        self.inputs_digest = ""
        self.inputs_stamp = inputs_stamp
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
        self._tables = _Tables()

    def __enter__(self) -> "FeatsWriter":
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(create_h5(self.path, FORMAT_NAME))
        self._file.attrs.update(self._attributes)
        self._feats = _create_feats(self._file, self.feat_dim, self._dtype)
        self._stats = _create_stats(self._file, self.feat_dim)
        self._buffer = np.empty((BUFFER_ROWS, self.feat_dim), dtype=self._dtype)
        self._num_buffered = 0
        self._waiting_stats: list[np.ndarray] = []
        self._stats_digest = hashlib.sha256()
        return self

    def append(self, utt_id: str, spk_id: str, feats: np.ndarray) -> None:
        """Add an utterance's feats (num_frames, feat_dim).

        Raises AsrKdError for a second utterance of that id, another feat_dim, no frames, or values that are not
        finite in the stored type.
        """
        if utt_id in self._tables.utts:
            raise AsrKdError(f"{self.path}: utterance id {utt_id!r} occurs twice")
        if feats.ndim != 2 or feats.shape[1] != self.feat_dim or len(feats) == 0:
            raise AsrKdError(f"{self.path}: {utt_id} has shape {feats.shape}, but (frames, {self.feat_dim}) is stored")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite, or too large for float16, stays so
            stored = np.ascontiguousarray(feats, dtype=self._dtype)
            stats = cmvn.accumulate(stored)  # of what is stored, so that a reader can check them
        if not np.isfinite(stats).all():
            raise AsrKdError(f"{self.path}: features of {utt_id} are not finite as {self._attributes['dtype']}")
        self._tables.utts[utt_id] = (spk_id, len(stored))
        self._tables.digests += hashlib.sha256(stored).digest()
        self._waiting_stats.append(stats)
        if len(self._waiting_stats) == STATS_CHUNK:
            self._flush_stats()
        done = 0
        while done < len(stored):
            taken = min(len(stored) - done, BUFFER_ROWS - self._num_buffered)
            self._buffer[self._num_buffered : self._num_buffered + taken] = stored[done : done + taken]
            self._num_buffered += taken
            done += taken
            if self._num_buffered == BUFFER_ROWS:
                self._flush()

    def skip(self, utt_id: str, reason: str) -> None:
        """Note in the file that an utterance is missing from it, and why."""
        self._tables.skipped.append((utt_id, reason))

    def note(self, utt_id: str, remark: str) -> None:
        """Note in the file what is odd about an utterance in it."""
        self._tables.noted.append((utt_id, remark))

    def _flush(self) -> None:
        if self._num_buffered:
            extend(self._feats, self._buffer[: self._num_buffered])
        self._num_buffered = 0

    def _flush_stats(self) -> None:
        if self._waiting_stats:
            stats = np.stack(self._waiting_stats).astype("<f8")
            self._stats_digest.update(stats.tobytes())
            extend(self._stats, stats)
        self._waiting_stats.clear()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self._stack:  # whatever is raised in here discards the file
            if error is not None:
                raise error
            self._flush()
            self._flush_stats()
            self._file.attrs["inputs_digest"] = self.inputs_digest
            self._file.attrs["inputs_stamp"] = self.inputs_stamp
            self._file.attrs["cmvn_digest"] = self._stats_digest.hexdigest()
            self._tables.write(self._file)


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


def _create_feats(file: h5py.File, feat_dim: int, dtype: np.dtype) -> h5py.Dataset:
    chunks = (CHUNK_ROWS, feat_dim)
    return file.create_dataset("feats", (0, feat_dim), dtype, maxshape=(None, feat_dim), chunks=chunks)


def _virtual_layout(names: Sequence[str], shards: Sequence[FeatsReader]) -> h5py.VirtualLayout:
    feat_dim = shards[0].feat_dim
    dtype = np.dtype(shards[0].attrs["dtype"]).newbyteorder("<")
    virtual = h5py.VirtualLayout((sum(shard.layout.num_frames for shard in shards), feat_dim), dtype=dtype)
    start = 0
    for name, shard in zip(names, shards, strict=True):
        if count := shard.layout.num_frames:
            virtual[start : start + count] = h5py.VirtualSource(name, "feats", (count, feat_dim))
            start += count
    return virtual


def join_shards(
    path: str | Path,
    shard_paths: Sequence[str | Path],
    *,
    inputs_digest: str = "",
    inputs_stamp: str = "",
    max_bad_share: float | None = None,
) -> None:
    """Make one feats.h5 of shards, in their order, with all digests as if it had been written in one go.

    The file names the shards by relative path: they must lie in the folder `<path>.shards` and stay there.

    Raises AsrKdError if there are none, if they are elsewhere, were made with different options or share utterances.
    """
    path = Path(path)
    if not shard_paths:
        raise AsrKdError(f"{path}: there are no shards to join")
    names = [_relative_name(path, Path(shard)) for shard in shard_paths]
    shards = [FeatsReader(shard) for shard in shard_paths]
    _check_alike(shards)
    with create_h5(path, FORMAT_NAME) as file:
        file.attrs.update({name: shards[0].attrs[name] for name in COMMON_ATTRIBUTES})
        file.attrs.update(inputs_digest=inputs_digest, inputs_stamp=inputs_stamp)
        if max_bad_share is not None:
            file.attrs["max_bad_share"] = max_bad_share
        # What HDF5 gives for a lost shard is the fill value.
        file.create_virtual_dataset("feats", _virtual_layout(names, shards), fillvalue=np.nan)
        stats, tables, stats_digest = _create_stats(file, shards[0].feat_dim), _Tables(), hashlib.sha256()
        for shard in shards:  # one is open at a time: there may be more shards than a process may have files
            tables.add_file(shard)
            of_shard = shard.cmvn_stats
            stats_digest.update(of_shard.tobytes())
            extend(stats, of_shard)
            shard.close()
        file.attrs["cmvn_digest"] = stats_digest.hexdigest()
        _write_strings(file, "shards/path", names)
        _write_strings(file, "shards/content_digest", [shard.content_digest for shard in shards])
        tables.write(file)


def publish_shard(path: str | Path, shard: str | Path, *, max_bad_share: float) -> None:
    """Make feats.h5 of a single shard by moving it there; raises AsrKdError if that cannot be done."""
    try:
        with h5py.File(shard, "r+") as file:
            file.attrs["max_bad_share"] = max_bad_share
            seal(file)
        with open(shard, "rb") as written:
            os.fsync(written.fileno())
        os.replace(shard, path)
    except OSError as error:
        raise AsrKdError(f"{path}: could not be written ({error.strerror or error})") from error
