"""The distillation loss, over one type of target: dense, or the k largest with the mass left over.

Hinton, Vinyals & Dean 2015, section 2, with weights that need not sum to one (as Distiller allows):

    hard_weight CE(y, softmax(z)) + soft_weight T² CE(p_T, softmax(z / T))
"""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class SoftBatch:
    """Soft targets of a batch of frames.

    prob: (batch, num_pdfs) where `pdf` is None (dense), else (batch, k), the targets of states `pdf` (batch, k) int64;
    tail: (batch,) the mass of all other states.
    """

    prob: torch.Tensor
    pdf: torch.Tensor | None = None
    tail: torch.Tensor | None = None


def soft_cross_entropy(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """Mean over the batch of −Σ_j p_j log q_j with q = softmax(logits / temperature), in nats, without the factor T².

    With the k largest targets: −Σ_{j∈top} p_j log q_j − tail · log Σ_{j∉top} q_j, so that no mass is lost and what the
    student gives to the other states in sum is right.
    """
    log_q = functional.log_softmax(logits.float() / temperature, dim=-1)
    if targets.pdf is None:
        return -(targets.prob.float() * log_q).sum(dim=-1).mean()
    top = -(targets.prob.float() * log_q.gather(-1, targets.pdf)).sum(dim=-1)
    rest = log_q.scatter(-1, targets.pdf, float("-inf"))
    # Where k is all states there is no rest; its logsumexp is −inf, and its gradient must not become NaN.
    has_rest = targets.pdf.shape[-1] < logits.shape[-1]
    log_rest = rest.logsumexp(dim=-1) if has_rest else torch.zeros_like(top)
    return (top - targets.tail.float() * log_rest).mean()


def distillation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: SoftBatch,
    *,
    temperature: float,
    soft_weight: float,
    hard_weight: float | None = None,
) -> torch.Tensor:
    """The loss above. labels: (batch,) int64, −1 where a frame has none (it then counts in the soft term alone).

    hard_weight None is 1 − soft_weight. The hard term is averaged over the frames that have a label.
    """
    if hard_weight is None:
        hard_weight = 1.0 - soft_weight
    loss = logits.new_zeros((), dtype=torch.float32)
    if soft_weight:
        loss = loss + soft_weight * temperature**2 * soft_cross_entropy(logits, targets, temperature)
    if hard_weight:
        num_labelled = (labels >= 0).sum().clamp(min=1)
        hard = functional.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
        loss = loss + hard_weight * hard / num_labelled
    return loss
