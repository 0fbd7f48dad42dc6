"""Cross-entropy of bfloat16 logits on a CPU: a row is read once, and all is done while it is in the nearest cache.

asr_kd/training/cross_entropy.py is the definition, whose dozen passes over a batch, each in float32 and through memory,
take two to five times as long; asr_kd/nnet/cpu_kernels.py has the pass.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from asr_kd.nnet.cpu_kernels import Targets, add_cross_entropy, bits_of
from asr_kd.nnet.device import rows_at_once

if TYPE_CHECKING:
    from asr_kd.training.cross_entropy import SoftBatch, Term


def losses_and_gradient(logits: torch.Tensor, terms: Sequence["Term"]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Every row's loss, (rows,) float64, and the gradient of their sum, (rows, num_pdfs) bfloat16.

    logits: (rows, num_pdfs) bfloat16 on a CPU. None where one of them is not finite, and where targets are not of these
    rows and states, which the compiled pass would not notice.
    """
    if not all(_fits(term.targets, term.weight, *logits.shape) for term in terms):
        return None
    logits = logits.contiguous()
    losses, grad = torch.zeros(len(logits), dtype=torch.float64), torch.empty_like(logits)
    arrays = bits_of(logits), losses.numpy(), bits_of(grad)
    num_rows = rows_at_once(logits.device, logits.shape[1])  # of dense targets no more are converted than caches hold
    for begin in range(0, len(logits), num_rows):
        rows = slice(begin, begin + num_rows)
        of_rows = [each[rows] for each in arrays]
        for number, term in enumerate(terms):
            if not add_cross_entropy(_arrays(term, rows, logits.shape[1]), number == 0, *of_rows):
                return None
    return losses, grad


def _fits(targets: "SoftBatch", weight: torch.Tensor, num_rows: int, num_pdfs: int) -> bool:
    prob, pdf, tail = targets.prob, targets.pdf, targets.tail
    if weight.shape != (num_rows,) or (tail is not None and tail.shape != (num_rows,)):
        return False
    if pdf is None:
        return prob.shape == (num_rows, num_pdfs)
    if prob.shape != pdf.shape or prob.ndim != 2 or len(prob) != num_rows:
        return False
    return not pdf.numel() or bool(pdf.min() >= 0 and pdf.max() < num_pdfs)


def _arrays(term: "Term", rows: slice, num_pdfs: int) -> Targets:
    """A term's targets as add_cross_entropy takes them."""
    targets = term.targets.of(rows)
    pdf = np.empty((0, 0), np.int64) if targets.pdf is None else targets.pdf.long().contiguous().numpy()
    # Where every state is named there is no rest.
    has_tail = targets.pdf is not None and targets.tail is not None and targets.pdf.shape[1] < num_pdfs
    tail = targets.tail.detach().float().contiguous().numpy() if has_tail else np.empty(0, np.float32)
    prob, weight = (each.detach().float().contiguous().numpy() for each in (targets.prob, term.weight[rows]))
    return prob, pdf, tail, weight, np.float32(1 / term.temperature)
