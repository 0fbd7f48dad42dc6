"""How well a GMM-HMM knows speech by itself: its likelihood of a set, and scores to find the words with.

Comparing GMM-HMMs before a net is trained on their states shows whether more states, or other ones, are worth it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_kd.corpus.lexicon import MAX_OOV_SHARE
from asr_kd.hmm.align import AlignOptions, GraphCompiler, align_graph
from asr_kd.hmm.frontend import GmmFeats
from asr_kd.hmm.gaussians import GmmStack
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.steps import Progress, load_with_feats, transcripts_of


@dataclass(frozen=True)
class LikelihoodReport:
    """loglik_per_frame: mean log-likelihood of the aligned frames under the states of the best path through their
    words, without transition probabilities (as Kaldi's acoustic likelihoods are printed).
    """

    num_pdfs: int
    num_gauss: int
    num_frames: int
    loglik_per_frame: float
    failed: list[str]

    def __str__(self) -> str:
        return (
            f"{self.num_pdfs} states, {self.num_gauss} Gaussians: log-likelihood {self.loglik_per_frame:.3f} a frame "
            f"over {self.num_frames} frames, {len(self.failed)} utterances not aligned"
        )


def check_likelihood(
    hmm_dir: str | Path,
    mfcc_h5: str | Path,
    data_dir: str | Path,
    *,
    options: AlignOptions | None = None,
    max_oov_share: float = MAX_OOV_SHARE,
    progress: Progress = lambda line: None,
) -> LikelihoodReport:
    """Align every utterance of mfcc.h5 that has a transcript and average the likelihood of its path.

    Raises AsrKdError where the MFCC options differ from the model's or too many words are not in its lexicon.
    """
    options = options or AlignOptions()
    model, feats = load_with_feats(hmm_dir, mfcc_h5)
    transcripts = transcripts_of(data_dir, model.lang.lexicon, max_oov_share, progress, feats)
    compiler, stack = GraphCompiler(model, model.lang), GmmStack(model.gmms)
    failed, total, num_frames = [], 0.0, 0
    for utt_id in feats.reader.layout.utt_ids:
        if utt_id not in transcripts:
            failed.append(utt_id)
            continue
        x = feats[utt_id]
        tids = align_graph(model, compiler.compile(utt_id, transcripts[utt_id]), utt_id, x, options)
        if tids is None:
            failed.append(utt_id)
            continue
        total += float(stack.logliks(x)[np.arange(len(x)), model.t2pdf[tids]].sum(dtype=np.float64))
        num_frames += len(x)
    return LikelihoodReport(
        model.num_pdfs,
        sum(len(gmm.weights) for gmm in model.gmms),
        num_frames,
        total / num_frames if num_frames else float("nan"),
        failed,
    )


class GmmLogliks:
    """Log-likelihood of every frame under every state, as SetMatrices (asr_kd/scoring/set_posteriors.py) are given."""

    def __init__(self, model: HmmModel, feats: GmmFeats) -> None:
        self._stack, self._feats = GmmStack(model.gmms), feats
        self.layout = feats.reader.layout

    def of(self, utt_ids: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(utt_id, (num_frames, num_pdfs) float32) in the order of `utt_ids`."""
        return ((utt_id, self._stack.logliks(self._feats[utt_id])) for utt_id in utt_ids)
