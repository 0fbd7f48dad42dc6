"""What nets, soft targets and alignments are as Kaldi's tables, utterance by utterance, at the memory of a few.

Log-likelihoods are for latgen-faster-mapped, Posteriors for nnet-train-frmshuff and nnet3-get-egs, alignments for
whatever takes ali.*.gz.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.set_posteriors import Matrices
from asr_kd.store.ali import FAILED, AliReader
from asr_kd.store.kaldi_posterior import Posterior, generator_of, rand_prune
from asr_kd.store.targets import stream_targets


def pruned(posteriors: Matrices, min_post: float, seed: int) -> Iterator[tuple[str, Posterior]]:
    """Log posteriors (num_frames, num_pdfs) as Posteriors, pruned at random so that expectations are kept."""
    for utt_id, log_post in posteriors:
        weight = rand_prune(np.exp(log_post), min_post, generator_of(seed, utt_id))
        yield utt_id, Posterior.from_rows(weight)


def posteriors_of_targets(
    path: str | Path, min_post: float, seed: int, warn: Callable[[str], None]
) -> Iterator[tuple[str, Posterior]]:
    """Soft targets (targets.h5) as Posteriors, pruned likewise.

    The weights of a frame sum to one before they are pruned: a tail belongs to no state, so that the states that were
    kept take its share; `warn` is told how large it was. Raises AsrKdError for a targets.h5 that is damaged.
    """
    num_frames, total_tail = 0, 0.0
    for utt_id, prob, pdf, tail in stream_targets(path):
        num_frames += len(prob)
        total_tail += 0.0 if tail is None else float(tail.sum(dtype=np.float64))
        weight = prob.astype(np.float32)
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        yield utt_id, Posterior.from_rows(rand_prune(weight, min_post, generator_of(seed, utt_id)), pdf)
    if total_tail:
        warn(
            f"{path}: keeps the largest targets of a frame only; the others, {100 * total_tail / num_frames:.2g} % of "
            "the mass, are given to these"
        )


def alignments(ali: AliReader, *, transition_ids: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Transition-ids, or pdf-ids, of every aligned utterance: (utt_id, (num_frames,) int).

    Raises AsrKdError for transition-ids of an ali.h5 that has none.
    """
    values = ali.tid if transition_ids else ali.pdf
    if values is None:
        raise AsrKdError(
            f"{ali.path}: holds states, but no transition-ids; remove it and align again (asr-kd align), or export the "
            "states (asr-kd export-kaldi pdf)"
        )
    for utt_id in ali.layout.utt_ids:
        utt = values[ali.layout.rows(utt_id)]
        if len(utt) and utt[0] != FAILED:
            yield utt_id, utt
