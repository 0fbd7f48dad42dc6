"""ali.h5: the HMM state of every frame, laid out as the features that it was made for.

    /pdf               (num_frames,) int32, 0-based; -1 on all frames of an utterance whose alignment failed
    /phone             (num_frames,) int32, index into /phones, -1 where /pdf is; optional
    /phones            phone symbols; optional
    /tid               (num_frames,) int32, transition-id of the HMM from 1, -1 where /pdf is; optional
    /sil_pdfs          (n,) int32, the states of silence
    /utt/id, /utt/offset

Attributes: format, version, num_pdfs, model_digest (of the HMM), layout_digest (of the features that it fits, whatever
their kind), frame_shift_ms, snip_edges, values_digest (of /pdf, /phone and /tid).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store.hdf5 import (
    Layout,
    blocks_of_utterances,
    create_h5,
    open_h5,
    read_layout,
    readable,
    require_sealed,
    write_layout,
)
from asr_kd.store.stored_rows import StoredRows

FORMAT_NAME = "asr_kd.ali"
FAILED = -1
# Frames to an output of Kaldi's chain models.
SUBSAMPLING = 3


def _check(
    where: str,
    layout: Layout,
    pdf: np.ndarray,
    num_pdfs: int,
    sil_pdfs: np.ndarray,
    phone: np.ndarray | None,
    tid: np.ndarray | None,
) -> None:
    """One state a frame, every state known, and an utterance either aligned as a whole or not at all."""
    for name, values in (("pdf", pdf), ("phone", phone), ("tid", tid)):
        if values is None:
            continue
        if values.shape != (layout.num_frames,):
            raise AsrKdError(
                f"{where}: /{name} has shape {values.shape}, but the features have {layout.num_frames} frames"
            )
        if values.dtype.kind not in "iu":
            raise AsrKdError(f"{where}: /{name} is of type {values.dtype}, not whole numbers")
    if pdf.size and (pdf.min() < FAILED or pdf.max() >= num_pdfs):
        raise AsrKdError(f"{where}: holds states {pdf.min()} to {pdf.max()}, but the model has {num_pdfs}")
    if tid is not None and ((tid < 1) != (pdf == FAILED)).any():
        raise AsrKdError(f"{where}: an aligned frame has no transition-id, or one that is not aligned has")
    if sil_pdfs.size and (sil_pdfs.min() < 0 or sil_pdfs.max() >= num_pdfs):
        raise AsrKdError(f"{where}: a state of silence is not among the {num_pdfs} of the model")
    failed = np.concatenate([[0], np.cumsum(pdf == FAILED)])
    failed_frames = failed[layout.offsets[1:]] - failed[layout.offsets[:-1]]
    partly = (failed_frames > 0) & (failed_frames < layout.lengths)
    if partly.any():
        raise AsrKdError(f"{where}: utterance {layout.utt_ids[int(partly.argmax())]!r} is aligned only in part")


_OTHER_VALUES = "{}: its states are not those of its values_digest; remove it and make it again"


def digest_of(pdf: np.ndarray, phone: np.ndarray | None, tid: np.ndarray | None = None) -> str:
    """SHA-256 over the states, phones and transition-ids of an alignment, whatever type of numbers holds them."""
    digest = hashlib.sha256()
    for values in (pdf, phone, tid):
        digest.update(b"" if values is None else np.ascontiguousarray(values, dtype="<i4").tobytes())
    return digest.hexdigest()


def write_ali(
    path: str | Path,
    layout: Layout,
    pdf: np.ndarray,
    *,
    num_pdfs: int,
    model_digest: str,
    sil_pdfs: Sequence[int],
    phone: np.ndarray | None = None,
    phones: Sequence[str] | None = None,
    tid: np.ndarray | None = None,
) -> None:
    """Write an alignment, atomically.

    layout: that of the features; pdf: (num_frames,) int, -1 for all frames of an utterance whose alignment failed;
    phone: (num_frames,) index into phones, tid: (num_frames,) transition-ids from 1; both -1 where pdf is.

    Raises AsrKdError if the arrays do not fit the layout or a state or phone is out of range.
    """
    pdf = np.asarray(pdf)
    silence = np.asarray(sil_pdfs, dtype=np.int32)
    phone = None if phone is None else np.asarray(phone)
    tid = None if tid is None else np.asarray(tid)
    _check(str(path), layout, pdf, num_pdfs, silence, phone, tid)
    if phone is not None:
        if phones is None:
            raise AsrKdError(f"{path}: phone indexes need the list of phones that they point into")
        if phone.size and (phone.max() >= len(phones) or ((phone < 0) != (pdf == FAILED)).any()):
            raise AsrKdError(
                f"{path}: a phone is not among the {len(phones)} listed, or is missing from an aligned frame"
            )
    with create_h5(path, FORMAT_NAME) as file:
        write_layout(file, layout)
        file["pdf"] = pdf.astype("<i4")
        file["sil_pdfs"] = silence
        if phone is not None:
            file["phone"] = phone.astype("<i4")
        if tid is not None:
            file["tid"] = tid.astype("<i4")
        if phones is not None:
            file.create_dataset("phones", shape=(len(phones),), data=list(phones), dtype=h5py.string_dtype())
        file.attrs["num_pdfs"] = int(num_pdfs)
        file.attrs["model_digest"] = model_digest
        file.attrs["values_digest"] = digest_of(pdf, phone, tid)


class AliReader:
    """Read ali.h5 as a whole; alignments are small beside features.

    layout: Layout; pdf: (num_frames,) int64; num_pdfs; model_digest; sil_pdfs: (n,) int64; phone: (num_frames,) int64
    or None; phones: list of symbols or None; tid: (num_frames,) int32 or None.

    Raises AsrKdError for what is not a whole, consistent ali.h5.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_h5(path, FORMAT_NAME) as file, readable(path):
            self.layout = read_layout(file)
            self.num_pdfs = int(file.attrs["num_pdfs"])
            self.model_digest = str(file.attrs["model_digest"])
            self.pdf = file["pdf"][:].astype(np.int64)
            self.sil_pdfs = file["sil_pdfs"][:].astype(np.int64)
            self.phone = file["phone"][:].astype(np.int64) if "phone" in file else None
            self.phones = list(file["phones"].asstr()[:]) if "phones" in file else None
            self.tid = file["tid"][:] if "tid" in file else None
            values_digest = file.attrs.get("values_digest")  # files of before 0.2 have none
            _check(str(path), self.layout, self.pdf, self.num_pdfs, self.sil_pdfs, self.phone, self.tid)
            if values_digest is not None and values_digest != digest_of(self.pdf, self.phone, self.tid):
                raise AsrKdError(_OTHER_VALUES.format(path))
            require_sealed(file)

    @property
    def failed_utt_ids(self) -> list[str]:
        """Utterances without an alignment."""
        first = self.layout.offsets[:-1][self.layout.lengths > 0]
        with_frames = [u for u, n in zip(self.layout.utt_ids, self.layout.lengths, strict=True) if n > 0]
        return [u for u, state in zip(with_frames, self.pdf[first], strict=True) if state == FAILED]


