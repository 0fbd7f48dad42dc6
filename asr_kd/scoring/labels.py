"""The states that frames are scored against, from an ali.h5 or from Kaldi's own alignment of pdf-ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.frames import FrameLabels
from asr_kd.store.ali import FAILED, AliReader
from asr_kd.store.kaldi_ark import read_int_vectors
from asr_kd.store.table_names import names_table

POSITIONS = ("_B", "_E", "_I", "_S")


@dataclass(frozen=True)
class LabelledSet:
    """The states of a set of utterances: `labels` in the order of `utt_ids`."""

    utt_ids: tuple[str, ...]
    labels: FrameLabels

    @property
    def labelled(self) -> np.ndarray:
        """Whether each utterance has labels, (num_utts,) bool."""
        offset, known = self.labels.utt_offset, np.concatenate([[0], np.cumsum(self.labels.pdf != FAILED)])
        return known[offset[1:]] > known[offset[:-1]]


def read_labels(path: str | Path, sil_pdfs: Sequence[int] | None = None) -> LabelledSet:
    """States from an ali.h5, or from a Kaldi archive of pdf-ids (ali-to-pdf), named as kaldi_ark.py says.

    sil_pdfs: the states of silence, where the file does not tell them, as an archive never does, or tells others.
    Phones that differ only in
    their position in the word are taken together.

    Raises AsrKdError for a file that is missing, damaged or of another form.
    """
    path = str(path)
    if not names_table(path):
        if Path(path).is_file() and not h5py.is_hdf5(path):
            raise AsrKdError(
                f"{path}: is no HDF5 file; if it holds Kaldi's alignment, as text or not, name it ark:{path}"
            )
        ali = AliReader(path)
        return LabelledSet(ali.layout.utt_ids, ali_labels(ali, sil_pdfs))
    pdfs: dict[str, np.ndarray] = {}
    for utt_id, pdf in read_int_vectors(path):
        if utt_id in pdfs:
            raise AsrKdError(f"{path}: utterance {utt_id!r} comes twice")
        if pdf.min(initial=0) < 0:
            raise AsrKdError(f"{path}: utterance {utt_id!r} has a negative pdf-id")
        pdfs[utt_id] = pdf
    if not pdfs:
        raise AsrKdError(f"{path}: holds no utterance")
    offset = np.concatenate([[0], np.cumsum([len(pdf) for pdf in pdfs.values()])])
    return LabelledSet(tuple(pdfs), FrameLabels(np.concatenate(list(pdfs.values())), offset, sil_pdfs))


def ali_labels(ali: AliReader, sil_pdfs: Sequence[int] | None = None) -> FrameLabels:
    """The labels of an ali.h5; see read_labels."""
    phones, base = join_positions(ali.phones or [])
    phone = None if ali.phone is None else np.where(ali.phone < 0, -1, np.append(base, -1)[ali.phone])
    return FrameLabels(ali.pdf, ali.layout.offsets, ali.sil_pdfs if sil_pdfs is None else sil_pdfs, phone, phones)


def join_positions(phones: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Phones without Kaldi's marks of the position in the word, and the index of each phone in what is left.

    A mark, as prepare_lang.sh sets them, is one only where all four of a phone are there, so that a phone that merely
    ends so keeps its name.
    """
    known = set(phones)
    base = [p[:-2] if {p[:-2] + mark for mark in POSITIONS} <= known else p for p in phones]
    names = list(dict.fromkeys(base))
    index = {name: i for i, name in enumerate(names)}
    return names, np.array([index[name] for name in base], dtype=np.int64)
