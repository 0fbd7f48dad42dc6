"""One net trained by several processes: each computes the gradients of its part of a batch, and all get their sum.

Not by torch's DistributedDataParallel, which averages alike over parts of unlike sizes, and lays out its buckets anew
after the first step, so that a run that goes on sums in another order than the unbroken one. Here each tensor is summed
by itself, as soon as backward has its gradient, so that sums and computation overlap too.
"""

import torch
from torch import distributed, nn

from asr_kd.world import World


def sum_over(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `tensor`, in its place, in all of them; waits for them."""
    with world.peers():
        distributed.all_reduce(tensor)
    return tensor


class DataParallel:
    """The gradients of a whole batch, from losses of its parts.

    What all processes then do with them is the same; so their weights stay the same, bit for bit, on machines of one
    kind.
    """

    def __init__(self, net: nn.Module, world: World):
        self._world = world
        self._sums: list[distributed.Work] = []
        if world.size > 1:
            for parameter in net.parameters():
                parameter.register_post_accumulate_grad_hook(lambda p: self._sum(p.grad))

    def _sum(self, tensor: torch.Tensor) -> None:
        self._sums.append(distributed.all_reduce(tensor, async_op=True))

    def backward(self, loss: torch.Tensor, share: float) -> torch.Tensor:
        """Give the net the gradients of the whole batch; returns its loss.

        loss: the mean over this process's part of the batch, which is a `share` of it. It is NaN where the part is
        empty, but the gradients are sums over no frame, and so 0.
        """
        if self._world.size == 1:
            loss.backward()
            return loss.detach()
        whole = loss.detach() * share if share else torch.zeros_like(loss)
        with self._world.peers():
            self._sum(whole)
            (loss * share).backward()
            for each in self._sums:
                each.wait()
        self._sums.clear()
        return whole
