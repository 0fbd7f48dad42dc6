"""The transfer set: which frames a net is trained on, and which of them keep their labels.

A choice is of whole utterances, but for the omission of states, which is of frames: the windows of the frames that
stay still show the others, as they would in speech without labels. Whatever is chosen lies in one feats.h5, whose
normalisation (cmvn) is that of the whole file.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.store.ali import FAILED, AliReader
from asr_kd.training.data import LabelledSet, digest_of
from asr_kd.training.stream import StreamedIndex, StreamedSet

_COPY = re.compile(r"(sp\d+\.\d+-)+")


def original_of(utt_id: str, utt2uniq: Mapping[str, str] | None = None) -> str:
    """The utterance that this one is a perturbed copy of: by `utt2uniq`, else what follows sp0.9- in its name."""
    if utt2uniq is not None and utt_id in utt2uniq:
        return utt2uniq[utt_id]
    return _COPY.sub("", utt_id, count=1) if _COPY.match(utt_id) else utt_id


def shuffled(originals: Iterable[str], seed: int) -> list[str]:
    """Each name once, in an order that is a function of `seed` and each one's name alone.

    So the first 3 % are among the first 10 %, and an utterance more or less hardly changes who is chosen.
    """
    return sorted(set(originals), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


@dataclass(frozen=True)
class TransferChoice:
    """What is asked for; the defaults take every frame that has a label, as a baseline does.

    share: of the utterances, drawn by share_seed; utt_ids: only these. omit_pdfs: no frames with these labels;
    only_pdfs: no others. labelled_share: of the chosen utterances keep their labels (those that `share` times it would
    choose), and with less than 1, frames without label belong to the transfer set too. utt2uniq: originals of
    perturbed copies, which follow them.
    """

    share: float = 1.0
    share_seed: int = 1
    utt_ids: frozenset[str] | None = None
    omit_pdfs: tuple[int, ...] = ()
    only_pdfs: tuple[int, ...] = ()
    labelled_share: float = 1.0
    utt2uniq: Mapping[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises AsrKdError for shares that are none."""
        if not 0 < self.share <= 1:
            raise AsrKdError(f"--train-share {self.share:g}: must be above 0 and at most 1")
        if not 0 <= self.labelled_share <= 1:
            raise AsrKdError(f"--labelled-share {self.labelled_share:g}: must lie between 0 and 1")
        if self.omit_pdfs and self.only_pdfs:
            raise AsrKdError("states are either left out (--omit-…) or the only ones (--only-pdfs), not both")

    @property
    def record(self) -> dict[str, Any]:
        """For net.json: whatever is not as by default."""
        record: dict[str, Any] = {}
        if self.share < 1:
            record |= {"share": self.share, "share_seed": self.share_seed}
        if self.utt_ids is not None:
            record["num_listed_utts"] = len(self.utt_ids)
        if self.omit_pdfs:
            record["omitted_pdfs"] = list(self.omit_pdfs)
        if self.only_pdfs:
            record["only_pdfs"] = list(self.only_pdfs)
        if self.labelled_share < 1:
            record |= {"labelled_share": self.labelled_share, "share_seed": self.share_seed}
        return record


@dataclass(frozen=True)
class TransferSet:
    """Frames to train on, index (n,) int32, of a set in which those keep their labels that may be looked at.

    Of a StreamedSet they are a StreamedIndex, which hides labels itself.
    record: what was chosen, for net.json; empty if nothing was.
    """

    train: LabelledSet
    index: torch.Tensor | StreamedIndex
    record: dict[str, Any]

    @property
    def has_unlabelled(self) -> bool:
        """Whether a frame to train on has no label that may be looked at."""
        if isinstance(self.index, StreamedIndex):
            return self.index.has_unlabelled
        return bool((self.train.pdf[self.index.long()] < 0).any())


