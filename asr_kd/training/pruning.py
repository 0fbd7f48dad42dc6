"""Magnitude pruning on a schedule (Zhu & Gupta 2017, arXiv:1710.01878).

A weight that was pruned is 0 and stays 0, so that the weights themselves tell which are: a checkpoint needs no more.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from asr_kd.config import CompressConfig, DnnConfig
from asr_kd.errors import AsrKdError
from asr_kd.nnet.model import FrameClassifier


class Pruning:
    """When a run prunes how much.

    The share of weights that are 0 grows from 0 at step prune_begin to prune_sparsity at step prune_end as the cube of
    what remains falls (equation 1 there), at every prune_every-th step and the last one.
    """

    def __init__(self, config: CompressConfig, dnn: DnnConfig, num_steps: int):
        """Raises AsrKdError for a schedule that may go back to a net of before, and for averages with such nets."""
        if dnn.schedule == "newbob":
            raise AsrKdError(
                "prune_sparsity: schedule newbob goes back to weights of before they were pruned; choose another"
            )
        if config.prune_end > 1.0 - dnn.average_share:
            raise AsrKdError(
                f"prune_end {config.prune_end:g}: weights are averaged over the last {dnn.average_share:g} of the "
                "steps, which must all be as sparse; end pruning before, or set average_share to 0"
            )
        self._config = config
        self._begin = round(config.prune_begin * num_steps)
        self._end = max(1, round(config.prune_end * num_steps))

    def is_complete(self, step: int) -> bool:
        """Whether a net of so many steps is as sparse as it will be."""
        return step >= self._end

    def sparsity(self, step: int) -> float:
        """The share of weights that are 0 after so many steps (between prunings: at the next one)."""
        if self.is_complete(step):
            return self._config.prune_sparsity
        if step <= self._begin:
            return 0.0
        remaining = 1 - (step - self._begin) / (self._end - self._begin)
        return self._config.prune_sparsity * (1 - remaining**3)

    def is_due(self, step: int) -> bool:
        """Whether the net is pruned after so many steps."""
        every_so_often = (step - self._begin) % self._config.prune_every == 0
        return step == self._end or (self._begin < step < self._end and every_so_often)

    def after_step(self, net: FrameClassifier, step: int) -> None:
        """Prune where that is due after so many steps."""
        if self.is_due(step):
            prune(net, self.sparsity(step), self._config.prune_scope)


@contextmanager
def kept_zero(net: FrameClassifier) -> Iterator[None]:
    """Weights that are 0 before what happens inside are so after it, too."""
    pruned = [layer.weight == 0 for layer in net.linear]
    yield
    with torch.no_grad():
        for layer, mask in zip(net.linear, pruned, strict=True):
            layer.weight.masked_fill_(mask, 0.0)


@torch.no_grad()
def prune(net: FrameClassifier, sparsity: float, scope: str) -> None:
    """Set this share of the weights to 0, exactly, those of least magnitude: of every layer, or over all (global)."""
    weights = [layer.weight for layer in net.linear]
    for group in [weights] if scope == "global" else [[weight] for weight in weights]:
        magnitudes = torch.cat([weight.flatten() for weight in group]).abs_()
        least = magnitudes.topk(round(sparsity * len(magnitudes)), largest=False, sorted=False).indices
        pruned = torch.zeros_like(magnitudes, dtype=torch.bool)
        pruned[least] = True
        for weight, mask in zip(group, pruned.split([weight.numel() for weight in group]), strict=True):
            weight.masked_fill_(mask.view_as(weight), 0.0)


def sparsity_of(net: FrameClassifier) -> float:
    """Share of the weights, biases apart, that are 0."""
    weights = [layer.weight for layer in net.linear]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
