"""Passes over rows of bfloat16 logits on a CPU, compiled by numba: softmaxes without a float32 copy in memory.

All of them are in this file: what numba keeps on disk is made anew when the file of a function changes, not that of
another one that it calls.

Processors that multiply bfloat16 do it so fast that PyTorch's passes over logits, each in float32 and through memory,
take as long as the products. Here a row is done while it is in the nearest cache. Where numba is not installed,
importing this raises AsrKdError.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from asr_kd.compiled import compiled_sum
from asr_kd.nnet.device import rows_at_once

_LOG2_E = np.float32(1.4426950408889634)
# 2^f = Σ (ln 2)^k / k! f^k, of which so many terms give float32's precision for |f| ≤ 1/2.
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    np.float32(np.log(2.0) ** k / factorial) for k, factorial in enumerate((1, 2, 6, 24, 120, 720, 5040), start=1)
)
# An order of the bits of floats as whole numbers: negative ones have all but their sign turned.
_SIGN, _OTHERS = np.int32(31), np.int32(0x7FFFFFFF)
# Values that are looked at together for one that is among the largest.
_LANES = 64
# So many are found by insertion, at most.
_MOST = 128
_INFINITY, _MINUS_INFINITY = np.int32(0x7F800000), np.int32(-0x7F800001)


@compiled_sum
def _widen(row: np.ndarray, values: np.ndarray) -> tuple[bool, bool, np.float32]:
    """Put bfloat16 `row`, as bits, into float32 `values`.

    Returns whether none is NaN or plus infinity, whether none is minus infinity either, and the largest.
    """
    bits, largest = values.view(np.int32), np.empty(1, np.int32)
    low, high = _OTHERS, np.int32(-_OTHERS)
    for j in range(len(row)):
        bit = np.int32(np.int32(row[j]) << np.int32(16))
        bits[j] = bit
        ordered = np.int32(bit ^ ((bit >> _SIGN) & _OTHERS))
        low = ordered if ordered < low else low
        high = ordered if ordered > high else high
    largest[0] = high ^ ((high >> _SIGN) & _OTHERS)
    is_number = high < _INFINITY and low >= _MINUS_INFINITY
    return is_number, is_number and low > _MINUS_INFINITY, largest.view(np.float32)[0]


@compiled_sum
def _exponentials(x: np.ndarray, shift: np.float32, scale: np.float32, q: np.ndarray, powers: np.ndarray) -> np.float32:
    """Put exp((x − shift) · scale), at most 1 and of at least 2^-126, into `q`; returns their sum. powers: scratch."""
    bits = powers.view(np.int32)
    factor = scale * _LOG2_E
    for j in range(len(x)):
        y = (x[j] - shift) * factor
        y = y if y > np.float32(-126) else np.float32(-126)
        whole = np.floor(y + np.float32(0.5))
        f = y - whole
        q[j] = ((((((_C7 * f + _C6) * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + np.float32(1)
        bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    total = np.float32(0)
    for j in range(len(x)):
        value = q[j] * powers[j]
        q[j] = value
        total += value
    return total


@compiled_sum
def _add_softmaxes(logits: np.ndarray, scale: np.float32, total: np.ndarray) -> bool:
    """See add_softmax; logits: as bits."""
    scratch = np.empty((3, logits.shape[1]), np.float32)
    x, q, powers = scratch[0], scratch[1], scratch[2]
    for row in range(len(logits)):
        is_number, _, largest = _widen(logits[row], x)
        factor = np.float32(np.nan)
        if is_number and largest > np.float32(-np.inf):
            factor = np.float32(1) / _exponentials(x, largest, scale, q, powers)
        sums = total[row]
        for j in range(len(q)):
            sums[j] += q[j] * factor
    return True


def add_softmax(total: torch.Tensor, logits: torch.Tensor, temperature: float) -> None:
    """Add softmax(logits / temperature) to `total` (n, num_pdfs) float32; NaN to a row with a NaN or plus infinity."""
    inputs, sums, scale = bits_of(logits.contiguous()), total.numpy(), np.float32(1 / temperature)
    all_in_threads(lambda rows: _add_softmaxes(inputs[rows], scale, sums[rows]), *logits.shape)


# A rest of the softmax below this is too small for its logarithm.
_TINY = np.float32(1e-30)


@compiled_sum
def _sum(values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(values)):
        total += values[j]
    return total


@compiled_sum
def _dense(x: np.ndarray, shift: np.float32, p: np.ndarray, scale: np.float32) -> tuple[np.float32, np.float32]:
    """Σ p and Σ p · (x − shift) · scale."""
    mass, crossed = np.float32(0), np.float32(0)
    for j in range(len(x)):
        mass += p[j]
        crossed += p[j] * (x[j] - shift)
    return mass, crossed * scale


@compiled_sum
def _narrow(values: np.ndarray, row: np.ndarray) -> None:
    """Put float32 `values` into bfloat16 `row`, as its bits, rounded to the nearest and to even ones."""
    bits = values.view(np.int32)
    for j in range(len(row)):
        bit = bits[j]
        row[j] = np.uint16(((bit + np.int32(0x7FFF) + ((bit >> np.int32(16)) & np.int32(1))) >> np.int32(16)) & 0xFFFF)


@compiled_sum
def add_cross_entropy(
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
    """Add a term of asr_kd/training/cross_entropy.py to losses (n,) float64 and grad; False where a logit is no number.

    logits, grad: (n, num_pdfs) bfloat16 as bits; prob: (n, k) float32, dense where pdf (n, k) int64 is of no length;
    tail: (n,) or of no length; scale: 1 / T. With a = z / T and q = softmax(a), the gradient is weight / T times
    q · (Σ p + tail) − p of a state that has a target of its own, and q · (Σ p + tail − tail / Σ_rest q) of any other.
    """
    num_pdfs, width = logits.shape[1], prob.shape[1]
    scratch = np.empty((3, num_pdfs), np.float32)
    x, q, powers = scratch[0], scratch[1], scratch[2]
    named = np.empty(width, np.float32)
    is_dense, has_tail = len(pdf) == 0, len(tail) > 0
    for row in range(len(logits)):
        _, is_finite, largest = _widen(logits[row], x)
        if not is_finite:
            return False
        p, w = prob[row], weight[row]
        total = _exponentials(x, largest, scale, q, powers)
        log_sum = np.log(total)  # above the largest, as all that follows
        if is_dense:
            mass, crossed = _dense(x, largest, p, scale)
            losses[row] += w * (mass * log_sum - crossed)
            of_q, of_p = w * scale * mass / total, w * scale
            for j in range(num_pdfs):
                q[j] = q[j] * of_q - of_p * p[j]
        else:
            loss, mass, states = np.float32(0), np.float32(0), pdf[row]
            for n in range(width):
                named[n] = q[states[n]] / total
                loss += p[n] * (log_sum - (x[states[n]] - largest) * scale)
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
                    log_rest = (beside - largest) * scale + np.log(rest)
                else:
                    log_rest = np.log(rest)
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
            _widen(grad[row], x)
            for j in range(num_pdfs):
                q[j] += x[j]
        _narrow(q, grad[row])
    return True


@compiled_sum
def _top_k(x: np.ndarray, top: np.ndarray, place: np.ndarray) -> bool:
    """See top_k; False where a value is NaN."""
    top_k = top.shape[1]
    for row in range(len(x)):
        values, best, where = x[row], top[row], place[row]
        best[:] = -np.inf
        found, least, zero, one = 0, np.float32(-np.inf), np.float32(0), np.float32(1)
        num_nan = zero  # counted as floats, of which a processor adds up many at once
        for begin in range(0, len(values), _LANES):
            block = values[begin : begin + _LANES]
            num_larger = zero
            for j in range(len(block)):
                num_larger += one if block[j] > least else zero
                num_nan += one if block[j] != block[j] else zero
            if found == top_k and num_larger == zero:
                continue
            for j in range(len(block)):
                value = block[j]
                if found == top_k and not value > least:
                    continue
                slot = found if found < top_k else top_k - 1
                while slot > 0 and best[slot - 1] < value:
                    best[slot], where[slot] = best[slot - 1], where[slot - 1]
                    slot -= 1
                best[slot], where[slot] = value, begin + j
                found = min(found + 1, top_k)
                least = best[top_k - 1] if found == top_k else least
        if num_nan > zero:
            return False
    return True


def top_k(x: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """As x.topk(number) does with rows of (n, num_pdfs) float32, of equal values the first.

    None where one is NaN, and where PyTorch is the faster one or has something to say.
    """
    if x.ndim != 2 or x.requires_grad or not 1 <= number <= min(_MOST, x.shape[1] // 20):
        return None
    top, place = torch.empty(len(x), number), torch.empty(len(x), number, dtype=torch.int64)
    arrays = x.contiguous().numpy(), top.numpy(), place.numpy()
    found = all_in_threads(lambda rows: _top_k(*(each[rows] for each in arrays)), *x.shape)
    return (top, place) if found else None


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous bfloat16 tensor."""
    return tensor.detach().view(torch.int16).numpy().view(np.uint16)


def all_in_threads(work: Callable[[slice], bool], num_rows: int, row_size: int) -> bool:
    """Whether `work` said yes of all rows, of some that a cache holds at a time, in as many threads as PyTorch has."""
    number = max(1, min(torch.get_num_threads(), num_rows))
    most = min(rows_at_once(torch.device("cpu"), row_size), -(-num_rows // number))
    blocks = [slice(begin, begin + most) for begin in range(0, num_rows, max(1, most))]
    return all(map(work, blocks) if number == 1 else _helpers(number).map(work, blocks))


@functools.lru_cache(maxsize=1)
def _helpers(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="rows")
