"""The plain formula of the cross-entropy with soft targets, for comparison."""

import torch

from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy


def plain(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """The cross-entropy of every frame, (batch,), as one writes it for autograd."""
    log_q = (logits / temperature).log_softmax(dim=-1)
    if targets.pdf is None:
        return -(targets.prob * log_q).sum(dim=-1)
    top = -(targets.prob * log_q.gather(-1, targets.pdf)).sum(dim=-1)
    if targets.tail is None or targets.pdf.shape[1] == logits.shape[1]:
        return top
    return top - targets.tail * log_q.scatter(-1, targets.pdf, float("-inf")).logsumexp(dim=-1)


def summed(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """The sum over frames, as it is trained with."""
    return cross_entropy(logits, [Term(targets, logits.new_ones(len(logits)), temperature)])
