"""Cross-entropy with labels, all targets or the k largest, which holds no second float32 tensor of the logits' size.

The gradient is made together with the loss, some rows at a time, in float32 whatever the logits are, and kept in the
logits' own type, as Liger Kernel does (Hsu et al. 2024, arXiv:2410.10989). Of a batch of 1024 frames and 14,000 states
nothing lives but the logits, their gradient and the chunk at hand. Each step on a chunk is the one that autograd takes
on the plain formula, in its order: float32 gradients are the same to the bit. On a GPU, where the many operations on a
chunk cost more than the bytes, asr_kd/training/fused_cross_entropy.py has kernels for it, and for bfloat16 logits on a
CPU, whose products are so fast that the passes over them would be felt, asr_kd/training/cross_entropy_cpu.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from asr_kd.nnet.device import cpu_kernels, has_kernels, rows_at_once

# On a GPU every state that has a target of its own is looked for in every row: with more, the plain formula is faster.
MAX_NAMED = 128


@dataclass(frozen=True)
class SoftBatch:
    """Soft targets of a batch of frames.

    prob: (batch, num_pdfs) where `pdf` is None (dense), else (batch, k), the targets of states `pdf` (batch, k) int64;
    tail: (batch,) the mass of all other states; with `pdf` and without `tail` they have none.
    """

    prob: torch.Tensor
    pdf: torch.Tensor | None = None
    tail: torch.Tensor | None = None

    @property
    def best(self) -> torch.Tensor:
        """The state that the teacher holds most likely, (batch,) int64."""
        best = self.prob.argmax(dim=-1)
        return best if self.pdf is None else self.pdf.gather(-1, best[:, None]).squeeze(-1)

    def of(self, rows: slice) -> "SoftBatch":
        """Those of some of the frames."""
        return SoftBatch(*(None if part is None else part[rows] for part in (self.prob, self.pdf, self.tail)))


class Term(NamedTuple):
    """Σ_frames weight · CE(targets, softmax(logits / temperature)); weight: (batch,)."""

    targets: SoftBatch
    weight: torch.Tensor
    temperature: float = 1.0


def hard_targets(labels: torch.Tensor) -> SoftBatch:
    """All mass on labels (batch,) int64; none on any state where a label is below 0."""
    return SoftBatch((labels >= 0).float()[:, None], labels.clamp(min=0)[:, None])


def cross_entropy(logits: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor:
    """Σ_terms Σ_frames weight · (−Σ_j p_j log q_j), a scalar in nats, with q = softmax(logits / temperature).

    With the k largest targets: −Σ_{j∈top} p_j log q_j − tail · log Σ_{j∉top} q_j, so that no mass is lost and what the
    student gives to the other states in sum is right.

    logits: (batch, num_pdfs), of any type; float64 ones are not rounded to float32. The gradient is theirs alone, can
    be asked for once, and is not differentiable itself. Of several nets: (num_nets, batch, num_pdfs), with terms whose
    rows are one net's after another's; the losses are then (num_nets,).
    """
    num_nets = len(logits) if logits.ndim == 3 else None
    logits = logits.flatten(0, -2)
    if logits.is_cuda and _has_kernel(logits, terms):
        from asr_kd.training.fused_cross_entropy import FusedCrossEntropy

        return FusedCrossEntropy.apply(logits.contiguous(), terms, num_nets)
    return _CrossEntropy.apply(logits, terms, num_nets)


def _has_kernel(logits: torch.Tensor, terms: Sequence[Term]) -> bool:
    """Whether asr_kd/training/fused_cross_entropy.py takes these; what is compiled gets kernels anyway."""
    few = all(term.targets.pdf is None or term.targets.pdf.shape[1] <= MAX_NAMED for term in terms)
    return few and logits.itemsize <= 4 and not torch.compiler.is_compiling() and has_kernels(logits.device)


def _by_rows(logits: torch.Tensor, terms: Sequence[Term]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What asr_kd/training/cross_entropy_cpu.py makes of logits that it takes; None where it cannot."""
    if logits.dtype != torch.bfloat16 or torch.compiler.is_compiling() or not cpu_kernels(logits.device):
        return None
    from asr_kd.training.cross_entropy_cpu import losses_and_gradient

    return losses_and_gradient(logits, terms)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, terms: Sequence[Term], num_nets: int | None) -> torch.Tensor:
        if (found := _by_rows(logits, terms)) is not None:
            losses, ctx.grad = found
            losses = losses.sum() if num_nets is None else losses.view(num_nets, -1).sum(dim=-1)
            return losses.float()
        dtype = torch.promote_types(logits.dtype, torch.float32)
        num_rows = rows_at_once(logits.device, logits.shape[1])
        if len(logits) <= num_rows:
            losses, grad = _of_terms(logits.to(dtype), terms, num_nets)
            ctx.grad = grad.to(logits.dtype)
            return losses
        losses, ctx.grad = logits.new_zeros(num_nets or 1, dtype=dtype), torch.empty_like(logits)
        batch = len(logits) // len(losses)
        for net, begin in product(range(len(losses)), range(0, batch, num_rows)):
            rows = slice(net * batch + begin, net * batch + min(begin + num_rows, batch))
            parts = [Term(term.targets.of(rows), term.weight[rows], term.temperature) for term in terms]
            part, ctx.grad[rows] = _of_terms(logits[rows].to(dtype), parts, None)
            losses[net] += part
        return losses if num_nets else losses.squeeze(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.grad is None:
            raise RuntimeError("this loss gives its gradient once")
        grad, ctx.grad = ctx.grad, None
        if grad_output.ndim:
            grad.view(len(grad_output), -1).mul_(grad_output[:, None])
            return grad, None, None
        if grad.is_cpu and not torch.compiler.is_compiling() and grad_output == 1:  # a pass over it that is saved
            return grad, None, None
        return grad.mul_(grad_output), None, None


def _of_terms(logits: torch.Tensor, terms: Sequence[Term], num_nets: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a chunk, () or (num_nets,), and its gradient, (rows, num_pdfs), of the type of these logits."""
    loss, grad = _of_term(logits, terms[0], num_nets)
    for term in terms[1:]:
        more_loss, more_grad = _of_term(logits, term, num_nets)
        loss, grad = loss + more_loss, grad.add_(more_grad)
    return loss, grad


def _of_term(logits: torch.Tensor, term: Term, num_nets: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    targets, temperature = term.targets, term.temperature
    log_q = (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)
    prob, pdf, weight = targets.prob.to(logits.dtype), targets.pdf, term.weight.to(logits.dtype)
    grad_of_named = prob * -weight[:, None]
    if pdf is None:
        loss = -(prob * log_q).sum(dim=-1)
        grad = grad_of_named
    else:
        loss = -(prob * log_q.gather(-1, pdf)).sum(dim=-1)
        # Where k is all states there is no rest: its logsumexp is −inf.
        if targets.tail is None or pdf.shape[1] == logits.shape[1]:
            grad = torch.zeros_like(log_q)
        else:
            tail = targets.tail.to(logits.dtype)
            rest = log_q.scatter(-1, pdf, float("-inf"))
            log_rest = rest.logsumexp(dim=-1)
            loss = loss - tail * log_rest
            grad = rest.sub_(log_rest[:, None]).exp_().mul_((tail * -weight)[:, None])
        grad.scatter_add_(-1, pdf, grad_of_named)
    grad = torch.ops.aten._log_softmax_backward_data(grad, log_q, -1, log_q.dtype)
    loss = loss * weight
    loss = loss.sum() if num_nets is None else loss.view(num_nets, -1).sum(dim=-1)
    return loss, grad if temperature == 1 else grad.div_(temperature)
