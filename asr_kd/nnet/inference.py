"""Logits and posteriors of a net or an ensemble for all frames of a set."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import torch
from torch import nn

from asr_kd.choices import Combination, require_choice
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast, cpu_kernels, has_kernels, rows_at_once
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.model import FrameClassifier
from asr_kd.world import ALONE, World

# Numbers of a block that are of states: its matrix products are worth bringing in the weights, and it fits in memory.
_MAX_NUMBERS = {"cpu": 1 << 26, "cuda": 1 << 28}
# The smallest posterior of an arithmetic mean of several members; its logarithm, −87, is finite.
SMALLEST = torch.finfo(torch.float32).tiny


def combine(logits: Iterable[torch.Tensor], temperature: float, combination: Combination) -> torch.Tensor:
    """Log of the members' mean distribution at a temperature, (batch, num_pdfs) float32.

    logits: those of each member, (batch, num_pdfs), which are asked for one after the other. Arithmetic:
    mean_i softmax(z_i / T); geometric: softmax(mean_i z_i / T), the normalised geometric mean (Hinton et al. 2015,
    section 4).
    """
    mean, is_logit = _mean(logits, temperature, combination)
    if is_logit:
        return mean.log_softmax(dim=-1)
    rows = rows_at_once(mean.device, mean.shape[1])
    for begin in range(0, len(mean), rows):  # the last step finds what the first one left in a CPU's cache
        mean[begin : begin + rows].clamp_(min=SMALLEST).log_()
    return mean


def posteriors_of(logits: Iterable[torch.Tensor], temperature: float, combination: Combination) -> torch.Tensor:
    """What `combine` gives the logarithms of, without a way through these."""
    mean, is_logit = _mean(logits, temperature, combination)
    return mean.softmax(dim=-1) if is_logit else mean


def _mean(logits: Iterable[torch.Tensor], temperature: float, combination: Combination) -> tuple[torch.Tensor, bool]:
    """Mean logits at the temperature (of one member, or geometric), or mean posteriors; and whether it is logits."""
    require_choice("combination", combination, Combination)
    members = iter(logits)
    first, second = next(members), next(members, None)
    if second is None:
        return first.float() / temperature, True
    add = _add if combination == "geometric" else _add_softmax
    total, number, members = torch.zeros(first.shape, device=first.device), 0, chain((first, second), members)
    del first, second  # those of two members are in memory at most
    for of_member in members:
        if of_member.shape != total.shape:
            raise AsrKdError(f"members answer {tuple(of_member.shape)} and {tuple(total.shape)} (frames, states)")
        add(total, of_member, temperature)
        number += 1
        del of_member
    return total.div_(number * temperature if combination == "geometric" else number), combination == "geometric"


def _add(total: torch.Tensor, logits: torch.Tensor, _: float) -> None:
    total += logits


def _add_softmax(total: torch.Tensor, logits: torch.Tensor, temperature: float) -> None:
    """Add softmax(z / T) to `total` (batch, num_pdfs) float32: by a kernel, or in pieces that a CPU's cache holds."""
    if total.is_cuda and has_kernels(total.device):
        from asr_kd.nnet.gpu_kernels import add_softmax

        add_softmax(total, logits, temperature)
        return
    is_taken = logits.dtype == torch.bfloat16 and logits.ndim == 2 and not logits.requires_grad
    if is_taken and (kernels := cpu_kernels(total.device)):
        kernels.add_softmax(total, logits, temperature)
        return
    rows = rows_at_once(total.device, total.shape[1])
    for begin in range(0, len(total), rows):
        total[begin : begin + rows] += (logits[begin : begin + rows].float() / temperature).softmax(dim=-1)


