"""Tensors in fewer bytes, bit for bit the same after reading: zeros left out, 4 bits for a small whole number.

A tensor NAME is stored as one of

    NAME                      as it is
    NAME/int4                 uint8: values from -8 to 7, two to a byte, the first in the low half
    NAME/live + NAME/values   uint8: a bit for each value that is not 0 (most significant first), and those values
    NAME/live + NAME/int4     the same, with such values

The form without zeros is taken where it is the smaller one.
"""

from collections.abc import Collection, Mapping

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]


def pack(tensors: Mapping[str, torch.Tensor], int4: Collection[str] = ()) -> Tensors:
    """What to store of `tensors`; those named in `int4` are of int8 and hold values from -8 to 7."""
    packed: Tensors = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        live = _is_live(values)
        whole = _pack_values(name, values, name in int4)
        sparse = _pack_values(name, values.flatten()[torch.from_numpy(live)], name in int4, "/values")
        sparse[f"{name}/live"] = torch.from_numpy(np.packbits(live))
        packed |= min(whole, sparse, key=lambda form: sum(part.nbytes for part in form.values()))
    return packed


def _is_live(values: torch.Tensor) -> np.ndarray:
    """(numel,) bool: where any bit is set, so that -0.0 is kept as well."""
    return values.flatten().view(torch.uint8).numpy().reshape(-1, values.itemsize).any(axis=1)


def _pack_values(name: str, values: torch.Tensor, int4: bool, ending: str = "") -> Tensors:
    if not int4:
        return {name + ending: values}
    flat = values.flatten().numpy().astype(np.uint8) & 15
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    return {f"{name}/int4": torch.from_numpy(flat[::2] | flat[1::2] << 4)}


def unpack(packed: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor], int4: Collection[str] = ()) -> Tensors:
    """Undo pack, given tensors of the same names, shapes and types; raises ValueError where it is none of `like`."""
    left, tensors = dict(packed), {}
    for name, wanted in like.items():
        live = left.pop(f"{name}/live", None)
        number = wanted.numel() if live is None else int(np.unpackbits(live.numpy(), count=wanted.numel()).sum())
        key = f"{name}/int4" if name in int4 else name if live is None else f"{name}/values"
        if key not in left:
            raise ValueError(f"{name} is missing")
        values = _unpack_int4(left.pop(key), number) if name in int4 else left.pop(key)
        if values.dtype != wanted.dtype or values.numel() != number:
            raise ValueError(f"{name}: {values.numel()} values of {values.dtype}, not {number} of {wanted.dtype}")
        if live is not None:
            mask = torch.from_numpy(np.unpackbits(live.numpy(), count=wanted.numel()).astype(bool))
            values = torch.zeros(wanted.numel(), dtype=wanted.dtype).masked_scatter_(mask, values)
        tensors[name] = values.view(wanted.shape)
    if left:
        raise ValueError(f"{min(left)} is no part of it")
    return tensors


def _unpack_int4(halves: torch.Tensor, number: int) -> torch.Tensor:
    if halves.dtype != torch.uint8 or halves.numel() != (number + 1) // 2:
        raise ValueError(f"{halves.numel()} bytes of {halves.dtype} do not hold {number} values of 4 bits")
    both = np.stack([halves.numpy() & 15, halves.numpy() >> 4], axis=1).flatten()[:number].astype(np.int8)
    return torch.from_numpy((both ^ 8) - 8)
