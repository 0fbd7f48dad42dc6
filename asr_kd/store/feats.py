"""feats.h5: the frames of all utterances in one flat array, with their CMVN statistics and digests beside them.

    /feats             (num_frames, feat_dim) float32 or float16, rows of one utterance together, not compressed
    /utt/id            (num_utts,) strings             /utt/spk     (num_utts,) strings
    /utt/offset        (num_utts + 1,) int64           /utt/digest  (num_utts, 32) uint8, SHA-256 of its rows
    /cmvn/stats        (num_utts, 2, feat_dim + 1) float64, Kaldi's statistics of each utterance
    /skipped/id        ids of utterances that could not be used, and why in /skipped/reason
    /noted/id          ids of utterances that were used, but are clipped or silent, and what was seen in /noted/remark

Attributes: format, version, kind, options (JSON), sample_rate, frame_length_ms, frame_shift_ms, snip_edges,
num_mel_bins, dtype, layout_digest, content_digest, cmvn_digest, max_bad_share (how large a share of the utterances
could have been skipped), and of what the features were made from inputs_digest (options and contents) and inputs_stamp
(options, names, sizes and times of files); both are empty if unknown.

A file joined from shards has the same contents and digests; its /feats is a virtual data set over the shards, which
it names relative to its own folder, together with their content digests in /shards.
"""

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from asr_kd.choices import FeatsDtype, words
from asr_kd.errors import AsrKdError
from asr_kd.features.splice import splice
from asr_kd.store.hdf5 import H5_ERRORS, Layout, open_h5, read_layout, readable, require_sealed
from asr_kd.store.stored_rows import StoredRows

FORMAT_NAME = "asr_kd.feats"
# Several threads may read, one of them opens.
_OPENING = threading.Lock()


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
            if not isinstance(feats, h5py.Dataset) or feats.ndim != 2 or str(feats.dtype) not in words(FeatsDtype):
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


def content_digest(attrs: Mapping[str, Any], layout: Layout, spk_ids: Sequence[str], utt_digests: np.ndarray) -> str:
    """SHA-256 over kind, options, dtype and each utterance's id, speaker, length and digest of its values.

    attrs: the file's; utt_digests: (num_utts, 32) uint8. It is built from the digests of the utterances, so that a file
    joined from shards has the digest of one that was written in one go, without reading a frame again.
    """
    digest = hashlib.sha256()
    for name in ("kind", "options", "sample_rate", "dtype"):
        digest.update(f"{name} {attrs[name]}\n".encode())
    lengths = layout.lengths.tolist()
    for utt_id, spk_id, length, values in zip(layout.utt_ids, spk_ids, lengths, utt_digests, strict=True):
        digest.update(f"{utt_id} {spk_id} {length} {values.tobytes().hex()}\n".encode())
    return digest.hexdigest()


