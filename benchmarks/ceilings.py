"""What bounds a speed here: the matrix products of a net alone, copies in memory; and what the machine is."""

import os
import platform
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}


class Clock:
    """Seconds: of processor time of this process, all threads together (cpu), or of time (wall).

    On a GPU it is time, and reading the clock `waits` until the GPU is done.
    """

    def __init__(self, kind: str, device: torch.device):
        self._device = device
        self.waits = device.type == "cuda"
        self.kind = "wall" if self.waits else kind
        self._now = time.process_time if self.kind == "cpu" else time.perf_counter

    def __call__(self) -> float:
        if self.waits:
            torch.cuda.synchronize(self._device)
        return self._now()


def machine(device: torch.device) -> str:
    """One line: processor, cores, vector units, GPU, torch, threads."""
    units = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has = [unit if units.get(unit) else f"no {unit}" for unit in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")]
    parts = [f"{_processor()}, {os.cpu_count()} cores, {', '.join(has)}"]
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        parts.append(f"{torch.cuda.get_device_name(device)}, {memory >> 30} GiB")
    return "; ".join([*parts, f"torch {torch.__version__}, {torch.get_num_threads()} threads"])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def copy_bandwidth(clock: Clock, device: torch.device, rounds: int = 5) -> float:
    """Bytes a second that are read and written, together, while a tensor beyond all caches is copied."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(rounds + 1):  # the first one maps the memory
        begin = clock()
        target.copy_(source)
        seconds.append(clock() - begin)
    return 2 * COPY_BYTES[device.type] / statistics.median(seconds[1:])


@dataclass(frozen=True)
class Cost:
    """What training must do for a frame, at least.

    operations: 6 for each weight, multiplications and additions of forward pass, data gradient and weight gradient,
    but 4 in the first layer: features get no gradient. bytes: of memory, read or written once for each use, if no cache
    helped: weights and their gradients, AdamW's moments, every layer's values and their gradients, windows.
    """

    operations: float
    bytes: float

    @classmethod
    def of(cls, dims: list[int], batch_size: int, dtype: torch.dtype) -> "Cost":
        """dims: the widths of the net, from inputs to states."""
        weights = sum(a * b for a, b in pairwise(dims))
        # A step: weights read twice, gradients written; the optimiser reads and writes seven float32 tensors.
        of_step = weights * (3 * dtype.itemsize + 7 * 4)
        # A frame: written and read twice, as are gradients; windows are gathered, written, and read twice.
        of_frame = (6 * sum(dims[1:]) + 4 * dims[0]) * dtype.itemsize
        return cls(6 * weights - 2 * dims[0] * dims[1], of_step / batch_size + of_frame)


class Products:
    """The matrix products of a step and nothing else, on matrices that are there already."""

    def __init__(self, dims: list[int], batch_size: int, device: torch.device, dtype: torch.dtype):
        make = lambda *shape: torch.randn(shape, device=device, dtype=dtype)  # noqa: E731
        self._weights = [make(b, a) for a, b in pairwise(dims)]
        self._values = [make(batch_size, dim) for dim in dims]
        self._results = [make(batch_size, dim) for dim in dims]
        self._gradients = [torch.empty_like(weight) for weight in self._weights]
        self._batch_size = batch_size

    def forward(self) -> None:
        """Those of a forward pass."""
        for layer, weight in enumerate(self._weights):
            torch.mm(self._values[layer], weight.t(), out=self._results[layer + 1])

    def backward(self) -> None:
        """Those of the gradients of weights, and of all values but the windows."""
        for layer, weight in reversed(list(enumerate(self._weights))):
            torch.mm(self._values[layer + 1].t(), self._values[layer], out=self._gradients[layer])
            if layer:
                torch.mm(self._values[layer + 1], weight, out=self._results[layer])

    def speed(self, clock: Clock, seconds: float) -> float:
        """Frames a second of training steps, over at least `seconds`."""
        steps, taken = 1, 0.0
        while taken < seconds:
            steps *= 2
            begin = clock()
            for _ in range(steps):
                self.forward()
                self.backward()
            taken = clock() - begin
        return steps * self._batch_size / taken
