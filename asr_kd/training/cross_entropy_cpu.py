"""Cross-entropy of bfloat16 logits on a CPU: a row is read once, and all is done while it is in the nearest cache.

asr_kd/training/cross_entropy.py is the definition. Beside products in bfloat16 its dozen passes over a batch, each in
float32 and through memory, would take a quarter of a step; compiled into one they take a fourth of that. With a = z / T
and q = softmax(a), the gradient of a term is weight / T · (q · (Σ p + tail) − p) of a state that has a target of its
own, and of any other q · weight / T · (Σ p + tail − tail / Σ_rest q).
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from asr_kd.compiled import compiled
from asr_kd.nnet.device import rows_at_once

if TYPE_CHECKING:
    from asr_kd.training.cross_entropy import Term

compiled_pass = functools.partial(compiled, fastmath={"reassoc", "contract", "nsz"})

_LOG2_E = np.float32(1.4426950408889634)
# 2^f = Σ (ln 2)^k / k! f^k, of which so many terms give float32's precision for |f| ≤ 1/2.
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    np.float32(np.log(2.0) ** k / factorial) for k, factorial in enumerate((1, 2, 6, 24, 120, 720, 5040), start=1)
)
# An order of the bits of floats as whole numbers: negative ones have all but their sign turned.
_SIGN, _OTHERS = np.int32(31), np.int32(0x7FFFFFFF)
_INFINITY, _MINUS_INFINITY = np.int32(0x7F800000), np.int32(-0x7F800001)
# A rest of the softmax below this is too small for its logarithm.
_TINY = np.float32(1e-30)


@compiled_pass
def _widen(row: np.ndarray, bits: np.ndarray) -> tuple[int, int]:
    """Put bfloat16 `row` into float32 `bits`, both as bits; returns the smallest and the largest in that order."""
    low, high = _OTHERS, np.int32(-_OTHERS)
    for j in range(len(row)):
        bit = np.int32(np.int32(row[j]) << np.int32(16))
        bits[j] = bit
        ordered = np.int32(bit ^ ((bit >> _SIGN) & _OTHERS))
        low = ordered if ordered < low else low
        high = ordered if ordered > high else high
    return low, high


@compiled_pass
def _exponentials(x: np.ndarray, shift: np.float32, scale: np.float32, q: np.ndarray, powers: np.ndarray) -> np.float32:
    """Put exp((x − shift) · scale), at most 1 and of at least 2^-126, into `q`; returns their sum. powers: scratch."""
    bits = powers.view(np.int32)
    factor = scale * _LOG2_E
    for j in range(len(x)):
        y = (x[j] - shift) * factor
        y = y if y > np.float32(-126) else np.float32(-126)
        whole = np.floor(y + np.float32(0.5))
        f = y - whole
        p = ((((((_C7 * f + _C6) * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + np.float32(1)
        q[j] = p
        bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    total = np.float32(0)
    for j in range(len(x)):
        value = q[j] * powers[j]
        q[j] = value
        total += value
    return total


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
    named, one = np.empty(width, np.float32), np.empty(1, np.float32)
    is_dense, has_tail = len(pdf) == 0, len(tail) > 0
    for row in range(len(logits)):
        low, high = _widen(logits[row], x.view(np.int32))
        if high >= _INFINITY or low <= _MINUS_INFINITY:
            return False
        one.view(np.int32)[0] = np.int32(high ^ ((high >> _SIGN) & _OTHERS))
        largest, p, w = one[0], prob[row], weight[row]
        total = _exponentials(x, largest, scale, q, powers)
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
                    _exponentials(x, beside, scale, q, powers)
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
            _widen(grad[row], x.view(np.int32))
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
    arrays = losses.numpy(), _bits(grad)

    def add(rows: slice) -> bool:
        of_rows = _bits(logits)[rows], *(each[rows] for each in arrays)
        return all(_add_term(*_arrays(term, rows, logits.shape[1]), n == 0, *of_rows) for n, term in enumerate(terms))

    number = min(torch.get_num_threads(), len(logits))
    # Of dense targets, which are converted first, no more at a time than caches hold.
    most = min(rows_at_once(logits.device, logits.shape[1]), -(-len(logits) // max(1, number)))
    blocks = [slice(begin, begin + most) for begin in range(0, len(logits), most)]
    done = map(add, blocks) if number < 2 else _helpers(number).map(add, blocks)
    return (losses, grad) if all(done) else None


@functools.lru_cache(maxsize=1)
def _helpers(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="cross-entropy")


def _bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy().view(np.uint16)


def _arrays(term: "Term", rows: slice, num_pdfs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """prob, pdf, tail, weight and 1 / T as _add_term takes them."""
    targets = term.targets.of(rows)
    pdf = np.empty((0, 0), np.int64) if targets.pdf is None else targets.pdf.contiguous().numpy()
    # Where every state is named there is no rest.
    has_tail = targets.pdf is not None and targets.tail is not None and targets.pdf.shape[1] < num_pdfs
    tail = targets.tail.float().contiguous().numpy() if has_tail else np.empty(0, np.float32)
    prob, weight = targets.prob.float().contiguous().numpy(), term.weight[rows].float().contiguous().numpy()
    return prob, pdf, tail, weight, np.float32(1 / term.temperature)