def logits_of(nets: Iterable[FrameClassifier], windows: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """What each net says of the same windows, (batch, num_pdfs), when it is asked for."""
    for net in nets:
        with autocast(windows.device, dtype):
            logits = net(windows)
        yield logits
        del logits


def of_type(net: FrameClassifier, dtype: torch.dtype) -> FrameClassifier:
    """`net`, or a copy whose weights are of `dtype` already: autocast would convert them again for every batch.

    Its answers under autocast are the same.
    """
    holders = [m for m in net.modules() if m._parameters or m._buffers]
    plain = all(type(holder) is nn.Linear for holder in holders)  # quantized layers have types of their own
    is_such = dtype == torch.float32 or all(weight.dtype == dtype for weight in net.parameters())
    return copy.deepcopy(net).to(dtype) if plain and not is_such else net


@torch.inference_mode()
def mean_log_posteriors(
    nets: Sequence[FrameClassifier],
    frames: Frames,
    *,
    temperature: float = 1.0,
    combination: Combination = "arithmetic",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8192,
    max_numbers: int | None = None,
    world: World = ALONE,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log posteriors of an ensemble (or of one net), block by block in frame order: (rows, (n, num_pdfs) float32).

    A block has batch_size frames, or fewer where what is made of them on the way would be more than max_numbers. Of
    several processes, each has its share of the blocks.
    """
    nets = [of_type(net, dtype) for net in nets]

    def answer(windows: torch.Tensor) -> torch.Tensor:
        return combine(logits_of(nets, windows, dtype), temperature, combination)

    yield from answers(answer, frames, frames_at_once(nets, frames.device, batch_size, max_numbers), world)


@torch.inference_mode()
def mean_posteriors(
    nets: Sequence[FrameClassifier],
    frames: Frames,
    *,
    temperature: float = 1.0,
    combination: Combination = "arithmetic",
    dtype: torch.dtype = torch.float32,
    world: World = ALONE,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Posteriors of an ensemble (or of one net), few at a time, in frame order: (rows, (n, num_pdfs) float32).

    On a CPU as many as its cache holds, until the next ones are asked for: of thousands of states the passes over
    members' logits, their mean and what is made of it cost more through memory than the nets.
    """
    nets = [of_type(net, dtype) for net in nets]
    size = rows_at_once(frames.device, nets[0].architecture.num_pdfs)
    for rows, windows in frames.blocks(windows_at_once(nets, frames.device), world):
        if frames.device.type != "cpu":
            yield rows, posteriors_of(logits_of(nets, windows, dtype), temperature, combination)
            continue
        members = list(logits_of(nets, windows, dtype))
        for begin in range(0, len(windows), size):
            part = [logits[begin : begin + size] for logits in members]
            few = slice(rows.start + begin, min(rows.start + begin + size, rows.stop))
            yield few, posteriors_of(part, temperature, combination)


def windows_at_once(nets: Sequence[FrameClassifier], device: torch.device) -> int:
    """How many windows mean_posteriors brings through the nets in one block."""
    if device.type != "cpu":
        return frames_at_once(nets, device)
    numbers = len(nets) * max(net.architecture.num_pdfs for net in nets)  # all of their logits are held
    return max(1, min(8192, _MAX_NUMBERS["cpu"] // numbers))


def frames_at_once(
    nets: Sequence[FrameClassifier], device: torch.device, batch_size: int = 8192, max_numbers: int | None = None
) -> int:
    """How many frames mean_log_posteriors takes in one block."""
    # One or two nets' logits, their mean, and one of those on its way there.
    of_frame = (min(len(nets), 2) + 2) * max(net.architecture.num_pdfs for net in nets)
    max_numbers = max_numbers or _MAX_NUMBERS["cpu" if device.type == "cpu" else "cuda"]
    return max(1, min(batch_size, max_numbers // max(of_frame, 1)))


@torch.inference_mode()
def answers(
    answer: Callable[[torch.Tensor], torch.Tensor], frames: Frames, batch_size: int = 8192, world: World = ALONE
) -> Iterator[tuple[slice, torch.Tensor]]:
    """What `answer` makes of all windows, or this process's share, block by block in frame order: (rows, answers)."""
    for rows, windows in frames.blocks(batch_size, world):
        yield rows, answer(windows)
