"""Kernels of Triton for GPUs: whether they can be had, windows gathered in one pass, and sums of softmaxes."""

import functools

import torch
import triton
import triton.language as tl

from asr_kd.cli_common import log

_BLOCK = 1024
# Columns that a kernel has in its registers at a time.
MAX_BLOCK = 4096


def num_warps(block: int) -> int:
    """Of a kernel that works on so many columns at a time."""
    return max(1, min(8, block // 256))


@functools.cache
def is_usable(device: torch.device) -> bool:
    """Whether Triton's kernels can be built and run here; says once what is missing otherwise."""
    try:
        ones = torch.ones(2, dtype=torch.int64, device=device)
        _windows_kernel[(1,)](ones, ones, ones, ones, ones, ones, 1, 1, 2, 1.0, 2)
    except Exception as error:  # whatever a missing C compiler or header, or an unknown GPU, makes of it
        reason = str(error).strip().partition("\n")[0]
        log(f"warning: Triton cannot build kernels here ({reason}); all takes longer, and more memory")
        return False
    return True


def gathered(
    feats: torch.Tensor,
    index: torch.Tensor,
    context: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    dtype: torch.dtype,
    scale: float,
) -> torch.Tensor:
    """Rows index + context of feats (num_rows, feat_dim), times scale: (batch, window * feat_dim).

    first, last: (batch,) the outermost rows of each window's utterance, repeated where it reaches beyond them.
    """
    feats, index = feats.contiguous(), index.contiguous()
    windows = torch.empty((len(index), len(context) * feats.shape[1]), dtype=dtype, device=feats.device)
    blocks = triton.cdiv(windows.numel(), _BLOCK)
    if blocks:
        sizes = (len(context), feats.shape[1], windows.numel())
        _windows_kernel[(blocks,)](feats, index, context, first, last, windows, *sizes, scale, _BLOCK)
    return windows


@triton.jit
def _windows_kernel(
    feats, index, context, first, last, windows, window, feat_dim, number, scale, BLOCK: tl.constexpr
):  # fmt: skip
    """BLOCK of the `number` values of all windows, one after another."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < number
    frame, dim = place // feat_dim, place % feat_dim
    which = frame // window
    row = tl.load(index + which, mask=inside, other=0) + tl.load(context + frame % window, mask=inside, other=0)
    row = tl.minimum(row, tl.load(last + which, mask=inside, other=0))
    row = tl.maximum(row, tl.load(first + which, mask=inside, other=0))
    values = tl.load(feats + row * feat_dim + dim, mask=inside, other=0).to(tl.float32) * scale
    tl.store(windows + place, values.to(windows.dtype.element_ty), mask=inside)


def add_softmax(total: torch.Tensor, logits: torch.Tensor, temperature: float) -> None:
    """Add softmax(z / T) of each row to `total` (batch, num_pdfs) float32, of logits of at most 32 bits."""
    num_pdfs, logits = logits.shape[1], logits.contiguous()
    block = min(MAX_BLOCK, triton.next_power_of_2(num_pdfs))
    if len(logits):
        _softmax_kernel[(len(logits),)](logits, total, num_pdfs, 1 / temperature, block, num_warps=num_warps(block))


@triton.jit
def add_to_log_sum(largest, total, values):
    """The largest number and Σ exp(number − largest) so far, with more `values`, of which all may be −∞."""
    new = tl.maximum(largest, tl.max(values, axis=0))
    base = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp(largest - base) + tl.sum(tl.exp(values - base), axis=0)


@triton.jit
def _softmax_kernel(logits, total, num_pdfs, inverse_temperature, BLOCK: tl.constexpr):
    """A row, which is read twice: the second time it lies in a cache."""
    row = tl.program_id(0).to(tl.int64) * num_pdfs
    largest = float("-inf")
    summed = 0.0
    for begin in range(0, num_pdfs, BLOCK):
        cols = begin + tl.arange(0, BLOCK)
        a = tl.load(logits + row + cols, mask=cols < num_pdfs, other=float("-inf")).to(tl.float32) * inverse_temperature
        largest, summed = add_to_log_sum(largest, summed, a)
    log_sum = largest + tl.log(summed)
    for begin in range(0, num_pdfs, BLOCK):
        cols = begin + tl.arange(0, BLOCK)
        inside = cols < num_pdfs
        a = tl.load(logits + row + cols, mask=inside, other=float("-inf")).to(tl.float32) * inverse_temperature
        before = tl.load(total + row + cols, mask=inside, other=0.0)
        tl.store(total + row + cols, before + tl.exp(a - log_sum), mask=inside)
