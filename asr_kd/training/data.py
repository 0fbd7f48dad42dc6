"""A set as the training loop sees it: frames on the device and one label for each."""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr_kd.config import MAX_FRAMES
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Cmvn, Frames, front_end
from asr_kd.store.ali import FAILED, AliReader, AliRows, require_fit
from asr_kd.store.feats import FeatsReader


@dataclass
class LabelledSet:
    """Frames with their HMM states.

    pdf: (num_frames,) int32 on the device, −1 where the alignment failed, and for extra speech: the utterances from
    num_own_utts on, which come from a second file and have no labels.
    """

    frames: Frames
    pdf: torch.Tensor
    num_pdfs: int
    cmvn: Cmvn
    front_end: dict[str, Any]
    labels: dict[str, Any]
    content_digest: str
    ali_digest: str
    num_own_utts: int

    @property
    def labelled(self) -> torch.Tensor:
        """Numbers of the labelled frames, (n,) int32: there is one for each frame of the set."""
        return torch.nonzero(self.pdf >= 0).squeeze(1).int()

    def labels_of(self, index: torch.Tensor | slice) -> torch.Tensor:
        """States of frames `index`, (batch,) int64, as losses want them."""
        return self.pdf[index].long()


def load_set(
    feats: str | Path,
    ali: str | Path,
    *,
    cmvn: str | Cmvn,
    left_context: int,
    right_context: int,
    device: torch.device,
    dtype: torch.dtype,
    held_as: torch.dtype | None = None,
    extra_feats: str | Path | None = None,
) -> LabelledSet:
    """Load a feats.h5 and the ali.h5 that fits it, and behind them a second feats.h5, unlabelled, where one is given.

    cmvn: a mode, whose statistics are then taken from this (training) set, or the training set's Cmvn for another set;
    extra speech has part in those of its own speakers and utterances alone. held_as: see Frames.
    Raises AsrKdError if the layouts differ, no frame has a label, the extra speech has another front end, or there are
    more than MAX_FRAMES.
    """
    (reader, *extra), alignment = feats_readers(feats, extra_feats), AliReader(ali)
    with contextlib.ExitStack() as stack:
        for opened in (reader, *extra):
            stack.enter_context(opened)
        require_labels(alignment, reader, int((alignment.pdf >= 0).sum()))
        if isinstance(cmvn, str):
            cmvn = Cmvn.from_training_set(cmvn, reader)
        num_extra = sum(opened.layout.num_frames for opened in extra)
        if reader.layout.num_frames + num_extra > MAX_FRAMES:
            raise AsrKdError(
                f"{feats}: one process trains on at most {MAX_FRAMES:,} frames, these are "
                f"{reader.layout.num_frames + num_extra:,}; stream them (resident_frames)"
            )
        pdf = np.concatenate([alignment.pdf, np.full(num_extra, FAILED)]).astype(np.int32)
        return LabelledSet(
            frames=Frames.from_readers([reader, *extra], cmvn, left_context, right_context, device, dtype, held_as),
            pdf=torch.from_numpy(pdf).to(device),
            num_pdfs=alignment.num_pdfs,
            cmvn=cmvn,
            front_end=front_end(reader),
            labels={"num_pdfs": alignment.num_pdfs, "model_digest": alignment.model_digest},
            content_digest=" ".join(opened.content_digest for opened in (reader, *extra)),
            ali_digest=digest_of(alignment.pdf),
            num_own_utts=reader.layout.num_utts,
        )


def feats_readers(feats: str | Path, extra_feats: str | Path | None) -> list[FeatsReader]:
    """One or both files of a training set; raises AsrKdError where they have different front ends."""
    readers = [FeatsReader(path) for path in (feats, extra_feats) if path is not None]
    for reader in readers:
        if front_end(reader) != front_end(readers[0]):
            raise AsrKdError(f"{reader.path}: made by another front end (options, rate, shift) than {feats}")
    return readers


def require_labels(ali: AliReader | AliRows, reader: FeatsReader, num_labelled: int) -> None:
    """Raise AsrKdError unless an alignment is of these features, and some frame has a label."""
    require_fit(ali.layout, reader.layout, (str(ali.path), str(reader.path)))
    if not num_labelled:
        raise AsrKdError(f"{ali.path}: not one frame has a label")


def digest_of(array: np.ndarray) -> str:
    """SHA-256 over an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
