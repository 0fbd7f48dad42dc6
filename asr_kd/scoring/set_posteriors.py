"""What is scored and decoded: a matrix an utterance, made when it is asked for, so that no set is held whole."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from asr_kd.distill.soft_targets import check_members, joint_log_posteriors
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout, blocks_of_utterances

# Frames whose posteriors are made at a time, as long as these are at most 128 MB.
BLOCK_FRAMES = 1 << 14
MAX_POSTERIORS = 1 << 25
# Posteriors that are kept, at most, where they are asked for again and again: 1 GB.
MAX_KEPT = 1 << 28

Matrices = Iterator[tuple[str, np.ndarray]]


class SetMatrices(Protocol):
    """Posteriors or likelihoods of the utterances of `layout`."""

    layout: Layout

    def of(self, utt_ids: Sequence[str]) -> Matrices:
        """(utt_id, (num_frames, num_pdfs) float32) in the order of `utt_ids`; may be asked for more than once."""


@dataclass(frozen=True)
class SetPosteriors:
    """Log posteriors of a net, or of nets that answer together, for a set; computed anew for each `of`.

    nets: on `device`; combination, top_n: as joint_log_posteriors takes them. Raises AsrKdError where the nets do not
    belong together or to these features.
    """

    nets: Sequence[TrainedNet]
    reader: FeatsReader
    combination: str
    device: torch.device
    dtype: torch.dtype = torch.float32
    temperature: float = 1.0
    top_n: int = 1

    def __post_init__(self) -> None:
        check_members(self.nets, self.reader, combination=self.combination)

    @property
    def layout(self) -> Layout:
        """Of all utterances."""
        return self.reader.layout

    def blocks(self) -> Iterator[np.ndarray]:
        """Of all frames in order, (n, num_pdfs) float32, some whole utterances at a time."""
        return (log_post for _, log_post in self._answers(self._runs()))

    def __iter__(self) -> Matrices:
        """Of all utterances in order, (utt_id, (num_frames, num_pdfs) float32)."""
        return self._by_utterance(self._runs())

    def of(self, utt_ids: Sequence[str]) -> Matrices:
        """See SetMatrices."""
        if list(utt_ids) == list(self.layout.utt_ids):
            return iter(self)
        numbers = [self.layout.index[utt_id] for utt_id in utt_ids]
        return self._by_utterance(slice(u, u + 1) for u in numbers)

    def _runs(self) -> Iterator[slice]:
        block_frames = max(1, min(BLOCK_FRAMES, MAX_POSTERIORS // self.nets[0].net.architecture.num_pdfs))
        return blocks_of_utterances(self.layout.offsets, block_frames)

    def _by_utterance(self, runs: Iterable[slice]) -> Matrices:
        for part, log_post in self._answers(runs):
            for utt_id in part.utt_ids:
                yield utt_id, log_post[part.rows(utt_id)]

    def _answers(self, runs: Iterable[slice]) -> Iterator[tuple[Layout, np.ndarray]]:
        """Of runs of utterances that follow each other."""
        first = self.nets[0]
        a, normalised = first.net.architecture, first.cmvn.normaliser(self.reader)
        how = {key: getattr(self, key) for key in ("combination", "temperature", "dtype", "top_n")}
        for utts in runs:
            part = self.layout.part(utts)
            frames = Frames(normalised(utts), part, a.left_context, a.right_context, self.device, self.dtype)
            answers = joint_log_posteriors(self.nets, frames, **how)
            yield part, np.concatenate([log_post.cpu().numpy() for _, log_post in answers])


@dataclass(frozen=True)
class KeptMatrices:
    """Matrices of some utterances of `layout`, in memory."""

    layout: Layout
    matrices: dict[str, np.ndarray]

    def of(self, utt_ids: Sequence[str]) -> Matrices:
        """See SetMatrices."""
        return ((utt_id, self.matrices[utt_id]) for utt_id in utt_ids)


def kept_if_small(found: SetMatrices, utt_ids: Sequence[str], num_pdfs: int) -> SetMatrices:
    """`found`, of these utterances alone and in memory unless they are more than MAX_KEPT numbers."""
    layout = found.layout
    if sum(int(layout.lengths[layout.index[utt_id]]) for utt_id in utt_ids) * num_pdfs > MAX_KEPT:
        return found
    return KeptMatrices(layout, dict(found.of(utt_ids)))
