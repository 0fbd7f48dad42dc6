"""Checkpoints without pickle: one safetensors file, renamed into place, with a JSON header."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_path

NAME = "checkpoint.safetensors"


@dataclass
class Checkpoint:
    """The state of a run after a whole number of epochs; with seed and epoch all random numbers follow."""

    model: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    progress: dict[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors: `<parameter number>.<state name>`."""
    return {
        f"{number}.{key}": value
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Undo optimizer_tensors."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder`/checkpoint.safetensors atomically."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
        for part in ("model", "best", "optimizer")
        for name, tensor in getattr(checkpoint, part).items()
    }
    with atomic_path(folder / NAME) as temporary:
        save_file(tensors, temporary, metadata={"progress": json.dumps(checkpoint.progress)})


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None; raises AsrKdError for a damaged one."""
    path = folder / NAME
    if not path.exists():
        return None
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            for key in file.keys():  # noqa: SIM118 - not a dict
                part, name = key.split("/", 1)
                parts[part][name] = file.get_tensor(key)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise AsrKdError(f"{path}: damaged checkpoint ({error}); remove it to train from the beginning") from error
    return Checkpoint(**parts, progress=progress)
