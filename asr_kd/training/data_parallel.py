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


def backward_together(net: nn.Module, loss: torch.Tensor, share: float, world: World) -> torch.Tensor:
    """Give `net` the gradients of a whole batch in all processes; returns the loss of the whole.

    loss: the mean over this process's part of the batch, which is a `share` of it, or (num_nets,) of nets that one
    process trains together. It is NaN where the part is empty, but the gradients are sums over no frame, and so 0. What
    all processes then do with the gradients is the same; so their weights stay the same, bit for bit, on machines of
    one kind.
    """
    if world.size == 1:
        loss.sum().backward()
        return loss.detach()
    whole = loss.detach() * share if share else torch.zeros_like(loss)
    sums = []

    def start(tensor: torch.Tensor) -> None:
        with world.peers():
            sums.append(distributed.all_reduce(tensor, async_op=True))

    hooks = [each.register_post_accumulate_grad_hook(lambda each: start(each.grad)) for each in net.parameters()]
    start(whole)
    (loss * share).backward()
    with world.peers():
        for each in sums:
            each.wait()
    for hook in hooks:
        hook.remove()
    return whole
