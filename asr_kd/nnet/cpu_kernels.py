"""What a CPU that multiplies bfloat16 does between its products: each a single pass, compiled by numba.

All of them are in this file: what numba keeps on disk is made anew when the file of a function changes, not that of
another one that it calls.

Such products are so fast that PyTorch's passes over what lies between them, each in float32 and through memory, take as
long as they do. Here numbers are widened and narrowed where they are used, and a row is done while it is in the nearest
cache. Where numba is not installed, importing this raises AsrKdError.
"""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import prange, types
from numba.extending import intrinsic

from asr_kd.compiled import InThreads, compiled_in_threads, compiled_sum

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
# Numbers that a thread works on at a time, which a cache of its own holds.
_BLOCK = 1 << 14
_INFINITY, _MINUS_INFINITY = np.int32(0x7F800000), np.int32(-0x7F800001)


@intrinsic
def _as_float(_: Any, bits: Any) -> Any:
    """The float32 that has these int32's bits."""
    return types.float32(types.int32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], context.get_value_type(types.float32)
    )


@intrinsic
def _as_bits(_: Any, value: Any) -> Any:
    """The bits of a float32, as an int32."""
    return types.int32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], context.get_value_type(types.int32)
    )


@compiled_sum
def _wide(bits: np.uint16) -> np.float32:
    """The value of a bfloat16, of which these are the bits."""
    return _as_float(np.int32(bits) << np.int32(16))


@compiled_sum
def _narrow(value: np.float32) -> np.uint16:
    """The bits of `value` in bfloat16, rounded to the nearest and to even ones."""
    bits = _as_bits(value)
    return np.uint16(((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)) & 0xFFFF)


@compiled_sum
def _extremes(row: np.ndarray) -> tuple[bool, bool, np.float32]:
    """Of a bfloat16 row: whether none is NaN or plus infinity, whether none is minus infinity either; the largest."""
    low, high = _OTHERS, np.int32(-_OTHERS)
    for j in range(len(row)):
        bits = np.int32(np.int32(row[j]) << np.int32(16))
        ordered = np.int32(bits ^ ((bits >> _SIGN) & _OTHERS))
        low = ordered if ordered < low else low
        high = ordered if ordered > high else high
    is_number = high < _INFINITY and low >= _MINUS_INFINITY
    return is_number, is_number and low > _MINUS_INFINITY, _as_float(np.int32(high ^ ((high >> _SIGN) & _OTHERS)))


