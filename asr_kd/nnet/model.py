"""The frame classifier: a window of filterbanks in, a logit for every HMM state out."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import nn

from asr_kd.nnet.quantized import Quantization, QuantizedLinear
from asr_kd.nnet.rectified import rectified


@dataclass(frozen=True)
class Architecture:
    """The shape of a feed-forward frame classifier."""

    left_context: int
    right_context: int
    feat_dim: int
    num_hidden_layers: int
    hidden_dim: int
    num_pdfs: int
    dropout: float = 0.0
    input_dropout: float = 0.0

    @property
    def window(self) -> int:
        """Frames that the net sees at once."""
        return self.left_context + 1 + self.right_context

    def as_dict(self) -> dict:
        return asdict(self)


class FrameClassifier(nn.Module):
    """Hidden layers of ReLUs between a spliced window and the logits (Hinton et al. 2015, section 4).

    forward: (batch, window, feat_dim) or (batch, window * feat_dim) → logits (batch, num_pdfs).
    With a `quantization` its weights are whole numbers, not to be trained.
    """

    def __init__(self, architecture: Architecture, quantization: Quantization | None = None):
        super().__init__()
        self.architecture, self.quantization = architecture, quantization

        def linear(dim_in: int, dim_out: int) -> nn.Module:
            return QuantizedLinear(dim_in, dim_out, quantization) if quantization else nn.Linear(dim_in, dim_out)

        dims = [architecture.window * architecture.feat_dim]
        dims += [architecture.hidden_dim] * architecture.num_hidden_layers
        layers: list[nn.Module] = [nn.Dropout(architecture.input_dropout)] if architecture.input_dropout else []
        for dim_in, dim_out in pairwise(dims):
            layers += [linear(dim_in, dim_out), nn.ReLU(inplace=True)]
            if architecture.dropout:
                layers.append(nn.Dropout(architecture.dropout))
        layers.append(linear(dims[-1], architecture.num_pdfs))
        self.layers = nn.Sequential(*layers)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        x = windows.flatten(1)
        if not torch.is_grad_enabled() and not self.training and self._is_bfloat16_on_cpu(x):
            *hidden, last = self.linear
            for layer in hidden:
                x = rectified(x, layer.weight, layer.bias)
            return last(x)
        return self.layers(x)

    def _is_bfloat16_on_cpu(self, x: torch.Tensor) -> bool:
        if self.quantization:
            return False
        return all(each.is_cpu and each.dtype == torch.bfloat16 for each in (x, *(y.weight for y in self.linear)))

    @property
    def linear(self) -> list[nn.Linear | QuantizedLinear]:
        """The layers that have weights, the output layer last."""
        return [layer for layer in self.layers if isinstance(layer, (nn.Linear, QuantizedLinear))]

    @property
    def num_parameters(self) -> int:
        """Weights and biases, those that are 0 too."""
        return sum((layer.in_features + 1) * layer.out_features for layer in self.linear)


def new_net(architecture: Architecture, seed: int) -> FrameClassifier:
    """A net with He-initialised weights (He et al. 2015) and zero biases, a function of `seed` alone."""
    net = FrameClassifier(architecture)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net.linear:
            gain = 1.0 if layer is net.linear[-1] else 2.0
            layer.weight.normal_(0, math.sqrt(gain / layer.in_features), generator=generator)
            layer.bias.zero_()
    return net
