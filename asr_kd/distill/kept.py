"""What is kept of a frame's soft targets where the states are too many for all of them.

`tail`: the k largest, and the mass of the others. `random`: k states, drawn so that the expectation of every target,
and so of the loss and its gradient, is what it was.
"""

from collections.abc import Callable

import numpy as np
import torch

from asr_kd.nnet.device import cpu_kernels
from asr_kd.nnet.frames import Frames
from asr_kd.training.cross_entropy import SoftBatch

# Frames on which k is chosen, and how many are held in float64 at a time.
SAMPLE_FRAMES, _BLOCK = 4096, 128
# Key of the random numbers by which states are drawn.
_KEY = 1


def kept(prob: torch.Tensor, top_k: int, pruning: str, first_frame: int) -> SoftBatch:
    """Of posteriors (n, num_pdfs) float32, top_k a frame; first_frame: the number of the first one in its set.

    What is drawn depends on the frame's number alone, not on the block or the device that it is computed in.
    """
    if pruning == "tail":
        return largest(prob, top_k)
    width = top_k + 1
    # Philox gives random numbers from anywhere in its stream, in fours.
    generator = np.random.Generator(np.random.Philox(key=_KEY).advance(first_frame * -(-width // 4)))
    uniform = torch.from_numpy(generator.random((len(prob), 4 * -(-width // 4)))).to(prob.device)
    return drawn(prob, top_k, uniform[:, 0], uniform[:, 1:width])


def largest(prob: torch.Tensor, top_k: int) -> SoftBatch:
    """The top_k largest posteriors of each row, where they stand, and the mass of the others."""
    kernels = cpu_kernels(prob.device) if prob.dtype == torch.float32 else None
    values, pdf = (kernels and kernels.top_k(prob, top_k)) or prob.topk(top_k, dim=-1)
    values = values.half()
    # The tail takes up what float16 rounds away, so that every frame's targets sum to one.
    return SoftBatch(values, pdf, (1.0 - values.float().sum(dim=-1)).clamp(min=0.0).half())


def drawn(prob: torch.Tensor, top_k: int, draw: torch.Tensor, rounding: torch.Tensor) -> SoftBatch:
    """top_k states of each row, some kept as they are, the others at a threshold, which is each row's own.

    A target of at least the threshold τ stays; a smaller one becomes τ with probability p / τ, else nothing, as in
    Kaldi's RandPrune. τ is such that these are k in sum, Σ_j min(p_j / τ, 1) = k, and they are drawn together, at equal
    distances along the states, so that exactly k are named: the draw of least variance (Fearnhead & Clifford 2003,
    section 3.2). draw (n,) and rounding (n, top_k): uniform in [0, 1), float64; float16 is rounded to at random.
    """
    top = prob.topk(top_k, dim=-1)
    slot = torch.arange(top_k, device=prob.device)
    others = prob.scatter(-1, top.indices, 0.0).sum(dim=-1, dtype=torch.float64)
    # Mass of what is not among the j largest, for j from 0 to k − 1: summed from the smallest, so that none is lost.
    mass = top.values.double().flip(-1).cumsum(dim=-1).flip(-1) + others[:, None]
    below = top.values.double() * (top_k - slot) <= mass
    num_whole = below.int().argmax(dim=-1, keepdim=True)
    whole = slot < num_whole
    small = prob.scatter(-1, top.indices, torch.where(whole, 0.0, top.values)).double().cumsum(dim=-1)
    threshold = small[:, -1:] / (top_k - num_whole)
    points = (draw[:, None] + (slot - num_whole).clamp(min=0)) * threshold
    chosen = torch.searchsorted(small, points, right=True).clamp(max=prob.shape[1] - 1)
    values = torch.where(whole, top.values.double(), threshold)
    return SoftBatch(_round_at_random(values, rounding), torch.where(whole, top.indices, chosen))


def _round_at_random(values: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One of the two float16 numbers around each value (at least 0, float64); its expectation is the value."""
    nearest = values.half()
    error = values - nearest.double()
    # The bits of positive floats are in the order of the floats.
    other = (nearest.view(torch.int16) + error.sign().short()).view(torch.float16)
    step = (other.double() - nearest.double()).abs()
    return torch.where(uniform * step < error.abs(), other, nearest)


def fewest(prob: torch.Tensor, max_kl: float) -> tuple[int, float]:
    """The smallest k that loses at most max_kl nats a frame in the mean, and what it loses; prob: (n, num_pdfs).

    Lost is the divergence inside the tail. With the k largest and the tail's mass the loss teaches all of
    KL(p ‖ q) but tail · KL(p / tail ‖ q / Σ q) over the tail's states (chain rule): how q divides the tail is left to
    the student. Reckoned with is a student that divides it as the mean of `prob` does, which is known without looking
    at the frame. float16 is not counted.
    """
    mean = prob.mean(dim=0, dtype=torch.float64)
    lost = torch.zeros(prob.shape[1] + 1, dtype=torch.float64, device=prob.device)
    for rows in prob.split(_BLOCK):
        p, order = rows.double().sort(dim=-1, descending=True)
        m = mean[order]
        inside = _sum_of_rest(torch.xlogy(p, p) - torch.xlogy(p, m))
        tail = _sum_of_rest(p)
        lost += (inside - torch.xlogy(tail, tail) + torch.xlogy(tail, _sum_of_rest(m))).sum(dim=0)
    lost = lost[1:] / len(prob)
    top_k = 1 + int((lost <= max_kl).int().argmax())
    return top_k, float(lost[top_k - 1].clamp(min=0))


def _sum_of_rest(values: torch.Tensor) -> torch.Tensor:
    """Σ_{i≥k} of each row for k from 0 to its length n: (rows, n) → (rows, n + 1)."""
    sums = values.flip(-1).cumsum(dim=-1).flip(-1)
    return torch.cat([sums, torch.zeros_like(sums[:, :1])], dim=-1)


def sample(frames: Frames, batch: Callable[[torch.Tensor, torch.Tensor], SoftBatch]) -> torch.Tensor:
    """Dense targets of SAMPLE_FRAMES evenly spaced frames, or of all: (n, num_pdfs); batch: that of SoftTargets."""
    number = frames.layout.num_frames
    spread = torch.linspace(0, number - 1, min(SAMPLE_FRAMES, number), dtype=torch.float64).round().long()
    blocks = spread.to(frames.device).split(_BLOCK)
    return torch.cat([batch(index, frames.windows(index)).prob for index in blocks])
