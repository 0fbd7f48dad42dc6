"""A net as the list of steps that other programs' formats are written from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import TrainedNet, require_alike
from asr_kd.nnet.quantized import QuantizedLinear


class Affine(NamedTuple):
    """y = x weightᵀ + bias; weight: (dim_out, dim_in) float32, bias: (dim_out,) float32."""

    weight: np.ndarray
    bias: np.ndarray


class Relu(NamedTuple):
    """y = max(x, 0); dim: of both."""

    dim: int


def plain_layers(trained: TrainedNet) -> list[Affine | Relu]:
    """What a net computes between its window and its logits; dropout is nothing at recognition.

    Raises AsrKdError for a layer that the other formats have no name for.
    """
    steps: list[Affine | Relu] = []
    for layer in trained.net.layers:
        if isinstance(layer, nn.Linear):
            bias = np.zeros(layer.out_features, np.float32) if layer.bias is None else _array(layer.bias)
            steps.append(Affine(_array(layer.weight), bias))
        elif isinstance(layer, nn.ReLU):
            steps.append(Relu(len(steps[-1].bias)))
        elif isinstance(layer, QuantizedLinear):
            raise AsrKdError(
                f"a net in {layer.quantization.to} cannot be exported to ONNX or nnet1, which get float32; export it "
                "as --format model-dir, or the net that it was made from"
            )
        elif not isinstance(layer, nn.Dropout):
            raise AsrKdError(f"a layer of type {type(layer).__name__} cannot be exported")
    return steps


def require_exportable(nets: Sequence[TrainedNet]) -> None:
    """Raise AsrKdError unless all nets answer for all states, from the same windows."""
    require_alike(nets)
    if "specialist" in nets[0].labels:
        raise AsrKdError("a specialist answers beside its generalist alone; distil them into one net, and export that")


def _array(parameter: nn.Parameter) -> np.ndarray:
    return parameter.detach().cpu().float().numpy()