@compiled_sum
def _exponentials(row: np.ndarray, shift: np.float32, scale: np.float32, q: np.ndarray) -> np.float32:
    """Put exp((x − shift) · scale), at most 1 and of at least 2^-126, into `q`; returns their sum. row: bfloat16 x."""
    factor, total = scale * _LOG2_E, np.float32(0)
    for j in range(len(row)):
        y = (_wide(row[j]) - shift) * factor
        y = y if y > np.float32(-126) else np.float32(-126)
        whole = np.floor(y + np.float32(0.5))
        f = y - whole
        value = ((((((_C7 * f + _C6) * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + np.float32(1)
        value *= _as_float((np.int32(whole) + np.int32(127)) << np.int32(23))
        q[j] = value
        total += value
    return total


@compiled_sum
def _add_softmaxes(logits: np.ndarray, scale: np.float32, total: np.ndarray) -> None:
    """See add_softmax; logits: as bits."""
    q = np.empty(logits.shape[1], np.float32)
    for row in range(len(logits)):
        is_number, _, largest = _extremes(logits[row])
        factor = np.float32(np.nan)
        if is_number and largest > np.float32(-np.inf):
            factor = np.float32(1) / _exponentials(logits[row], largest, scale, q)
        sums = total[row]
        for j in range(len(q)):
            sums[j] += q[j] * factor


@compiled_in_threads
def _add_all_softmaxes(logits: np.ndarray, scale: np.float32, total: np.ndarray, size: int) -> None:
    for block in prange(-(-len(logits) // size)):
        rows = slice(block * size, (block + 1) * size)
        _add_softmaxes(logits[rows], scale, total[rows])


def add_softmax(total: torch.Tensor, logits: torch.Tensor, temperature: float) -> None:
    """Add softmax(logits / temperature) to `total` (n, num_pdfs) float32; NaN to a row with a NaN or plus infinity."""
    scale, size = np.float32(1 / temperature), _rows_of_block(logits.shape[1])
    in_threads(_add_all_softmaxes, bits_of(logits.contiguous()), scale, total.numpy(), size)


# A rest of the softmax below this is too small for its logarithm.
_TINY = np.float32(1e-30)
# In bfloat16: minus zero, and minus infinity, which is the last of the negative numbers' bits.
_MINUS_ZERO, _NO_LOGIT = np.uint16(0x8000), np.uint16(0xFF80)


@compiled_sum
def _sum(values: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(values)):
        total += values[j]
    return total


@compiled_sum
def _dense(x: np.ndarray, shift: np.float32, p: np.ndarray, scale: np.float32) -> tuple[np.float32, np.float32]:
    """Σ p and Σ p · (x − shift) · scale. x: bfloat16."""
    mass, crossed = np.float32(0), np.float32(0)
    for j in range(len(x)):
        mass += p[j]
        crossed += p[j] * (_wide(x[j]) - shift)
    return mass, crossed * scale


# prob, pdf, tail, weight and scale of add_cross_entropy.
Targets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.float32]


@compiled_sum
def _add_cross_entropy(
    targets: Targets, is_first: bool, logits: np.ndarray, losses: np.ndarray, grad: np.ndarray
) -> bool:
    """See add_cross_entropy."""
    prob, pdf, tail, weight, scale = targets
    num_pdfs, width = logits.shape[1], prob.shape[1]
    q, named = np.empty(num_pdfs, np.float32), np.empty(width, np.float32)
    is_dense, has_tail = len(pdf) == 0, len(tail) > 0
    for row in range(len(logits)):
        x = logits[row]
        _, is_finite, largest = _extremes(x)
        if not is_finite:
            return False
        p, w = prob[row], weight[row]
        total = _exponentials(x, largest, scale, q)
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
                loss += p[n] * (log_sum - (_wide(x[states[n]]) - largest) * scale)
                mass += p[n]
            of_q = mass / total
            if has_tail:
                mass += tail[row]
                for n in range(width):
                    q[states[n]] = np.float32(0)
                rest, log_rest, in_all = _sum(q), np.float32(0), np.float32(1)
                if rest < _TINY:  # far below the best: seen from the best of the rest
                    others = x.copy()
                    for n in range(width):
                        others[states[n]] = _NO_LOGIT
                    _, _, beside = _extremes(others)
                    _exponentials(others, beside, scale, q)
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
        of_row = grad[row]
        if is_first:
            for j in range(num_pdfs):
                of_row[j] = _narrow(q[j])
        else:
            for j in range(num_pdfs):
                of_row[j] = _narrow(q[j] + _wide(of_row[j]))
    return True


@compiled_in_threads
def _add_all_cross_entropies(
    targets: Targets, is_first: bool, logits: np.ndarray, losses: np.ndarray, grad: np.ndarray, size: int
) -> bool:
    prob, pdf, tail, weight, scale = targets
    num_blocks = -(-len(logits) // size)
    are_finite = np.ones(num_blocks, np.bool_)
    for block in prange(num_blocks):
        rows = slice(block * size, (block + 1) * size)
        part = prob[rows], pdf[rows], tail[rows], weight[rows], scale
        are_finite[block] = _add_cross_entropy(part, is_first, logits[rows], losses[rows], grad[rows])
    return are_finite.all()


def add_cross_entropy(
    targets: Targets, is_first: bool, logits: np.ndarray, losses: np.ndarray, grad: np.ndarray
) -> bool:
    """Add a term of asr_kd/training/cross_entropy.py to losses (n,) float64 and grad; False where a logit is no number.

    logits, grad: (n, num_pdfs) bfloat16 as bits; prob: (n, k) float32, dense where pdf (n, k) int64 is of no length;
    tail: (n,) or of no length; scale: 1 / T. With a = z / T and q = softmax(a), the gradient is weight / T times
    q · (Σ p + tail) − p of a state that has a target of its own, and q · (Σ p + tail − tail / Σ_rest q) of any other.
    """
    size = _rows_of_block(logits.shape[1])
    return in_threads(_add_all_cross_entropies, targets, is_first, logits, losses, grad, size)


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


@compiled_in_threads
def _all_top_k(x: np.ndarray, top: np.ndarray, place: np.ndarray, size: int) -> bool:
    num_blocks = -(-len(x) // size)
    are_numbers = np.ones(num_blocks, np.bool_)
    for block in prange(num_blocks):
        rows = slice(block * size, (block + 1) * size)
        are_numbers[block] = _top_k(x[rows], top[rows], place[rows])
    return are_numbers.all()


def top_k(x: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """As x.topk(number) does with rows of (n, num_pdfs) float32, of equal values the first.

    None where one is NaN, and where PyTorch is the faster one or has something to say.
    """
    if x.ndim != 2 or x.requires_grad or not 1 <= number <= min(_MOST, x.shape[1] // 20):
        return None
    top, place = torch.empty(len(x), number), torch.empty(len(x), number, dtype=torch.int64)
    arrays = x.contiguous().numpy(), top.numpy(), place.numpy()
    return (top, place) if in_threads(_all_top_k, *arrays, _rows_of_block(x.shape[1])) else None


@compiled_sum
def _relu_backward(grad: np.ndarray, result: np.ndarray, sums: np.ndarray) -> None:
    for row in range(len(grad)):
        of_grad, of_result = grad[row], result[row]
        for j in range(len(sums)):
            value = of_grad[j] if of_result[j] != 0 else np.uint16(0)
            of_grad[j] = value
            sums[j] += _wide(value)


@compiled_in_threads
def _all_relu_backward(grad: np.ndarray, result: np.ndarray, sums: np.ndarray, size: int) -> None:
    for block in prange(len(sums)):
        rows = slice(block * size, (block + 1) * size)
        _relu_backward(grad[rows], result[rows], sums[block])


def relu_backward_(grad: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Set `grad` to 0 where ReLUs, or dropout after them, made a 0 of `result`; returns its sum over rows.

    grad, result: contiguous (n, dim) bfloat16; the sum is (dim,) float32, for biases.
    """
    sums, size = _sums(grad)
    in_threads(_all_relu_backward, bits_of(grad), bits_of(result), sums, size)
    return torch.from_numpy(sums.sum(axis=0))


@compiled_sum
def _add_rows(x: np.ndarray, sums: np.ndarray) -> None:
    for row in range(len(x)):
        values = x[row]
        for j in range(len(sums)):
            sums[j] += _wide(values[j])


@compiled_in_threads
def _add_all_rows(x: np.ndarray, sums: np.ndarray, size: int) -> None:
    for block in prange(len(sums)):
        _add_rows(x[block * size : (block + 1) * size], sums[block])


def sum_over_rows(x: torch.Tensor) -> torch.Tensor:
    """Of a contiguous (n, dim) bfloat16 tensor: (dim,) float32."""
    sums, size = _sums(x)
    in_threads(_add_all_rows, bits_of(x), sums, size)
    return torch.from_numpy(sums.sum(axis=0))


def _sums(x: torch.Tensor) -> tuple[np.ndarray, int]:
    """Zeros for the sum of each block's rows of `x`, and how many rows it has: whatever the number of threads."""
    size = _rows_of_block(x.shape[1])
    return np.zeros((-(-len(x) // size), x.shape[1]), np.float32), size


@compiled_sum
def _sum_of_squares(x: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(x)):
        value = _wide(x[j])
        total += value * value
    return total


@compiled_in_threads
def _all_sums_of_squares(x: np.ndarray, sums: np.ndarray) -> None:
    for block in prange(len(sums)):
        sums[block] = _sum_of_squares(x[block * _BLOCK : (block + 1) * _BLOCK])


def sum_of_squares(x: torch.Tensor) -> float:
    """Of all values of a contiguous bfloat16 tensor."""
    sums = np.empty(-(-x.numel() // _BLOCK), np.float64)
    in_threads(_all_sums_of_squares, bits_of(x).reshape(-1), sums)
    return float(sums.sum())


class AdamW(NamedTuple):
    """Numbers of a step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), as numpy.float32.

    scale: of gradients; decay: 1 − rate · weight decay; rate: over 1 − beta1^step; correction: 1 / √(1 − beta2^step).
    """

    scale: np.float32
    beta1: np.float32
    beta2: np.float32
    epsilon: np.float32
    decay: np.float32
    rate: np.float32
    correction: np.float32

    @classmethod
    def of(cls, step: float, scale: float, group: Mapping[str, Any]) -> "AdamW":
        """Of step number `step`, from 1; group: of a torch.optim.AdamW."""
        (beta1, beta2), rate = group["betas"], group["lr"]
        numbers = (scale, beta1, beta2, group["eps"], 1 - rate * group["weight_decay"])
        return cls(*map(np.float32, (*numbers, rate / (1 - beta1**step), (1 - beta2**step) ** -0.5)))


@compiled_sum
def _adamw(
    weight: np.ndarray, grad: np.ndarray, mean: np.ndarray, square: np.ndarray, copy: np.ndarray, numbers: AdamW
) -> None:
    scale, beta1, beta2, epsilon, decay, rate, correction = numbers
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    for j in range(len(weight)):
        value = _wide(grad[j]) * scale
        first, second = mean[j] * beta1 + rest1 * value, square[j] * beta2 + rest2 * value * value
        mean[j], square[j] = first, second
        weight[j] = weight[j] * decay - rate * first / (np.sqrt(second) * correction + epsilon)
        copy[j] = _narrow(weight[j])


@compiled_in_threads
def _adamw_of_all(
    weight: np.ndarray, grad: np.ndarray, mean: np.ndarray, square: np.ndarray, copy: np.ndarray, numbers: AdamW
) -> None:
    for block in prange(-(-len(weight) // _BLOCK)):
        part = slice(block * _BLOCK, (block + 1) * _BLOCK)
        _adamw(weight[part], grad[part], mean[part], square[part], copy[part], numbers)


def adamw(
    weight: torch.Tensor,
    grad: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    copy: torch.Tensor,
    numbers: AdamW,
) -> None:
    """A step of float32 `weight` and its moments, and `copy`, the weight in bfloat16; all of one shape, contiguous.

    grad: bfloat16.
    """
    of_weight, of_mean, of_square = (each.detach().numpy().reshape(-1) for each in (weight, mean, square))
    of_grad, of_copy = (bits_of(each).reshape(-1) for each in (grad, copy))
    in_threads(_adamw_of_all, of_weight, of_grad, of_mean, of_square, of_copy, numbers)


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous bfloat16 tensor."""
    return tensor.detach().view(torch.int16).numpy().view(np.uint16)


def _rows_of_block(row_size: int) -> int:
    return max(1, _BLOCK // row_size)


# Of numba's ways to have threads, one ends the process where two of Python's threads ask for them at once.
_LOCK = threading.Lock()


def in_threads(kernel: InThreads, *arguments: Any) -> Any:
    """What `kernel` returns, done by as many threads as PyTorch has."""
    wanted = torch.get_num_threads()
    number = min(wanted, numba.config.NUMBA_NUM_THREADS)
    if number == 1:
        return kernel.alone(*arguments)
    with _LOCK:
        numba.set_num_threads(number)
        result = kernel.together(*arguments)
    if torch.get_num_threads() != wanted:  # numba's first threads take all cores, for PyTorch too
        torch.set_num_threads(wanted)
    return result
