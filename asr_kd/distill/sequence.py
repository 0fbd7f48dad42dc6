"""Soft targets that know of the rest of the utterance: what the HMM makes of the ensemble's answers to all its frames.

A frame classifier is asked about a window. That a state lasts, what may follow it, and what the ensemble made of the
frames before and after, an HMM knows beside it: forward-backward (Rabiner 1989, section III) gives the posterior of
every state of a frame given all frames. A student whose targets lean on it learns from the ensemble and from the HMM,
and so may answer better than the ensemble; sequence teachers without a student of frames are in Wong & Gales 2016,
"Sequence student-teacher training of deep neural networks".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asr_kd.errors import AsrKdError
from asr_kd.store.ali import FAILED, AliReader
from asr_kd.store.hdf5 import Layout, blocks_of_utterances

# Numbers of one array of forward-backward, of all utterances that go through it side by side.
_MAX_NUMBERS = 1 << 24
# What a target that was stored as 0 may have been: half of the smallest number of float16.
_SMALLEST = 2.0**-25
# What a frame may say against a state, at most: less could leave no state at all within float32.
_LEAST_LIKELIHOOD = 1e-15
# Times that a state is taken to have been left for any other state or the end, beside those counted.
_UNSEEN = 1.0


@dataclass(frozen=True)
class StateBigram:
    """A Markov chain of the HMM's states, frame by frame, with their shares of all frames.

    first, last, prior: (num_pdfs,) float32, probability that an utterance begins with a state, that it ends after it,
    and share of frames; then: (num_pdfs, num_pdfs), the next frame's state by this one's.
    """

    first: torch.Tensor
    then: torch.Tensor
    last: torch.Tensor
    prior: torch.Tensor

    @classmethod
    def counted(cls, ali: AliReader) -> "StateBigram":
        """From an alignment; raises AsrKdError where it has no utterance.

        What was never seen to follow a state may follow it, as often as it is entered from elsewhere, or would be if it
        had been entered once.
        """
        num_pdfs, end = ali.num_pdfs, ali.num_pdfs
        counts = np.zeros((num_pdfs + 1, num_pdfs + 1))
        for begin, stop in zip(ali.layout.offsets[:-1], ali.layout.offsets[1:], strict=True):
            states = ali.pdf[begin:stop]
            if len(states) and states[0] != FAILED:
                path = np.concatenate([[end], states, [end]])
                np.add.at(counts, (path[:-1], path[1:]), 1)
        if not counts.any():
            raise AsrKdError(f"{ali.path}: no utterance of it is aligned")
        entered = np.maximum(counts.sum(axis=0) - counts.diagonal(), 1)
        entered /= entered.sum()
        bigram = (counts + _UNSEEN * entered) / (counts.sum(axis=1, keepdims=True) + _UNSEEN)
        frames = counts[:end].sum(axis=1)
        prior = np.maximum(frames, 1.0) / frames.sum()
        parts = bigram[end, :end], bigram[:end, :end], bigram[:end, end], prior
        return cls(*(torch.from_numpy(np.ascontiguousarray(part)).float() for part in parts))

    def to(self, device: torch.device) -> "StateBigram":
        """The same on a device."""
        return StateBigram(*(part.to(device) for part in (self.first, self.then, self.last, self.prior)))


def smoothed(
    blocks: Iterator[tuple[slice, torch.Tensor]],
    layout: Layout,
    bigram: StateBigram,
    *,
    weight: float,
    acwt: float,
    temperature: float = 1.0,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Posteriors that lean by `weight` on what the HMM makes of their utterance.

    q = (1 - weight) · p + weight · γ, where p (num_pdfs,) is what the nets give a frame, and γ the posterior of its
    states given all frames of the utterance by a chain whose likelihoods are (p / prior)^acwt. Neighbouring frames say
    much the same, so that an acwt of 1 would believe them too often. Targets of a temperature are brought to 1 for
    this, by p ∝ p_T^T, and back.

    blocks: (rows, targets (n, num_pdfs) float32), whole utterances each. The new ones come back in the same order.
    """
    log_weight, log_rest = torch.tensor([weight, 1 - weight]).log().tolist()
    for rows, targets in blocks:
        first, stop = np.searchsorted(layout.offsets, [rows.start, rows.stop])
        log_post = (targets.clamp(min=_SMALLEST).log() * temperature).log_softmax(dim=-1)
        evidence = (log_post - bigram.prior.log()) * acwt
        likelihoods = (evidence - evidence.amax(dim=-1, keepdim=True)).exp().clamp(min=_LEAST_LIKELIHOOD)
        occupied = state_posteriors(likelihoods, layout.lengths[first:stop], bigram)
        mean = torch.logaddexp(log_post + log_rest, occupied.log() + log_weight)
        yield rows, (mean / temperature).softmax(dim=-1)


def whole_utterances(layout: Layout, num_pdfs: int) -> Iterator[slice]:
    """Utterances as many at a time as go through forward-backward together."""
    return blocks_of_utterances(layout.offsets, max(1, _MAX_NUMBERS // num_pdfs))


def state_posteriors(likelihoods: torch.Tensor, lengths: Sequence[int], bigram: StateBigram) -> torch.Tensor:
    """P(state of a frame | all frames of its utterance): (num_frames, num_pdfs) float32.

    likelihoods: (num_frames, num_pdfs), up to a factor a frame, of utterances of `lengths` frames one after another.
    All utterances go side by side, the longest first, so that those that still last at a frame are the first ones.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])[order]
    lasting = [int((lengths > frame).sum()) for frame in range(int(lengths.max(initial=0)))]
    rows = [torch.from_numpy(begins[:count] + frame).to(likelihoods.device) for frame, count in enumerate(lasting)]
    posteriors = torch.empty_like(likelihoods)
    alpha = bigram.first.expand(len(order), -1)
    for frame, (row, count) in enumerate(zip(rows, lasting, strict=True)):
        expected = alpha[:count] @ bigram.then if frame else alpha[:count]
        alpha = _normalised(expected * likelihoods[row])
        posteriors[row] = alpha
    beta = likelihoods.new_empty((0, likelihoods.shape[1]))
    for row, count in zip(reversed(rows), reversed(lasting), strict=True):
        ends = bigram.last.expand(count - len(beta), -1)
        beta = _normalised(torch.cat([beta, ends]))
        posteriors[row] = _normalised(posteriors[row] * beta)
        beta = (beta * likelihoods[row]) @ bigram.then.T
    return posteriors


def _normalised(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.sum(dim=-1, keepdim=True)
