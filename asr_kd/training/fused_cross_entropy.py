"""Cross-entropy on a GPU: a row of logits is read once for its loss and once for its gradient, by kernels of Triton.

asr_kd/training/cross_entropy.py is the definition, and what CPUs run; here nothing of the logits' size is made but the
gradient, in the logits' own type. With a = z / T, q = softmax(a) and r the softmax of a over the states that have no
target of their own, the gradient of a term is weight / T · (q · (Σ p + tail) − p − tail · r).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from asr_kd.nnet.gpu_kernels import MAX_BLOCK, add_to_log_sum, num_warps

if TYPE_CHECKING:
    from asr_kd.training.cross_entropy import Term

# Columns of a kernel that looks for named states among them.
_MAX_BLOCK_WITH_NAMES = 1024


class FusedCrossEntropy(torch.autograd.Function):
    """cross_entropy of rows one net's after another's; see there."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, terms: Sequence["Term"], num_nets: int | None) -> torch.Tensor:
        """logits: (rows, num_pdfs) of at most 32 bits → losses () or (num_nets,) float32."""
        losses = torch.zeros(len(logits), device=logits.device)
        ctx.parts = [_Part(logits, term) for term in terms]
        for part in ctx.parts:
            part.add_loss(logits, losses)
        ctx.save_for_backward(logits)
        return losses.sum() if num_nets is None else losses.view(num_nets, -1).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        grad, of_losses = (
            torch.empty_like(logits),
            grad_output.reshape(-1).contiguous(),
        )  # a sum's is one number, expanded
        for number, part in enumerate(ctx.parts):
            part.add_gradient(logits, of_losses, grad, is_first=number == 0)
        return grad, None, None


class _Part:
    """A term as the kernels take it, and what its loss leaves for its gradient."""

    def __init__(self, logits: torch.Tensor, term: "Term"):
        targets, (num_rows, self._num_pdfs) = term.targets, logits.shape
        self._prob, self._pdf, self._weight = targets.prob, targets.pdf, term.weight.float().contiguous()
        self._width = targets.prob.shape[1]
        # Where every state is named there is no rest.
        self._tail = targets.tail if self._pdf is not None and self._width < self._num_pdfs else None
        self._pdf, self._tail = (None if each is None else each.contiguous() for each in (self._pdf, self._tail))
        self._inverse_temperature = 1.0 / term.temperature
        self._log_sum, self._log_rest = torch.empty((2, num_rows), device=logits.device)
        kinds = (self._pdf is not None, self._tail is not None)
        most = _MAX_BLOCK_WITH_NAMES if kinds[0] and self._width > 1 else MAX_BLOCK
        block = min(most, triton.next_power_of_2(self._num_pdfs))
        self._sizes = (block, triton.next_power_of_2(self._width))
        self._kinds, self._how = kinds, {"num_warps": num_warps(block)}

    def _shared(self, logits: torch.Tensor) -> tuple:
        return (
            (logits, self._prob, self._pdf, self._tail, self._weight),
            (self._num_pdfs, self._width, logits.stride(0), *self._prob.stride(), self._inverse_temperature),
        )

    def add_loss(self, logits: torch.Tensor, losses: torch.Tensor) -> None:
        tensors, numbers = self._shared(logits)
        _loss_kernel[(len(logits),)](
            *tensors, losses, self._log_sum, self._log_rest, *numbers, *self._kinds, True, *self._sizes, **self._how
        )

    def add_gradient(self, logits: torch.Tensor, of_loss: torch.Tensor, grad: torch.Tensor, is_first: bool) -> None:
        tensors, numbers = self._shared(logits)
        _gradient_kernel[(len(logits),)](
            *tensors, of_loss, self._log_sum, self._log_rest, grad, len(logits) // len(of_loss), *numbers,
            *self._kinds, not is_first, *self._sizes, **self._how,
        )  # fmt: skip


@triton.jit
def _named_probability(begin, prob, prob_step, pdf, width, BLOCK: tl.constexpr):
    """What the targets of a row name of the columns from `begin` on: (whether they are named, their probability)."""
    cols = begin + tl.arange(0, BLOCK)
    is_named = cols < 0
    named = tl.zeros([BLOCK], tl.float32)
    for n in range(width):
        state = tl.load(pdf + n)
        if state >= begin and state < begin + BLOCK:  # alike for all threads: few columns are compared at all
            is_named = is_named | (cols == state)
            named += tl.where(cols == state, tl.load(prob + n * prob_step).to(tl.float32), 0.0)
    return is_named, named