class AliRows:
    """Read the states of some utterances of an ali.h5 at a time, for alignments that are not small.

    layout, num_pdfs, model_digest: as of AliReader; num_labelled: frames that have a state; digest: SHA-256 over the
    values. All values are read once to begin with, and checked as AliReader checks them.

    Raises AsrKdError for what is not a whole, consistent ali.h5.
    """

    def __init__(self, path: str | Path, block_frames: int = 1 << 20) -> None:
        self.path = Path(path)
        self._file = open_h5(path, FORMAT_NAME)
        with readable(path):
            attrs = self._file.attrs
            self.layout = read_layout(self._file)
            self.num_pdfs, self.model_digest = int(attrs["num_pdfs"]), str(attrs["model_digest"])
            self._pdf = StoredRows(self._file["pdf"])
            silence = self._file["sil_pdfs"][:].astype(np.int64)
            for name in ("pdf", "phone", "tid"):
                if name in self._file and self._file[name].shape != (self.layout.num_frames,):
                    raise AsrKdError(f"{path}: /{name} does not fit its {self.layout.num_frames} frames")
            digest, self.num_labelled = hashlib.sha256(), 0
            for utts in blocks_of_utterances(self.layout.offsets, block_frames):
                pdf = self.read(utts)
                _check(str(path), self.layout.part(utts), pdf, self.num_pdfs, silence, None, None)
                self.num_labelled += int((pdf != FAILED).sum())
                digest.update(pdf.astype("<i4").tobytes())
            for name in ("phone", "tid"):
                for begin in range(0, self.layout.num_frames if name in self._file else 0, block_frames):
                    digest.update(self._file[name][begin : begin + block_frames].astype("<i4").tobytes())
            self.digest = digest.hexdigest()
            if attrs.get("values_digest", self.digest) != self.digest:
                raise AsrKdError(_OTHER_VALUES.format(path))
            require_sealed(self._file)

    def read(self, utts: slice) -> np.ndarray:
        """The states of utterances that follow each other, (n,) of the stored type; raises AsrKdError if damaged."""
        offsets = self.layout.offsets
        with readable(self.path):
            return self._pdf.read(slice(int(offsets[utts.start]), int(offsets[utts.stop])))


def require_fit(ali: Layout, feats: Layout, names: tuple[str, str]) -> None:
    """Refuse an alignment (or targets) whose frames are not those of the features.

    names: the two files, for the message. Raises AsrKdError that says what the first difference is.
    """
    if ali.digest == feats.digest:
        return
    if (ali.frame_shift_ms, ali.snip_edges) != (feats.frame_shift_ms, feats.snip_edges):
        what = "their frame shift or snip_edges differ"
    elif set(ali.utt_ids) != set(feats.utt_ids):
        only = sorted(set(ali.utt_ids) ^ set(feats.utt_ids))
        what = f"{len(only)} utterances are in one only, the first is {only[0]!r}"
    elif ali.utt_ids != feats.utt_ids:
        what = "their utterances are in different orders"
    elif (ali.lengths < feats.lengths).all() and (ali.lengths == -(-feats.lengths // SUBSAMPLING)).all():
        what = (
            f"it has one state for {SUBSAMPLING} frames, as alignments of chain models have; "
            "align with an HMM-GMM of the full frame rate (asr-kd train-hmm, asr-kd align)"
        )
    else:
        row = int((ali.lengths != feats.lengths).argmax())
        what = f"{ali.utt_ids[row]!r} has {ali.lengths[row]} frames in one and {feats.lengths[row]} in the other"
    raise AsrKdError(f"{names[0]} does not fit {names[1]}: {what}")
