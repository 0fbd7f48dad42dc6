"""A layer of ReLUs in bfloat16 on a CPU: product, biases and ReLUs in one pass."""

import functools

import torch

from asr_kd.nnet.device import resolve_precision


@functools.cache
def has_fused() -> bool:
    """Whether there is oneDNN's operation, which torch.compile uses too; it refuses what a CPU would emulate."""
    is_multiplied = resolve_precision("auto", torch.device("cpu")) == torch.bfloat16
    return is_multiplied and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def rectified(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """max(x Wᵀ + b, 0), a new tensor: x (n, dim_in), weight (dim_out, dim_in), bias (dim_out,), all bfloat16 on a CPU.

    The same to the bit either way; a pass over the result, a quarter of a small layer's time, is saved where it can be.
    No gradient.
    """
    if has_fused():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
    return torch.addmm(bias, x, weight.t()).relu_()
