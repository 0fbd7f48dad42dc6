"""The distillation loss, over one type of target: dense, or the k largest with the mass left over.

Hinton, Vinyals & Dean 2015, section 2, with weights that need not sum to one (as Distiller allows):

    hard_weight CE(y, softmax(z)) + soft_weight T² CE(p_T, softmax(z / T))

`matching` says what the soft term compares: soft_targets (cross-entropy at T), or logits (squared differences to the
teacher's logits; Bucila, Caruana & Niculescu-Mizil 2006), to which the former tends at high T (section 2.1).

`label_use` says what labels do: weighted (the loss above); conditional (the soft term where the teacher's best state is
the label, the hard term elsewhere; Meng et al. 2019, arXiv:1904.12399); swap (where the teacher is wrong, the label's
state and the teacher's best exchange their probabilities).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from asr_kd.errors import AsrKdError

# The smallest number above 0 that float16 targets hold; the logarithm of a 0 is taken there.
_SMALLEST = 2.0**-24


@dataclass(frozen=True)
class SoftBatch:
    """Soft targets of a batch of frames.

    prob: (batch, num_pdfs) where `pdf` is None (dense), else (batch, k), the targets of states `pdf` (batch, k) int64;
    tail: (batch,) the mass of all other states.
    """

    prob: torch.Tensor
    pdf: torch.Tensor | None = None
    tail: torch.Tensor | None = None

    @property
    def best(self) -> torch.Tensor:
        """The state that the teacher holds most likely, (batch,) int64."""
        best = self.prob.argmax(dim=-1)
        return best if self.pdf is None else self.pdf.gather(-1, best[:, None]).squeeze(-1)


def soft_cross_entropy(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """−Σ_j p_j log q_j of every frame, (batch,), with q = softmax(logits / temperature), in nats, without T².

    With the k largest targets: −Σ_{j∈top} p_j log q_j − tail · log Σ_{j∉top} q_j, so that no mass is lost and what the
    student gives to the other states in sum is right.
    """
    log_q = functional.log_softmax(logits.float() / temperature, dim=-1)
    if targets.pdf is None:
        return -(targets.prob.float() * log_q).sum(dim=-1)
    top = -(targets.prob.float() * log_q.gather(-1, targets.pdf)).sum(dim=-1)
    rest = log_q.scatter(-1, targets.pdf, float("-inf"))
    # Where k is all states there is no rest; its logsumexp is −inf, and its gradient must not become NaN.
    has_rest = targets.pdf.shape[-1] < logits.shape[-1]
    log_rest = rest.logsumexp(dim=-1) if has_rest else torch.zeros_like(top)
    return top - targets.tail.float() * log_rest


def logit_difference(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """Σ_j (z_j − v_j)² / (2 N) of every frame, (batch,), with both logits zero-meaned over the N states.

    v = T log p_T are the teacher's logits, up to the constant that zero-meaning removes; of an arithmetic mean they are
    those of the mean. Its gradient (z − v) / N is the limit of T² times soft_cross_entropy's (equation 4 of the paper).
    Raises AsrKdError for top-k targets, which do not tell all logits.
    """
    if targets.pdf is not None:
        raise AsrKdError("matching logits needs targets of all states; make them with --top-k null, or use --teachers")
    teacher = temperature * targets.prob.float().clamp(min=_SMALLEST).log()
    difference = logits.float() - teacher
    difference = difference - difference.mean(dim=-1, keepdim=True)
    return (difference**2).mean(dim=-1) / 2


def swap_where_wrong(targets: SoftBatch, labels: torch.Tensor) -> SoftBatch:
    """Targets whose largest entry is the label's: it and the wrong best exchange values; frames without label stay.

    Raises AsrKdError for top-k targets, where the label's state may be missing.
    """
    if targets.pdf is not None:
        raise AsrKdError("exchanging targets needs those of all states; make them with --top-k null, or use --teachers")
    best, label = targets.best[:, None], torch.where(labels >= 0, labels, targets.best)[:, None]
    prob = targets.prob.scatter(-1, best, targets.prob.gather(-1, label))
    return SoftBatch(prob.scatter(-1, label, targets.prob.gather(-1, best)))


def distillation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: SoftBatch,
    *,
    temperature: float,
    soft_weight: float,
    hard_weight: float | None = None,
    matching: str = "soft_targets",
    label_use: str = "weighted",
    num_labelled: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss above. labels: (batch,) int64, −1 where a frame has none (it then counts in the soft term alone).

    hard_weight None is 1 − soft_weight. The hard term is averaged over the frames that have a label, or its sum is
    divided by num_labelled, where these frames are part of a batch. With label_use="conditional" every frame has one
    term, of weight 1, and the weights are not looked at.
    """
    labelled = labels >= 0
    if label_use == "swap":
        targets = swap_where_wrong(targets, labels)

    def soft() -> torch.Tensor:
        if matching == "logits":
            return logit_difference(logits, targets, temperature)
        return temperature**2 * soft_cross_entropy(logits, targets, temperature)

    def hard() -> torch.Tensor:
        return functional.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="none")

    if label_use == "conditional":
        return torch.where(labelled & (targets.best != labels), hard(), soft()).mean()
    if hard_weight is None:
        hard_weight = 1.0 - soft_weight
    loss = logits.new_zeros((), dtype=torch.float32)
    if soft_weight:
        loss = loss + soft_weight * soft().mean()
    if hard_weight:
        num_labelled = labelled.sum().clamp(min=1) if num_labelled is None else num_labelled
        loss = loss + hard_weight * hard().sum() / num_labelled
    return loss
