"""Frame accuracy and cross-entropy, kept per utterance so that they can be resampled."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asr_kd.errors import AsrKdError

# Rows handled at once: 14,000 float32 columns of them are under 1 GB.
_CHUNK = 16384


@dataclass(frozen=True)
class FrameScores:
    """Per-utterance counts of one net on one set, each (num_utts,): int64, and `xent_sum` float64 in nats.

    Only frames with a label count. `nonsil` are those whose label is not a silence pdf.
    """

    num_frames: np.ndarray
    correct: np.ndarray
    num_nonsil: np.ndarray
    correct_nonsil: np.ndarray
    xent_sum: np.ndarray


def per_utterance_frame_scores(
    blocks: np.ndarray | torch.Tensor | Iterable[np.ndarray | torch.Tensor],
    pdf: np.ndarray,
    utt_offset: np.ndarray,
    sil_pdfs: Sequence[int] = (),
) -> FrameScores:
    """Score the outputs of a net against frame labels.

    `blocks`: logits or log posteriors (n, num_pdfs), numpy or torch on any device; one array, or an iterable of them
    that together hold the num_frames frames in order (cut anywhere). Each row is normalised with log-softmax, which
    leaves log posteriors as they are.
    `pdf` (num_frames,) labels, -1 where there is none; `utt_offset` (num_utts + 1,) as in feats.h5.

    Raises AsrKdError where frames and labels differ in number, a label is no output of the net, or the output at a
    labelled frame is not finite.
    """
    pdf, utt_offset = np.asarray(pdf, dtype=np.int64), np.asarray(utt_offset, dtype=np.int64)
    if utt_offset[0] != 0 or utt_offset[-1] != len(pdf) or np.any(np.diff(utt_offset) < 0):
        raise AsrKdError(f"utterance offsets do not divide the {len(pdf)} frames of the labels.")
    if isinstance(blocks, np.ndarray | torch.Tensor):
        blocks = [blocks]
    hit, nll, start = np.zeros(len(pdf), dtype=bool), np.zeros(len(pdf)), 0
    for block in blocks:
        for rows in torch.as_tensor(block).split(_CHUNK):
            labels = pdf[start : start + len(rows)]
            if len(labels) < len(rows):
                raise AsrKdError(f"the net's output has more frames than the {len(pdf)} labels.")
            part = slice(start, start + len(rows))
            hit[part], nll[part] = _score_rows(rows, labels)
            start += len(rows)
    if start != len(pdf):
        raise AsrKdError(f"the net's output has {start} frames but there are {len(pdf)} labels.")
    return _sum_by_utterance(hit, nll, pdf, utt_offset, sil_pdfs)


@torch.no_grad()
def _score_rows(rows: torch.Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) whether the largest output is the label, and (n,) -log posterior of the label; rows without one are 0."""
    num_pdfs = rows.shape[1]
    if len(labels) and not (labels.min() >= -1 and labels.max() < num_pdfs):
        raise AsrKdError(f"labels span {labels.min()}..{labels.max()}, the net has the outputs 0..{num_pdfs - 1}.")
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    target = torch.as_tensor(labels, device=rows.device)
    log_post = rows.log_softmax(dim=1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    labelled = labels >= 0
    nll = np.where(labelled, -log_post.cpu().numpy().astype(np.float64), 0.0)
    # One NaN or +inf in a row makes all of its log-softmax NaN, so looking at the label's entry is enough.
    if not np.isfinite(nll).all():
        raise AsrKdError("the net's output is NaN or infinite at a labelled frame.")
    return (rows.argmax(dim=1) == target).cpu().numpy() & labelled, nll


def _sum_by_utterance(
    hit: np.ndarray, nll: np.ndarray, pdf: np.ndarray, utt_offset: np.ndarray, sil_pdfs: Sequence[int]
) -> FrameScores:
    labelled = pdf >= 0
    nonsil = labelled & ~np.isin(pdf, np.asarray(sil_pdfs, dtype=np.int64))
    num_utts = len(utt_offset) - 1
    utt = np.repeat(np.arange(num_utts), np.diff(utt_offset))

    def count(which: np.ndarray) -> np.ndarray:
        return np.bincount(utt[which], minlength=num_utts)

    return FrameScores(
        num_frames=count(labelled),
        correct=count(hit),
        num_nonsil=count(nonsil),
        correct_nonsil=count(hit & nonsil),
        xent_sum=np.bincount(utt, weights=nll, minlength=num_utts),
    )
