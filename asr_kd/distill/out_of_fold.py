"""Out-of-fold soft targets: each frame is labelled by members that were not trained on it.

Members that have memorised their training frames call them with a certainty that they have of no others; a student of
such targets learns what the labels had said already.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from asr_kd.distill.transfer import TransferSet, original_of, shuffled
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.inference import logits_of, of_type, posteriors_of
from asr_kd.nnet.model import FrameClassifier
from asr_kd.nnet.net_dir import read_transfer_utts
from asr_kd.store.hdf5 import Layout
from asr_kd.training.stream import StreamedIndex
from asr_kd.world import ALONE, World


class Folds:
    """The utterances of a set in `num_folds` folds of equal numbers; copies are in those of their originals."""

    def __init__(self, layout: Layout, num_folds: int, seed: int, utt2uniq: Mapping[str, str] | None = None):
        """Raises AsrKdError for a number of folds that the utterances cannot be divided into."""
        originals = [original_of(utt_id, utt2uniq) for utt_id in layout.utt_ids]
        place = {name: number for number, name in enumerate(shuffled(originals, seed))}
        if not 2 <= num_folds <= len(place):
            raise AsrKdError(f"--folds {num_folds}: must lie between 2 and the number of utterances, {len(place)}")
        self._num_folds, self._seed = num_folds, seed
        self._fold_of_utt = np.array([place[name] % num_folds for name in originals])
        self._lengths = layout.lengths

    def without(self, transfer: TransferSet, fold: int) -> TransferSet:
        """`transfer` less one fold; raises AsrKdError where nothing is left."""
        held_out, index = self._fold_of_utt == fold, transfer.index
        if isinstance(index, StreamedIndex):
            index = index.without(held_out)
        else:
            stays = torch.from_numpy(np.repeat(~held_out, self._lengths)).to(index.device)
            index = index[stays[index.long()]]
        if not len(index):
            raise AsrKdError(f"--folds {self._num_folds}: without fold {fold} no frame is left to train on")
        record = {"folds": self._num_folds, "held_out_fold": fold, "fold_seed": self._seed}
        return TransferSet(transfer.train, index, {**transfer.record, **record})


def unseen_utts(members: Sequence[str | Path], layout: Layout, utt2uniq: Mapping[str, str] | None = None) -> np.ndarray:
    """Which utterances each member was not trained on, nor on a copy of them: (num_members, num_utts) bool.

    Raises AsrKdError where some utterance was seen by all members: a member whose folder lists no utterances was
    trained on all labelled ones of its set, and counts as having seen every one.
    """
    originals = [original_of(utt_id, utt2uniq) for utt_id in layout.utt_ids]
    unseen = np.zeros((len(members), layout.num_utts), dtype=bool)
    for row, member in enumerate(members):
        seen = read_transfer_utts(member)
        if seen is not None:
            seen = {original_of(utt_id, utt2uniq) for utt_id in seen}
            unseen[row] = [name not in seen for name in originals]
    known = ~unseen.any(axis=0)
    if known.any():
        raise AsrKdError(
            f"out of fold: all {len(members)} members were trained on {layout.utt_ids[int(known.argmax())]} "
            f"({int(known.sum())} such utterances); train them with train-ensemble --folds K, at least K members"
        )
    return unseen


@torch.inference_mode()
def out_of_fold_posteriors(
    nets: Sequence[FrameClassifier],
    frames: Frames,
    unseen: np.ndarray,
    *,
    temperature: float,
    combination: str,
    dtype: torch.dtype,
    world: World = ALONE,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """As mean_posteriors, each utterance's mean being over the nets for which unseen_utts set it."""
    nets = [of_type(net, dtype) for net in nets]
    # Utterances with the same nets are computed together.
    patterns, pattern_of_utt = np.unique(unseen, axis=1, return_inverse=True)
    pattern_of_frame = np.repeat(pattern_of_utt.ravel(), frames.layout.lengths)
    num_pdfs = nets[0].architecture.num_pdfs
    for rows in frames.block_rows(world=world):
        prob = torch.empty((rows.stop - rows.start, num_pdfs), device=frames.device)
        for number, pattern in enumerate(patterns.T):
            place = torch.from_numpy(np.flatnonzero(pattern_of_frame[rows] == number)).to(frames.device)
            if len(place):
                windows = frames.windows(place + rows.start)
                asked = compress(nets, pattern)
                prob[place] = posteriors_of(logits_of(asked, windows, dtype), temperature, combination)
        yield rows, prob
