"""What is scored and decoded: a matrix an utterance, made when it is asked for, so that no set is held whole."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from asr_kd.distill.soft_targets import check_members, joint_log_posteriors
from asr_kd.distill.specialist_inference import SPECIALISTS
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.inference import of_type
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.store.feats import FeatsReader
from asr_kd.store.hdf5 import Layout, blocks_of_utterances, runs_of

# Frames whose posteriors are made at once, as long as these are at most 128 MB.
FRAMES_AT_ONCE = 1 << 14
MAX_POSTERIORS = 1 << 25
# Posteriors that are kept, at most, where they are asked for again and again: 1 GB.
MAX_KEPT = 1 << 28

Matrices = Iterable[tuple[str, np.ndarray]]


class SetMatrices(Protocol):
    """Posteriors or likelihoods of the utterances of `layout`."""

    layout: Layout

    def of(self, utt_ids: Sequence[str]) -> Matrices:
        """(utt_id, (num_frames, num_pdfs) float32) in the order of `utt_ids`; may be asked for more than once."""


@dataclass(frozen=True)
class SetPosteriors:
    """Log posteriors of a net, or of nets that answer together, for a set; computed anew for each `of`.

    nets: on `device`; combination, top_n: as joint_log_posteriors takes them. model_digest: of the HMM that a graph was
    made from, where the nets must name its states. Raises AsrKdError where the nets do not belong together, to these
    features or to that HMM.
    """

    nets: Sequence[TrainedNet]
    reader: FeatsReader
    combination: str
    device: torch.device
    dtype: torch.dtype = torch.float32
    temperature: float = 1.0
    top_n: int = 1
    model_digest: str | None = None

    def __post_init__(self) -> None:
        check_members(self.nets, self.reader, self.model_digest, combination=self.combination)
        if self.combination != SPECIALISTS:  # who know their generalist by the digest of its weights as they are
            converted = [replace(trained, net=of_type(trained.net, self.dtype)) for trained in self.nets]
            object.__setattr__(self, "nets", converted)  # once, not for every block

    @property
    def layout(self) -> Layout:
        """Of all utterances."""
        return self.reader.layout

    def blocks(self) -> Iterator[np.ndarray]:
        """Of all frames in order, (n, num_pdfs) float32, some whole utterances at a time."""
        return (log_post for _, log_post in self._answers(np.arange(self.layout.num_utts)))

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Of all utterances in order, (utt_id, (num_frames, num_pdfs) float32)."""
        return iter(self.of(self.layout.utt_ids))

    def of(self, utt_ids: Sequence[str]) -> Matrices:
        """See SetMatrices."""
        for part, log_post in self._answers(np.array([self.layout.index[utt_id] for utt_id in utt_ids], dtype=int)):
            for utt_id in part.utt_ids:
                yield utt_id, log_post[part.rows(utt_id)]

    def _answers(self, utts: np.ndarray) -> Iterator[tuple[Layout, np.ndarray]]:
        """Of utterances, by their numbers, some at a time."""
        first, layout = self.nets[0], self.layout
        a, normalised = first.net.architecture, first.cmvn.normaliser(self.reader)
        how = {key: getattr(self, key) for key in ("combination", "temperature", "dtype", "top_n")}
        lengths, none = layout.lengths[utts], np.empty((0, a.num_pdfs), np.float32)
        block_frames = max(1, min(FRAMES_AT_ONCE, MAX_POSTERIORS // a.num_pdfs))
        for block in blocks_of_utterances(np.concatenate([[0], np.cumsum(lengths)]), block_frames):
            names = [layout.utt_ids[utt] for utt in utts[block]]
            part = Layout.from_lengths(names, lengths[block], layout.frame_shift_ms, layout.snip_edges)
            feats = np.concatenate([normalised(run) for run in runs_of(utts[block])])
            frames = Frames(feats, part, a.left_context, a.right_context, self.device, self.dtype)
            answers = joint_log_posteriors(self.nets, frames, **how)
            yield part, np.concatenate([none, *(log_post.cpu().numpy() for _, log_post in answers)])


@dataclass(frozen=True)
class KeptMatrices:
    """Matrices of some utterances of `layout`, in memory."""

    layout: Layout
    matrices: dict[str, np.ndarray]

    def of(self, utt_ids: Sequence[str]) -> Matrices:
        """See SetMatrices."""
        return ((utt_id, self.matrices[utt_id]) for utt_id in utt_ids)


def kept_if_small(found: SetMatrices, utt_ids: Sequence[str], num_pdfs: int) -> SetMatrices:
    """`found`, of these utterances alone and in memory, unless they are more than MAX_KEPT numbers."""
    layout, lengths = found.layout, found.layout.lengths
    if sum(int(lengths[layout.index[utt_id]]) for utt_id in utt_ids) * num_pdfs > MAX_KEPT:
        return found
    return KeptMatrices(layout, dict(found.of(utt_ids)))
