"""Where and in which number format nets run."""

import contextlib
import functools
from types import ModuleType

import torch

from asr_kd.errors import AsrKdError
from asr_kd.world import ALONE, World


def resolve_device(name: str, world: World = ALONE) -> torch.device:
    """`auto` (CUDA where there is a GPU), `cpu` or `cuda`; raises AsrKdError if it is not to be had.

    Of several processes on a machine, each has a GPU of its own.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise AsrKdError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise AsrKdError("--device cuda: this PyTorch sees no GPU; use --device cpu, or install a CUDA build of torch")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or world.size == 1:
        return torch.device(name)
    if world.local_rank >= torch.cuda.device_count():
        raise AsrKdError(
            f"--device {name}: no GPU is left for process {world.local_rank + 1} of this machine, which has "
            f"{torch.cuda.device_count()}; start as many by torchrun --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: `auto` takes bfloat16 only where the hardware multiplies it.

    A CPU without AMX or AVX512-BF16 emulates bfloat16 at a thirtieth of its float32 speed.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return torch.bfloat16 if fast else torch.float32


def has_kernels(device: torch.device) -> bool:
    """Whether kernels of Triton can be had; it comes with PyTorch's builds for GPUs, not with those for CPUs."""
    try:
        from asr_kd.nnet.gpu_kernels import is_usable
    except Exception:  # not there, or there and broken
        return False
    return is_usable(device)


@functools.cache
def cpu_kernels(device: torch.device) -> ModuleType | None:
    """asr_kd.nnet.cpu_kernels where they can be had: on a CPU, with numba, which training can do without."""
    if device.type != "cpu":
        return None
    try:
        from asr_kd.nnet import cpu_kernels as kernels
    except Exception:  # not there, or there and broken
        return None
    return kernels


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Run matrix products in `dtype`; nothing at all for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def rows_at_once(device: torch.device, row_size: int) -> int:
    """How many rows of `row_size` numbers are worked on at a time: what a CPU's cache holds, or what fills a GPU.

    Large temporaries are slow on a CPU: their memory is mapped anew each time.
    """
    return max(1, (1 << 18 if device.type == "cpu" else 1 << 24) // row_size)
