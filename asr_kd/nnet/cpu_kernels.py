"""Passes over rows of bfloat16 logits on a CPU, compiled by numba: softmaxes without a float32 copy in memory.

Processors that multiply bfloat16 do it so fast that PyTorch's passes over logits, each in float32 and through memory,
take as long as the products. Here a row is done while it is in the nearest cache. Where numba is not installed,
importing this raises AsrKdError.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from asr_kd.compiled import compiled
from asr_kd.nnet.device import rows_at_once

compiled_pass = functools.partial(compiled, fastmath={"reassoc", "contract", "nsz"})

_LOG2_E = np.float32(1.4426950408889634)
# 2^f = Σ (ln 2)^k / k! f^k, of which so many terms give float32's precision for |f| ≤ 1/2.
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    np.float32(np.log(2.0) ** k / factorial) for k, factorial in enumerate((1, 2, 6, 24, 120, 720, 5040), start=1)
)
# An order of the bits of floats as whole numbers: negative ones have all but their sign turned.
_SIGN, _OTHERS = np.int32(31), np.int32(0x7FFFFFFF)
# Values that are looked at together for one that is among the largest.
_LANES = 64
_INFINITY, _MINUS_INFINITY = np.int32(0x7F800000), np.int32(-0x7F800001)


@compiled_pass
def widen(row: np.ndarray, values: np.ndarray) -> tuple[bool, bool, np.float32]:
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


@compiled_pass
def exponentials(x: np.ndarray, shift: np.float32, scale: np.float32, q: np.ndarray, powers: np.ndarray) -> np.float32:
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


@compiled_pass
def _add_softmaxes(logits: np.ndarray, scale: np.float32, total: np.ndarray) -> bool:
    """See add_softmax; logits: as bits."""
    scratch = np.empty((3, logits.shape[1]), np.float32)
    x, q, powers = scratch[0], scratch[1], scratch[2]
    for row in range(len(logits)):
        is_number, _, largest = widen(logits[row], x)
        factor = np.float32(np.nan)
        if is_number and largest > np.float32(-np.inf):
            factor = np.float32(1) / exponentials(x, largest, scale, q, powers)
        sums = total[row]
        for j in range(len(q)):
            sums[j] += q[j] * factor
    return True


def add_softmax(total: torch.Tensor, logits: torch.Tensor, temperature: float) -> None:
    """Add softmax(logits / temperature) to `total` (n, num_pdfs) float32; NaN to a row with a NaN or plus infinity."""
    inputs, sums, scale = bits_of(logits.contiguous()), total.numpy(), np.float32(1 / temperature)
    all_in_threads(lambda rows: _add_softmaxes(inputs[rows], scale, sums[rows]), *logits.shape)


@compiled_pass
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
    """As x.topk(number) does with rows of (n, num_pdfs) float32, of equal values the first; None where one is NaN."""
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
