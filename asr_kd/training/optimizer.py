"""The optimiser, and the clipping of its gradients."""

import torch
from torch import nn

from asr_kd.config import DnnConfig
from asr_kd.nnet.model import FrameClassifier
from asr_kd.nnet.stacked import StackedNets


def make_optimizer(net: nn.Module, config: DnnConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum; weight decay on matrices only."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=True)


def clip_gradients(net: nn.Module, max_norm: float) -> None:
    """Scale all gradients down to an overall norm of at most max_norm: torch's clip_grad_norm_, bit for bit.

    On a CPU the pass over the gradients is saved where they are short enough; on a GPU asking would mean waiting.
    """
    norm = nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    if norm.is_cuda or not max_norm / (norm + 1e-6) >= 1.0:
        nn.utils.clip_grads_with_norm_(net.parameters(), max_norm, norm)


@torch.no_grad()
def clip_gradients_of_each(nets: StackedNets, max_norm: float) -> None:
    """Scale the gradients of each net down to an overall norm of at most max_norm, as clip_gradients does with one."""
    grads = [p.grad.view(nets.num_nets, -1) for p in nets.parameters()]
    norms = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad, dim=1) for grad in grads]), dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    if scale.is_cuda or not (scale == 1).all():
        for grad in grads:
            grad.mul_(scale[:, None])


@torch.no_grad()
def bound_norms(net: FrameClassifier | StackedNets, max_norm: float) -> None:
    """Scale the incoming weights of each hidden unit down to a norm of at most max_norm; biases and outputs are free.

    Hinton et al. 2012, arXiv:1207.0580: with dropout it allows high learning rates, where weight decay is no bound.
    """
    for layer in net.linear[:-1]:
        layer.weight.flatten(0, -2).renorm_(2, 0, max_norm)
