"""The distillation loss, over one type of target: dense, or the k largest with the mass left over.

Hinton, Vinyals & Dean 2015, section 2, with weights that need not sum to one (as Distiller allows):

    hard_weight CE(y, softmax(z)) + soft_weight T² CE(p_T, softmax(z / T))

`matching` says what the soft term compares: soft_targets (cross-entropy at T), or logits (squared differences to the
teacher's logits; Bucila, Caruana & Niculescu-Mizil 2006), to which the former tends at high T (section 2.1).

`label_use` says what labels do: weighted (the loss above); conditional (the soft term where the teacher's best state is
the label, the hard term elsewhere; Meng et al. 2019, arXiv:1904.12399); swap (where the teacher is wrong, the label's
state and the teacher's best exchange their probabilities).
"""

import torch

from asr_kd.errors import AsrKdError
from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy, hard_targets


def logit_difference(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """Σ_j (z_j − v_j)² / (2 N) of every frame, (batch,), with both logits zero-meaned over the N states.

    v = T log p_T are the teacher's logits, up to the constant that zero-meaning removes; of an arithmetic mean they are
    those of the mean. Its gradient (z − v) / N is the limit of that of T² times the cross-entropy (equation 4). Logits
    whose p_T is below what its type holds are cut off there: in float16 at T log 2⁻²⁴ = −16.6 T, so that stored targets
    want a T of 5 or more. Raises AsrKdError for top-k targets, which do not tell all logits.
    """
    if targets.pdf is not None:
        raise AsrKdError("matching logits needs targets of all states; make them with --top-k null, or use --teachers")
    smallest = 2.0**-24 if targets.prob.dtype == torch.float16 else torch.finfo(torch.float32).tiny
    teacher = temperature * targets.prob.float().clamp(min=smallest).log()
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

    Of several nets: logits (num_nets, batch, num_pdfs), labels (num_nets, batch), targets of one net's rows after
    another's; the losses are (num_nets,).

    hard_weight None is 1 − soft_weight. The hard term is averaged over the frames that have a label, or its sum is
    divided by num_labelled, where these frames are part of a batch. With label_use="conditional" every frame has one
    term, of weight 1, and the weights are not looked at.
    """
    if label_use == "swap":
        targets = swap_where_wrong(targets, labels.flatten())
    if label_use == "conditional":
        follows_label = (labels >= 0) & (targets.best.view(labels.shape) != labels)
        hard, soft = (each / labels.shape[-1] for each in (follows_label.float(), (~follows_label).float()))
    else:
        hard_weight = 1.0 - soft_weight if hard_weight is None else hard_weight
        hard = _mean_over_labelled(labels, num_labelled) * hard_weight if hard_weight else None
        soft = None
        if soft_weight:
            soft = logits.new_full(labels.shape, soft_weight, dtype=torch.float32) / labels.shape[-1]
    loss, terms = logits.new_zeros(logits.shape[:-2], dtype=torch.float32), []
    if soft is not None and matching == "logits":
        differences = logit_difference(logits.flatten(0, -2), targets, temperature)
        loss = loss + (soft * differences.view(labels.shape)).sum(dim=-1)
    elif soft is not None:
        terms.append(Term(targets, soft.flatten() * temperature**2, temperature))
    if hard is not None:
        terms.append(Term(hard_targets(labels.flatten()), hard.flatten()))
    return loss + cross_entropy(logits, terms) if terms else loss


def _mean_over_labelled(labels: torch.Tensor, num_labelled: float | torch.Tensor | None) -> torch.Tensor:
    """Weights of the labels' shape that make a net's sum the mean over frames with a label, num_labelled if given."""
    labelled = labels >= 0
    return labelled / (labelled.sum(dim=-1, keepdim=True).clamp(min=1) if num_labelled is None else num_labelled)