def choose(train: LabelledSet, choice: TransferChoice) -> TransferSet:
    """Apply a choice to a training set; extra speech, which has no labels, is always taken as a whole.

    Raises AsrKdError where the choice leaves no frame, or names what is not there.
    """
    layout = train.frames.layout
    own = np.arange(layout.num_utts) < train.num_own_utts
    chosen, labelled = _chosen_utts(layout.utt_ids[: train.num_own_utts], choice)
    chosen, labelled = (np.concatenate([utts, ~own[train.num_own_utts :]]) for utts in (chosen, labelled))
    lengths = layout.lengths

    def select(utts: slice, pdf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        extra = np.repeat(~own[utts], lengths[utts])
        frames = np.repeat(chosen[utts], lengths[utts]) & (extra | _states_wanted(pdf, choice, train.num_pdfs))
        if choice.labelled_share < 1:
            return np.where(np.repeat(labelled[utts], lengths[utts]), pdf, FAILED).astype(np.int32), frames
        return pdf, frames & (extra | (pdf != FAILED))

    record = choice.record
    if not own.all():
        record |= {"num_extra_utts": int((~own).sum()), "num_extra_frames": int(lengths[~own].sum())}
    if isinstance(train, StreamedSet):
        index = StreamedIndex(train.stream, select, {"chosen": choice.record, "labelled": digest_of(labelled)})
    else:
        pdf, frames = select(slice(None), train.pdf.cpu().numpy())
        if choice.labelled_share < 1:
            train = replace(train, pdf=torch.from_numpy(pdf).to(train.pdf.device), ali_digest=digest_of(pdf))
        index = torch.from_numpy(np.flatnonzero(frames).astype(np.int32)).to(train.pdf.device)
    if not len(index):
        raise AsrKdError("the transfer set that was asked for holds not one frame")
    return TransferSet(train, index, record)


def _chosen_utts(utt_ids: Sequence[str], choice: TransferChoice) -> tuple[np.ndarray, np.ndarray]:
    """Which utterances are trained on, and which keep their labels, each (num_utts,) bool."""
    listed = frozenset(utt_ids) if choice.utt_ids is None else choice.utt_ids
    if unknown := listed - set(utt_ids):
        raise AsrKdError(f"--utt-list: utterance {min(unknown)} is not in the training set ({len(unknown)} such)")
    originals = [original_of(utt_id, choice.utt2uniq) for utt_id in utt_ids]
    candidates = {name for name, utt_id in zip(originals, utt_ids, strict=True) if utt_id in listed}
    order = _first(shuffled(candidates, choice.share_seed), choice.share)
    chosen, labelled = set(order), set(_first(order, choice.labelled_share))
    pairs = zip(utt_ids, originals, strict=True)
    rows = [(utt_id in listed and name in chosen, name in labelled) for utt_id, name in pairs]
    return tuple(np.array(rows, dtype=bool).reshape(-1, 2).T)


def _first(order: list[str], share: float) -> list[str]:
    """The first share of a list, at least one item unless the share is 0."""
    return order[: max(round(share * len(order)), 1 if share else 0)]


def _states_wanted(pdf: np.ndarray, choice: TransferChoice, num_pdfs: int) -> np.ndarray:
    """Frames whose state may stay, (num_frames,) bool; those without label stay unless only some states may."""
    named = (*choice.omit_pdfs, *choice.only_pdfs)
    if named and not 0 <= min(named) <= max(named) < num_pdfs:
        raise AsrKdError(f"states {sorted(named)} were named, but the alignment has 0 to {num_pdfs - 1}")
    if choice.only_pdfs:
        return np.isin(pdf, choice.only_pdfs)
    return ~np.isin(pdf, choice.omit_pdfs)


def parse_pdfs(text: str, option: str) -> list[int]:
    """`12,13,14` → states; raises AsrKdError for anything else."""
    try:
        pdfs = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise AsrKdError(f"{option} {text}: expected states like 12,13,14") from error
    if len(set(pdfs)) != len(pdfs):
        raise AsrKdError(f"{option} {text}: a state is named twice")
    return pdfs


def pdfs_of_phones(ali: AliReader, text: str) -> list[int]:
    """States that frames of these phones (`AH,EH`) have in an alignment; AH stands for AH_B, AH_E, AH_I, AH_S too.

    Raises AsrKdError where the alignment has no phones, or a phone no frame.
    """
    if ali.phone is None or ali.phones is None:
        raise AsrKdError(f"{ali.path}: tells no phones; name states in place of {text}")
    base = [re.sub(r"_[BEIS]$", "", phone) for phone in ali.phones]
    pdfs: set[int] = set()
    for name in text.split(","):
        rows = [row for row, phone in enumerate(ali.phones) if name in (phone, base[row])]
        found = set(np.unique(ali.pdf[np.isin(ali.phone, rows)]).tolist())
        if not found:
            raise AsrKdError(f"{ali.path}: no frame of phone {name!r}; it has {' '.join(sorted(set(base)))}")
        pdfs |= found
    return sorted(pdfs)


def read_utt_list(path: str | Path) -> frozenset[str]:
    """Utterance ids, the first word of every line; raises AsrKdError for a file that is missing or names none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read ({error})") from error
    utt_ids = frozenset(line.split()[0] for line in lines if line.strip())
    if not utt_ids:
        raise AsrKdError(f"{path}: names no utterance")
    return utt_ids


def read_utt2uniq(path: str | Path) -> dict[str, str]:
    """Kaldi's utt2uniq: `copy original` on every line; raises AsrKdError naming the first line that is not so."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read ({error})") from error
    table = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != 2:
            raise AsrKdError(f"{path}:{number}: expected an utterance and the one that it is a copy of")
        table[words[0]] = words[1]
    return table
