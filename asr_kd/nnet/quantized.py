"""Layers whose weights are whole numbers of 8 or 4 bits with scales, as they are stored and applied.

They are made from nets trained to it (asr_kd/training/quantization.py). int8: one scale for each output, activations
rounded to 128 levels between limits found in training; on CPUs that have FBGEMM, products are of integers. int4: one
scale for each group of weights into an output; products are of the floats that they stand for.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from asr_kd.errors import AsrKdError

# Activations have 7 bits: with 8, sums of two products overflow the 16 bits that CPUs without VNNI add them in. What
# comes out of a ReLU has as many steps so as signed 8 bits would give it.
LEVELS = 127
SMALLEST_GROUP = 8


@dataclass(frozen=True)
class Quantization:
    """to: `int8` or `int4`. group: of int4, the most weights that share a scale; 0 for int8."""

    to: str
    group: int = 0

    def __post_init__(self) -> None:
        if (self.to, self.group == 0) not in (("int8", True), ("int4", False)):
            raise ValueError(f"no quantization to {self.to} with groups of {self.group}")

    @property
    def bits(self) -> int:
        """Of a weight."""
        return 8 if self.to == "int8" else 4

    def group_of(self, in_features: int) -> int:
        """Weights that share a scale: all of an output's for int8, for int4 the largest fitting number of them.

        Raises AsrKdError where groups would be so small that the scales take more place than they save.
        """
        if self.to == "int8":
            return in_features
        fitting = max(n for n in range(1, min(self.group, in_features) + 1) if in_features % n == 0)
        if fitting < (smallest := min(SMALLEST_GROUP, self.group)):
            raise AsrKdError(
                f"int4: a layer of {in_features} inputs has no groups of {smallest} to {self.group} weights; "
                "choose a hidden_dim, or a context, that has a divisor between them, or another quantize_group"
            )
        return fitting


class QuantizedLinear(nn.Module):
    """x → x W^T + b, where W is `integers` (out_features, in_features) int8 times `scale` (out_features, groups).

    int8: x is rounded to input_scale (n - input_zero_point), n = 0 to LEVELS, first. To be applied, not trained.
    """

    def __init__(self, in_features: int, out_features: int, quantization: Quantization):
        super().__init__()
        self.in_features, self.out_features, self.quantization = in_features, out_features, quantization
        groups = in_features // quantization.group_of(in_features)
        dtype = torch.float32 if quantization.to == "int8" else torch.float16
        self.register_buffer("integers", torch.zeros((out_features, in_features), dtype=torch.int8))
        self.register_buffer("scale", torch.ones((out_features, groups), dtype=dtype))
        if quantization.to == "int8":
            self.register_buffer("input_scale", torch.ones(1))
            self.register_buffer("input_zero_point", torch.zeros(1, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False)
        self._made: dict[str, object] = {}

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features) float32: what the integers stand for."""
        by_group = self.integers.view(self.out_features, self.scale.shape[1], -1) * self.scale.float()[:, :, None]
        return by_group.view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        if self.quantization.to == "int4":
            return functional.linear(x, self._once("weight", x.device), self.bias)
        if x.device.type == "cpu" and has_int8_products():
            kernel, scale, zero_point, largest = self._once("kernel", x.device)
            multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
            return multiply(x.detach().clamp(max=largest).contiguous(), scale, zero_point, kernel) + self.bias
        x = torch.fake_quantize_per_tensor_affine(x, self.input_scale, self.input_zero_point, 0, LEVELS)
        return functional.linear(x, self._once("weight", x.device), self.bias)

    def _once(self, what: str, device: torch.device):
        """The float weights on a device, or the packed ones: made when first asked for, no part of the state."""
        key = f"{what} {device}"
        if key not in self._made:
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = self.weight if what == "weight" else self._packed()
        return self._made[key]

    def _packed(self) -> tuple[object, float, int, float]:
        """FBGEMM's weights, scale and zero point of the input, and its largest value: FBGEMM's own is of 8 bits."""
        zeros = torch.zeros(self.out_features, dtype=torch.int64)
        scales = self.scale[:, 0].double()
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tensors of quantized dtypes will go; the way in for kernels is theirs
                weight = torch._make_per_channel_quantized_tensor(self.integers, scales, zeros, 0)
            kernel = torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = before
        scale, zero_point = float(self.input_scale), int(self.input_zero_point)
        return kernel, scale, zero_point, (LEVELS - zero_point) * scale

    def __getstate__(self) -> dict:
        """Copies make their own."""
        return {**super().__getstate__(), "_made": {}}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.quantization}"


def has_int8_products() -> bool:
    """Whether this PyTorch multiplies integers on this CPU."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch, "_make_per_channel_quantized_tensor"
    )