class FeatsReader:
    """Read feats.h5: `reader[utt_id]` is (num_frames, feat_dim) float32.

    The tables are read at once, the frames when asked for, by as many threads as ask. The open file is not shared with
    a forked or spawned process: there, it is opened again.

    layout: Layout; feat_dim: columns; spk_ids: speaker of each utterance; attrs: the file's attributes;
    content_digest: of values and options; utt_digests: SHA-256 of each utterance's stored values, (num_utts, 32)
    uint8; skipped: [(utt_id, reason)] of what is missing; noted: [(utt_id, remark)];
    shards: the files that it was joined from, none if its frames are its own.

    Raises AsrKdError for what is not a whole feats.h5.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._feats: StoredRows | None = None
        self._pid = -1
        with open_feats(path) as file, readable(path):
            self.attrs = dict(file.attrs)
            self.layout = read_layout(file)
            try:
                self.content_digest = str(self.attrs["content_digest"])
                self.spk_ids = list(file["utt/spk"].asstr()[:])
                self.skipped = list(zip(file["skipped/id"].asstr()[:], file["skipped/reason"].asstr()[:], strict=True))
                self.noted: list[tuple[str, str]] = []
                if "noted" in file:  # files of before 0.2 have no such table
                    self.noted += zip(file["noted/id"].asstr()[:], file["noted/remark"].asstr()[:], strict=True)
                stats_shape = file["cmvn/stats"].shape
                self.utt_digests: np.ndarray = file["utt/digest"][:]
            except H5_ERRORS as error:
                raise AsrKdError(f"{path}: is not complete: {error} is missing or damaged") from error
            num_rows, self.feat_dim = file["feats"].shape
            names = file["shards/path"].asstr()[:] if file["feats"].is_virtual else ()
            self.shards = [self.path.resolve().parent / name for name in names]  # as open_feats looks for them
            num_utts = self.layout.num_utts
            if (
                num_rows != self.layout.num_frames
                or len(self.spk_ids) != num_utts
                or stats_shape != (num_utts, 2, self.feat_dim + 1)
            ):
                raise AsrKdError(f"{path}: its frames do not match its table of utterances")
            expected = content_digest(self.attrs, self.layout, self.spk_ids, self.utt_digests)
            if self.content_digest != expected:
                raise AsrKdError(f"{path}: its tables do not match its content_digest; remove it and make it again")
            require_sealed(file)

    def _opened(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            file = open_feats(self.path)
            if file.attrs["content_digest"] != self.content_digest:
                raise AsrKdError(f"{self.path}: was replaced while it was in use")
            self._file, self._feats, self._pid = file, None, os.getpid()
        return self._file

    def _stored(self) -> StoredRows:
        with _OPENING:
            file = self._opened()
            if self._feats is None:
                self._feats = StoredRows(file["feats"])
            return self._feats

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_feats": None, "_pid": -1}

    def close(self) -> None:
        """Close the file; reading opens it again."""
        with _OPENING:
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
        with readable(self.path):
            return self._stored().read(rows).astype(np.float32, copy=False)

    def __getitem__(self, utt_id: str) -> np.ndarray:
        """Frames of one utterance, (num_frames, feat_dim) float32; raises AsrKdError if it is unknown."""
        return self.read_rows(self.layout.rows(utt_id))

    def read_all(self) -> np.ndarray:
        """All frames in the order of the layout, (num_frames, feat_dim) float32."""
        return self.read_rows(slice(0, self.layout.num_frames))

    def require_intact(self, utt: int, feats: np.ndarray) -> None:
        """Raise AsrKdError unless `feats` (num_frames, feat_dim), as read, are what was written of utterance `utt`."""
        stored = np.dtype(self.attrs["dtype"]).newbyteorder("<")
        with np.errstate(over="ignore"):
            found = hashlib.sha256(np.ascontiguousarray(feats, dtype=stored)).digest()
        if found != self.utt_digests[utt].tobytes():
            raise AsrKdError(
                f"{self.path}: features of {self.layout.utt_ids[utt]} are damaged, their digest is another; "
                "remove the file and make it again"
            )

    def windows(self, utt_id: str, left: int, right: int) -> np.ndarray:
        """Each frame with its context: (num_frames, (left + 1 + right) * feat_dim) float32.

        The first and last frame are repeated at the edges, as Kaldi's splice-feats does.
        """
        return splice(self[utt_id], left, right)

    @property
    def cmvn_stats(self) -> np.ndarray:
        """Kaldi's statistics of each utterance, (num_utts, 2, feat_dim + 1) float64; raises AsrKdError if damaged."""
        with readable(self.path), _OPENING:
            stats = self._opened()["cmvn/stats"][:]
        expected = self.attrs.get("cmvn_digest")  # files of before 0.2 have none
        if expected is not None and hashlib.sha256(np.ascontiguousarray(stats)).hexdigest() != expected:
            raise AsrKdError(f"{self.path}: its CMVN statistics are damaged; remove the file and make it again")
        return stats
