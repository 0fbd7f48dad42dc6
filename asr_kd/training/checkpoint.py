"""Checkpoints without pickle: one safetensors file, renamed into place, with a JSON header."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from asr_kd.errors import AsrKdError
from asr_kd.store.tensors import save_tensors

NAME = "checkpoint.safetensors"
FORMAT = 2

Tensors = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """A run at one moment: tensors in named parts (the last words of their names), and the rest as JSON has it."""

    parts: dict[str, Tensors]
    progress: dict[str, Any]


def snapshot(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Copies of all weights and of the optimiser's state: `model/NAME`, `optimizer/PARAMETER NUMBER.STATE NAME`."""
    tensors = {f"model/{name}": tensor for name, tensor in net.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}.{key}": value for key, value in state.items() if value is not None}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def restore(net: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Undo snapshot; `tensors` stay as they are."""
    weights: Tensors = {}
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        part, key = name.split("/", 1)
        if part == "model":
            weights[key] = tensor
        else:
            number, key = key.split(".", 1)
            # The optimiser works on what it is given, in place.
            state.setdefault(int(number), {})[key] = tensor.clone()
    net.load_state_dict(weights)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, checkpoint: Checkpoint, name: str = NAME) -> None:
    """Write `folder`/`name` atomically."""
    tensors = {f"{part}/{key}": tensor for part, named in checkpoint.parts.items() for key, tensor in named.items()}
    progress = {"format": FORMAT, **checkpoint.progress}
    save_tensors(folder / name, tensors, {"progress": json.dumps(progress)})


def load_checkpoint(folder: Path, name: str = NAME) -> Checkpoint | None:
    """The checkpoint in `folder`, or None, also where another version left it; raises AsrKdError for a damaged one."""
    path = folder / name
    if not path.exists():
        return None
    parts: dict[str, Tensors] = {}
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            if progress.get("format") != FORMAT:
                return None
            for key in file.keys():  # noqa: SIM118 - not a dict
                part, rest = key.split("/", 1)
                parts.setdefault(part, {})[rest] = file.get_tensor(key)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise AsrKdError(f"{path}: damaged checkpoint ({error}); remove it to train from the beginning") from error
    return Checkpoint(parts, progress)
