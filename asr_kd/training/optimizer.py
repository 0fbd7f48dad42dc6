"""The optimiser."""

import torch
from torch import nn

from asr_kd.config import DnnConfig
from asr_kd.errors import AsrKdError


def make_optimizer(net: nn.Module, config: DnnConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum; weight decay on matrices only. Raises AsrKdError for another name."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)
    raise AsrKdError(f"optimizer {config.optimizer!r}: choose adamw or sgd")
