"""Viterbi training of an HMM-GMM whose states are given, as in the loops of Kaldi's train_mono.sh and train_deltas.sh.

Alignment runs in the wheels; update and splitting of the Gaussians in numpy, over all frames of a pdf at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.align import AlignOptions, Item, align_graph, require_feats
from asr_kd.hmm.gaussians import split_targets
from asr_kd.hmm.model import HmmModel

Progress = Callable[[str], None]

# Transition update of Kaldi's MleTransitionUpdateConfig.
TRANSITION_FLOOR = 0.01
TRANSITION_MIN_COUNT = 5.0
# So many utterances that failed are named in a line of progress.
NAMED_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class EmOptions:
    """num_iters: passes of EM; total_gauss: Gaussians in all, reached at three quarters of the passes;
    realign_iters: passes that start with a new alignment; max_train_utts: train on a seeded subset of at most so many
    (0: on all); max_failed_share: more failed alignments than this end the training with an error.
    """

    num_iters: int
    total_gauss: int
    realign_iters: tuple[int, ...]
    max_train_utts: int = 0
    max_failed_share: float = 0.2
    align: AlignOptions = field(default_factory=AlignOptions)

    def __post_init__(self) -> None:
        if self.num_iters < 1 or self.total_gauss < 1 or self.max_train_utts < 0:
            raise AsrKdError(
                f"num_iters {self.num_iters} and total_gauss {self.total_gauss} must be positive, max_train_utts "
                f"{self.max_train_utts} not negative"
            )


@dataclass(frozen=True)
class TrainingSet:
    """Utterances of a training: items in their order, data (num_frames, feat_dim) of all of them, flat."""

    items: list[Item]
    data: np.ndarray

    @classmethod
    def from_items(cls, items: Iterable[Item]) -> "TrainingSet":
        """Raises AsrKdError for features that do not fit, and where there is no utterance."""
        items = [(utt_id, np.asarray(feats), words) for utt_id, feats, words in items]
        if not items:
            raise AsrKdError("there is no utterance to train the HMM on")
        dim = items[0][1].shape[1]
        items = [(utt_id, require_feats(feats, dim, utt_id), words) for utt_id, feats, words in items]
        return cls(items, np.concatenate([feats for _, feats, _ in items]))

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each utterance, (num_utts,)."""
        return np.array([len(feats) for _, feats, _ in self.items])

    def columns(self, num: int) -> "TrainingSet":
        """The first `num` columns of the features."""
        return TrainingSet(
            [(utt_id, np.ascontiguousarray(feats[:, :num]), words) for utt_id, feats, words in self.items],
            self.data[:, :num],
        )


def realign(
    model: HmmModel, corpus: TrainingSet, graphs: list, options: EmOptions, progress: Progress = lambda line: None
) -> np.ndarray:
    """Flat transition-ids of the best paths, (num_frames,) int64, 0 where an utterance could not be aligned.

    Those are named to `progress`. Raises AsrKdError where they are more than options.max_failed_share.
    """
    paths = [
        align_graph(model, graph, utt_id, feats, options.align)
        for (utt_id, feats, _), graph in zip(corpus.items, graphs, strict=True)
    ]
    failed = [utt_id for (utt_id, _, _), path in zip(corpus.items, paths, strict=True) if path is None]
    if len(failed) > options.max_failed_share * len(paths):
        raise AsrKdError(
            f"{len(failed)} of {len(paths)} utterances could not be aligned in training (first: {failed[0]!r}), more "
            f"than the {100 * options.max_failed_share:g} % that are accepted; are transcripts and audio those of the "
            "same utterances?"
        )
    if failed:
        more = ", …" if len(failed) > NAMED_FAILURES else ""
        progress(f"not aligned and left out: {len(failed)} utterances, {', '.join(failed[:NAMED_FAILURES])}{more}")
    return np.concatenate(
        [
            np.zeros(length, np.int64) if path is None else path
            for length, path in zip(corpus.lengths, paths, strict=True)
        ]
    )


def train(
    model: HmmModel,
    corpus: TrainingSet,
    graphs: list,
    alignment: np.ndarray,
    options: EmOptions,
    seed: int,
    progress: Progress = lambda line: None,
) -> HmmModel:
    """Passes of EM from `model` and an alignment in its own transition-ids, flat, 0 where an utterance has none.

    graphs: of each utterance, from GraphCompiler. progress receives a line per pass.
    """
    generator = np.random.default_rng(seed)
    last_growth = max(1, round(options.num_iters * 0.75))
    for iteration in range(1, options.num_iters + 1):
        if iteration in options.realign_iters:
            alignment = realign(model, corpus, graphs, options, progress)
        share = min(1.0, iteration / last_growth)
        num_gauss = round(model.num_pdfs + share * max(0, options.total_gauss - model.num_pdfs))
        model = _update(model, corpus.data, alignment, num_gauss if iteration <= last_growth else 0, generator)
        progress(
            f"pass {iteration}/{options.num_iters}: {sum(len(g.weights) for g in model.gmms)} Gaussians, "
            f"{int((alignment > 0).sum())} of {len(corpus.data)} frames aligned"
        )
    return model


def _update(
    model: HmmModel, data: np.ndarray, alignment: np.ndarray, num_gauss: int, generator: np.random.Generator
) -> HmmModel:
    """One step of EM on the frames that `alignment` (flat transition-ids) gives each pdf, then growth to num_gauss."""
    used = np.flatnonzero(alignment)
    pdf_of_frame = model.t2pdf[alignment[used]]
    occupancy = np.bincount(pdf_of_frame, minlength=model.num_pdfs)
    frames = np.split(used[np.argsort(pdf_of_frame, kind="stable")], np.cumsum(occupancy)[:-1])
    gmms = [gmm.reestimate(data[rows].astype(np.float64)) for gmm, rows in zip(model.gmms, frames, strict=True)]
    if num_gauss:
        targets = split_targets(occupancy, num_gauss)
        gmms = [gmm.split(target, generator) for gmm, target in zip(gmms, targets, strict=True)]
    log_probs = _transition_log_probs(model, np.bincount(alignment[used], minlength=len(model.log_probs)))
    return model.with_parameters(log_probs, gmms)


def _transition_log_probs(model: HmmModel, counts: np.ndarray) -> np.ndarray:
    """Maximum-likelihood transition log-probabilities, (num_transition_ids + 1,), floored (MleUpdate in Kaldi)."""
    state_of_tid = model.transition_state
    num_states = int(state_of_tid.max()) + 1
    total = np.bincount(state_of_tid, counts, num_states)
    share = np.maximum(counts / np.maximum(total[state_of_tid], 1e-10), TRANSITION_FLOOR)
    floored = share / np.bincount(state_of_tid, share, num_states)[state_of_tid]
    several = np.bincount(state_of_tid, minlength=num_states)[state_of_tid] > 1
    seen = (total[state_of_tid] >= TRANSITION_MIN_COUNT) & several & (np.arange(len(counts)) > 0)
    return np.where(seen, np.log(floored), model.log_probs).astype(np.float32)
