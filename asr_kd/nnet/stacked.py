"""Nets of one shape as one net, whose layers are batched products over their stacked weights."""

from collections.abc import Sequence

import torch
from torch import nn

from asr_kd.nnet.model import FrameClassifier


class StackedLinear(nn.Module):
    """The same layer of several nets: (num_nets, batch, dim_in) → (num_nets, batch, dim_out).

    weight: (num_nets, dim_out, dim_in); bias: (num_nets * dim_out,), flat, so that optimisers see it for a bias.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias.view(len(self.weight), 1, -1), values, self.weight.transpose(1, 2))


class StackedNets(nn.Module):
    """Frame classifiers of one architecture, each on windows of its own; parameters have the names of a single net's.

    forward: (num_nets, batch, window * feat_dim) → logits (num_nets, batch, num_pdfs). What is dropped is told by
    `masks`, as dropout_masks gives them.
    """

    def __init__(self, nets: Sequence[FrameClassifier]):
        super().__init__()
        self.num_nets, self.architecture = len(nets), nets[0].architecture
        layers = zip(*(net.layers for net in nets), strict=True)
        self.layers = nn.Sequential(*(_stacked(layer) for layer in layers))

    def forward(self, windows: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        values, left = windows, list(masks)
        for layer in self.layers:
            if not isinstance(layer, nn.Dropout):
                values = layer(values)
            elif layer.p:
                values = values * left.pop(0)
        return values

    @property
    def linear(self) -> list[StackedLinear]:
        """The layers that have weights, the output layer last."""
        return [layer for layer in self.layers if isinstance(layer, StackedLinear)]

    def dropout_masks(
        self, batch: int, generators: Sequence[torch.Generator], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """What values are multiplied by in training, each (num_nets, batch, dim); every net has a generator.

        On a CPU these are the numbers that nn.Dropout draws for a single net from the same seed.
        """
        masks, dim = [], self.architecture.window * self.architecture.feat_dim
        for layer in self.layers:
            if isinstance(layer, StackedLinear):
                dim = layer.weight.shape[1]
            elif isinstance(layer, nn.Dropout) and layer.p:
                mask = torch.empty((self.num_nets, batch, dim), dtype=dtype, device=generators[0].device)
                for row, generator in zip(mask, generators, strict=True):
                    row.bernoulli_(1 - layer.p, generator=generator)
                masks.append(mask.div_(1 - layer.p))
        return masks


def _stacked(layers: Sequence[nn.Module]) -> nn.Module:
    """The same layer of all nets as one; one without weights is that of the first."""
    if isinstance(layers[0], nn.Linear):
        return StackedLinear(layers)
    return nn.Dropout(layers[0].p) if isinstance(layers[0], nn.Dropout) else nn.ReLU(inplace=True)