@triton.jit
def _loss_kernel(
    logits, prob, pdf, tail, weight, losses, log_sums, log_rests,
    num_pdfs, width, logits_stride, prob_stride, prob_step, inverse_temperature,
    IS_NAMED: tl.constexpr, HAS_TAIL: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A row's loss, added to `losses`; its log Σ exp and, where there is a tail, that of the states without a name."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    prob += row * prob_stride
    largest = float("-inf")
    total = 0.0
    largest_rest = float("-inf")
    rest = 0.0
    crossed = 0.0
    mass = 0.0
    for begin in range(0, num_pdfs, BLOCK):
        cols = begin + tl.arange(0, BLOCK)
        inside = cols < num_pdfs
        a = tl.load(logits + cols, mask=inside, other=float("-inf")).to(tl.float32) * inverse_temperature
        largest, total = add_to_log_sum(largest, total, a)
        if HAS_TAIL:
            is_named, _ = _named_probability(begin, prob, prob_step, pdf + row * width, width, BLOCK)
            largest_rest, rest = add_to_log_sum(largest_rest, rest, tl.where(is_named, float("-inf"), a))
        if not IS_NAMED:
            p = tl.load(prob + cols * prob_step, mask=inside, other=0.0).to(tl.float32)
            crossed += tl.sum(tl.where(inside, p * a, 0.0), axis=0)
            mass += tl.sum(p, axis=0)
    log_sum = largest + tl.log(total)
    tl.store(log_sums + row, log_sum)
    if IS_NAMED:
        n = tl.arange(0, WIDTH)
        inside = n < width
        states = tl.load(pdf + row * width + n, mask=inside, other=0)
        p = tl.load(prob + n * prob_step, mask=inside, other=0.0).to(tl.float32)
        a = tl.load(logits + states, mask=inside, other=0.0).to(tl.float32) * inverse_temperature
        loss = -tl.sum(p * tl.where(inside, a - log_sum, 0.0), axis=0)
        if HAS_TAIL:
            log_rest = largest_rest + tl.log(rest)
            tl.store(log_rests + row, log_rest)
            loss -= tl.load(tail + row).to(tl.float32) * (log_rest - log_sum)
    else:
        loss = mass * log_sum - crossed
    loss *= tl.load(weight + row)
    if ADDS:
        loss += tl.load(losses + row)
    tl.store(losses + row, loss)


@triton.jit
def _gradient_kernel(
    logits, prob, pdf, tail, weight, of_losses, log_sums, log_rests, grad, batch,
    num_pdfs, width, logits_stride, prob_stride, prob_step, inverse_temperature,
    IS_NAMED: tl.constexpr, HAS_TAIL: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A row's gradient, put into `grad` or added to what is there; of_losses: that of each net's loss."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    prob += row * prob_stride
    grad += row * num_pdfs
    log_sum = tl.load(log_sums + row)
    scale = tl.load(weight + row) * tl.load(of_losses + row // batch) * inverse_temperature
    n = tl.arange(0, WIDTH)
    mass = tl.sum(tl.load(prob + n * prob_step, mask=n < width, other=0.0).to(tl.float32), axis=0)
    if HAS_TAIL:
        of_rest = tl.load(tail + row).to(tl.float32)
        log_rest = tl.load(log_rests + row)
        mass += of_rest
    for begin in range(0, num_pdfs, BLOCK):
        cols = begin + tl.arange(0, BLOCK)
        inside = cols < num_pdfs
        a = tl.load(logits + cols, mask=inside, other=float("-inf")).to(tl.float32) * inverse_temperature
        g = tl.exp(a - log_sum) * mass
        if IS_NAMED:
            is_named, p = _named_probability(begin, prob, prob_step, pdf + row * width, width, BLOCK)
            g -= p
            if HAS_TAIL:
                g -= tl.where(is_named, 0.0, of_rest * tl.exp(a - log_rest))
        else:
            g -= tl.load(prob + cols * prob_step, mask=inside, other=0.0).to(tl.float32)
        g *= scale
        if ADDS:
            g += tl.load(grad + cols, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad + cols, g.to(grad.dtype.element_ty), mask=inside)
