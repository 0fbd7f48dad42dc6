"""Cross-entropy of bfloat16 logits on a CPU: a row is read once, and all is done while it is in the nearest cache.

asr_kd/training/cross_entropy.py is the definition. PyTorch's dozen passes over a batch, each in float32 and through
memory, take two to ten times as long. With a = z / T and q = softmax(a), the gradient of a term is
weight / T · (q · (Σ p + tail) − p) of a state that has a target of its own, and of any other
q · weight / T · (Σ p + tail − tail / Σ_rest q).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from asr_kd.nnet.cpu_kernels import all_in_threads, bits_of, compiled_pass, exponentials, widen

if TYPE_CHECKING:
    from asr_kd.training.cross_entropy import Term

# A rest of the softmax below this is too small for its logarithm.
_TINY = np.float32(1e-30)


@compiled_pass
def _sum(values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(values)):
        total += values[j]
    return total


@compiled_pass
def _dense(x: np.ndarray, p: np.ndarray, scale: np.float32) -> tuple[np.float32, np.float32]:
    """Σ p and Σ p · x · scale."""
    mass, crossed = np.float32(0), np.float32(0)
    for j in range(len(x)):
        mass += p[j]
        crossed += p[j] * x[j]
    return mass, crossed * scale


@compiled_pass
def _narrow(values: np.ndarray, row: np.ndarray) -> None:
    """Put float32 `values` into bfloat16 `row`, as its bits, rounded to the nearest and to even ones."""
    bits = values.view(np.int32)
    for j in range(len(row)):
        bit = bits[j]
        row[j] = np.uint16(((bit + np.int32(0x7FFF) + ((bit >> np.int32(16)) & np.int32(1))) >> np.int32(16)) & 0xFFFF)


@compiled_pass
def _add_term(
    prob: np.ndarray,
    pdf: np.ndarray,
    tail: np.ndarray,
    weight: np.ndarray,
    scale: np.float32,
    is_first: bool,
    logits: np.ndarray,
    losses: np.ndarray,
    grad: np.ndarray,
) -> bool:
    """Add a term to losses (n,) float64 and grad (n, num_pdfs); False where a logit is not finite.

    logits, grad: bfloat16 as bits; prob: (n, k) float32, dense where pdf (n, k) int64 is of no length; tail: (n,) or
    of no length; scale: 1 / T.
    """
    num_pdfs, width = logits.shape[1], prob.shape[1]
    scratch = np.empty((3, num_pdfs), np.float32)
    x, q, powers = scratch[0], scratch[1], scratch[2]
    named = np.empty(width, np.float32)
    is_dense, has_tail = len(pdf) == 0, len(tail) > 0
    for row in range(len(logits)):
        _, is_finite, largest = widen(logits[row], x)
        if not is_finite:
            return False
        p, w = prob[row], weight[row]
        total = exponentials(x, largest, scale, q, powers)
        log_sum = largest * scale + np.log(total)
        if is_dense:
            mass, crossed = _dense(x, p, scale)
            losses[row] += w * (mass * log_sum - crossed)
            of_q, of_p = w * scale * mass / total, w * scale
            for j in range(num_pdfs):
                q[j] = q[j] * of_q - of_p * p[j]
        else:
            loss, mass, states = np.float32(0), np.float32(0), pdf[row]
            for n in range(width):
                named[n] = q[states[n]] / total
                loss += p[n] * (log_sum - x[states[n]] * scale)
                mass += p[n]
            of_q = mass / total
            if has_tail:
                mass += tail[row]
                for n in range(width):
                    q[states[n]] = np.float32(0)
                rest, log_rest, in_all = _sum(q), np.float32(0), np.float32(1)
                if rest < _TINY:  # far below the best: seen from the best of the rest
                    for n in range(width):
                        x[states[n]] = np.float32(-np.inf)
                    beside = np.float32(-np.inf)
                    for j in range(num_pdfs):
                        beside = max(beside, x[j])
                    exponentials(x, beside, scale, q, powers)
                    for n in range(width):
                        q[states[n]] = np.float32(0)
                    rest, in_all = _sum(q), np.exp((beside - largest) * scale)
                    log_rest = beside * scale + np.log(rest)
                else:
                    log_rest = largest * scale + np.log(rest)
                loss += tail[row] * (log_sum - log_rest)
                of_q = in_all * mass / total - tail[row] / rest
            losses[row] += w * loss
            of_q *= w * scale
            for j in range(num_pdfs):
                q[j] *= of_q
            for n in range(width):
                q[states[n]] = w * scale * named[n] * mass
            for n in range(width):
                q[states[n]] -= w * scale * p[n]
        if not is_first:
            widen(grad[row], x)
            for j in range(num_pdfs):
                q[j] += x[j]
        _narrow(q, grad[row])
    return True


def losses_and_gradient(logits: torch.Tensor, terms: Sequence["Term"]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Every row's loss, (rows,) float64, and the gradient of their sum, (rows, num_pdfs) bfloat16.

    logits: (rows, num_pdfs) bfloat16 on a CPU. None where one of them is not finite.
    """
    logits = logits.contiguous()
    losses, grad = torch.zeros(len(logits), dtype=torch.float64), torch.empty_like(logits)
    arrays = bits_of(logits), losses.numpy(), bits_of(grad)

    def add(rows: slice) -> bool:  # of dense targets no more are converted at a time than caches hold
        of_rows = [each[rows] for each in arrays]
        return all(_add_term(*_arrays(term, rows, logits.shape[1]), n == 0, *of_rows) for n, term in enumerate(terms))

    return (losses, grad) if all_in_threads(add, *logits.shape) else None


def _arrays(term: "Term", rows: slice, num_pdfs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """prob, pdf, tail, weight and 1 / T as _add_term takes them."""
    targets = term.targets.of(rows)
    pdf = np.empty((0, 0), np.int64) if targets.pdf is None else targets.pdf.contiguous().numpy()
    # Where every state is named there is no rest.
    has_tail = targets.pdf is not None and targets.tail is not None and targets.pdf.shape[1] < num_pdfs
    tail = targets.tail.float().contiguous().numpy() if has_tail else np.empty(0, np.float32)
    prob, weight = targets.prob.float().contiguous().numpy(), term.weight[rows].float().contiguous().numpy()
    return prob, pdf, tail, weight, np.float32(1 / term.temperature)
