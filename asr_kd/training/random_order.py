"""A random order of a billion frames in a second, in little more memory than its own, the same on every device."""

import torch

from asr_kd.training.augment import mixed_seed

_ROUNDS = 8
_AT_ONCE = 1 << 24  # numbers: temporaries of 128 MB
_MASK = (1 << 32) - 1


def random_order(number: int, seed: int, device: torch.device) -> torch.Tensor:
    """The numbers below `number` (at most 2^31) in an order that `seed` gives, (number,) int32 on `device`.

    A Feistel network (Luby & Rackoff 1988) permutes the numbers below the next power of 2, of which those below
    `number` are taken. Integers alone, so that unlike GPUs, or a GPU and a CPU, come to the same.
    """
    bits = max(2, (number - 1).bit_length())
    keys = [mixed_seed(seed, n) & _MASK for n in range(_ROUNDS)]
    order, filled = torch.empty(number, dtype=torch.int32, device=device), 0
    for begin in range(0, 1 << bits, _AT_ONCE):
        values = _permuted(torch.arange(begin, min(begin + _AT_ONCE, 1 << bits), device=device), bits, keys)
        values = values[values < number]
        order[filled : filled + len(values)] = values
        filled += len(values)
    return order


def _permuted(values: torch.Tensor, bits: int, keys: list[int]) -> torch.Tensor:
    """Each of values (n,) int64 below 2^bits for another: the two halves of its bits change each other in turn."""
    low = bits // 2
    for n, key in enumerate(keys):
        kept_bits, changed_bits = (low, bits - low) if n % 2 == 0 else (bits - low, low)
        kept, changed = values & ((1 << kept_bits) - 1), values >> kept_bits
        mixed = ((kept + key) * 0x9E3779B1) & _MASK
        mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA77) & _MASK
        mixed ^= mixed >> 13
        values = (kept << changed_bits) | ((changed ^ mixed) & ((1 << changed_bits) - 1))
    return values
