"""Logits and posteriors of a net or an ensemble for all frames of a set."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast, rows_at_once
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.model import FrameClassifier
from asr_kd.world import ALONE, World

COMBINATIONS = ("arithmetic", "geometric")

# Logits of a block, of all nets together: its matrix products are worth bringing in the weights, and it fits in memory.
_MAX_LOGITS = {"cpu": 1 << 26, "cuda": 1 << 28}


def combine(logits: torch.Tensor, temperature: float, combination: str) -> torch.Tensor:
    """Log of the members' mean distribution at a temperature.

    logits: (num_members, batch, num_pdfs) → (batch, num_pdfs) float32. Arithmetic: mean_i softmax(z_i / T);
    geometric: softmax(mean_i z_i / T), the normalised geometric mean (Hinton et al. 2015, section 4).
    """
    if combination not in COMBINATIONS:
        raise AsrKdError(f"combination {combination!r}: choose {' or '.join(COMBINATIONS)}")
    num_members, batch, num_pdfs = logits.shape
    # PyTorch sums 64 columns at a time and the last few in another order: chunks of whole 64s have the same bits.
    whole = 64 // math.gcd(64, num_pdfs)
    rows = -(-rows_at_once(logits.device, num_members * num_pdfs) // whole) * whole
    mean = torch.empty((batch, num_pdfs), device=logits.device)
    for begin in range(0, batch, rows):
        mean[begin : begin + rows] = _combine(logits[:, begin : begin + rows], temperature, combination)
    return mean


def _combine(logits: torch.Tensor, temperature: float, combination: str) -> torch.Tensor:
    scaled = logits.float() / temperature
    if combination == "geometric":
        return scaled.mean(dim=0).log_softmax(dim=-1)
    return scaled.log_softmax(dim=-1).logsumexp(dim=0) - torch.log(torch.tensor(float(len(logits))))


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
    combination: str = "arithmetic",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8192,
    max_logits: int | None = None,
    world: World = ALONE,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Log posteriors of an ensemble (or of one net), block by block in frame order: (rows, (n, num_pdfs) float32).

    A block has batch_size frames, or fewer where all nets' logits for them would be more than max_logits numbers. Of
    several processes, each has its share of the blocks.
    """
    nets = [of_type(net, dtype) for net in nets]

    def answer(windows: torch.Tensor) -> torch.Tensor:
        with autocast(frames.device, dtype):
            logits = torch.stack([net(windows) for net in nets])
        return combine(logits, temperature, combination)

    yield from answers(answer, frames, frames_at_once(nets, frames.device, batch_size, max_logits), world)


def frames_at_once(
    nets: Sequence[FrameClassifier], device: torch.device, batch_size: int = 8192, max_logits: int | None = None
) -> int:
    """How many frames mean_log_posteriors takes in one block."""
    logits_of_frame = sum(net.architecture.num_pdfs for net in nets)
    max_logits = max_logits or _MAX_LOGITS["cpu" if device.type == "cpu" else "cuda"]
    return max(1, min(batch_size, max_logits // max(logits_of_frame, 1)))


@torch.inference_mode()
def answers(
    answer: Callable[[torch.Tensor], torch.Tensor], frames: Frames, batch_size: int = 8192, world: World = ALONE
) -> Iterator[tuple[slice, torch.Tensor]]:
    """What `answer` makes of all windows, or this process's share, block by block in frame order: (rows, answers)."""
    for rows, windows in frames.blocks(batch_size, world):
        yield rows, answer(windows)
