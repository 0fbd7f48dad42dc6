"""The mean of a net's weights over its last steps."""

import copy

import torch

from asr_kd.nnet.model import FrameClassifier
from asr_kd.training.checkpoint import Tensors


class WeightAverage:
    """The net whose weights are the mean of those that were added (Polyak & Juditsky 1992; Izmailov et al. 2018,
    arXiv:1803.05407): at a high and constant learning rate it does better than any of them.
    """

    def __init__(self, net: FrameClassifier) -> None:
        self.net = copy.deepcopy(net)
        self.count = 0

    @torch.no_grad()
    def add(self, net: FrameClassifier) -> None:
        """Take the weights of this moment in; what is no weight, as quantization's ranges, is the last one's."""
        self.count += 1
        for mean, now in zip(self.net.parameters(), net.parameters(), strict=True):
            mean.lerp_(now, 1.0 / self.count)
        for last, now in zip(self.net.buffers(), net.buffers(), strict=True):
            last.copy_(now)

    def restore(self, tensors: Tensors, count: int) -> None:
        """Go on from the mean of `count` nets."""
        self.net.load_state_dict(tensors)
        self.count = count
