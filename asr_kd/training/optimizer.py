"""The optimiser and its learning rate, both functions of the step alone, so that a resumed run is the same run."""

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


def learning_rate(step: int, num_steps: int, config: DnnConfig) -> float:
    """Linear warm-up to the peak, then linear decay to final_learning_rate_ratio of it at the last step."""
    warmup = min(config.warmup_steps, num_steps // 2)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup - 1, 1)
    return config.learning_rate * (1.0 - (1.0 - config.final_learning_rate_ratio) * progress)
