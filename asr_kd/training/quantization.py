"""Quantization-aware training (Jacob et al. 2018, arXiv:1712.05877), by torchao's quantizers.

While it is trained a net computes with rounded weights, and int8 with rounded activations, in float32; gradients pass
rounding as if it were not there. Weights round as torchao's IntxFakeQuantizer has it, symmetrically; activations
between moving averages of their extremes, which are frozen in evaluation.
"""

import logging
from types import SimpleNamespace

import torch
from torch import nn

from asr_kd.errors import AsrKdError, install_hint
from asr_kd.nnet.model import FrameClassifier
from asr_kd.nnet.quantized import LEVELS, Quantization, QuantizedLinear

# The smallest scale: float16 has no smaller one of full precision, and weights that are all 0 need one too.
SMALLEST_SCALE = 2.0**-14


def prepare(net: FrameClassifier, quantization: Quantization) -> None:
    """Let `net` compute as its quantized form will; its weights stay the float32 parameters that they are.

    Raises AsrKdError where torchao is missing, or the layers' sizes do not fit.
    """
    torchao = _torchao()
    for number, layer in enumerate(net.layers):
        if isinstance(layer, nn.Linear):
            net.layers[number] = torchao.FakeQuantizedLinear.from_linear(
                layer, weight_config=_weight_config(torchao, quantization, layer.in_features)
            )
            if quantization.to == "int8":
                net.layers[number].activation_fake_quantizer = torchao.Activations(
                    quant_min=0, quant_max=LEVELS, dtype=torch.uint8
                )


def _weight_config(torchao: SimpleNamespace, quantization: Quantization, in_features: int) -> object:
    group = quantization.group_of(in_features)
    if quantization.to == "int8":
        return torchao.IntxFakeQuantizeConfig(torch.int8, "per_channel", eps=SMALLEST_SCALE)
    return torchao.IntxFakeQuantizeConfig(
        torch.int4, group_size=group, scale_precision=torch.float16, eps=SMALLEST_SCALE
    )


@torch.no_grad()
def quantized(net: FrameClassifier, quantization: Quantization) -> FrameClassifier:
    """The net of whole numbers that a net trained after `prepare` computed as, on its device."""
    made = FrameClassifier(net.architecture, quantization)
    for ours, trained in zip(made.linear, net.linear, strict=True):
        _fill(ours, trained)
    return made.to(net.linear[0].weight.device)


def _fill(ours: QuantizedLinear, trained: nn.Linear) -> None:
    quantizer = trained.weight_fake_quantizer
    quantizer(trained.weight)  # finds the scales
    scale = quantizer.scale
    by_group = trained.weight.view(*scale.shape, -1)
    limit = 2 ** (ours.quantization.bits - 1)
    integers = (by_group * (1.0 / scale)[:, :, None]).round_().clamp_(-limit, limit - 1)
    ours.integers.copy_(integers.view_as(trained.weight))
    ours.scale.copy_(scale)
    ours.bias.copy_(trained.bias)
    if ours.quantization.to == "int8":
        ours.input_scale.copy_(trained.activation_fake_quantizer.scale)
        ours.input_zero_point.copy_(trained.activation_fake_quantizer.zero_point)


def _torchao() -> SimpleNamespace:
    """What is taken from torchao, which takes seconds to import, and says what it does not ask of us."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torchao.quantization.pt2e.fake_quantize import FusedMovingAvgObsFakeQuantize
        from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig
    except ImportError as error:
        raise AsrKdError(f"quantize: needs torchao ({error}); {install_hint('quantize')}") from error
    finally:
        logger.setLevel(level)

    class Activations(FusedMovingAvgObsFakeQuantize):
        """Limits follow the activations in training alone."""

        def train(self, mode: bool = True) -> "Activations":
            self.enable_observer(mode)
            return super().train(mode)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    return SimpleNamespace(
        Activations=Activations, FakeQuantizedLinear=FakeQuantizedLinear, IntxFakeQuantizeConfig=IntxFakeQuantizeConfig
    )
