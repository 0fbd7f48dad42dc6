"""Weights on disk: safetensors, no pickle anywhere."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_path


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write copies of `tensors` to `path` atomically; raises AsrKdError where the disk is full or not to be written."""
    # A copy of each: safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # which the umask gives, where safetensors lets the owner alone read
        try:
            save_file(copies, temporary, metadata=metadata)
            temporary.chmod(mode)
        except SafetensorError as error:  # its own kind of error for a full disk too
            raise AsrKdError(f"{path}: could not be written ({error})") from error


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor; uint16, by which GPUs can look up nothing, as int16 of the same bits."""
    return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)


def as_index(stored: torch.Tensor) -> torch.Tensor:
    """The whole numbers of a tensor from as_tensor, int64: of int16 those of uint16 that its bits are."""
    index = stored.long()
    if stored.dtype == torch.int16:
        index &= 0xFFFF
    return index
