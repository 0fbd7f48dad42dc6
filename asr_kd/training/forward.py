"""From windows to the loss, by PyTorch's operations one by one or compiled into few."""

from collections.abc import Callable

import torch

from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast
from asr_kd.training.run import Run

# (windows (…, batch, window * feat_dim), frame numbers (…, batch), what else the net takes) → the run's loss.
Forward = Callable[..., torch.Tensor]


def is_recorded(run: Run) -> bool:
    """Whether steps of whole batches are recorded as CUDA graphs, optimiser and all: see asr_kd/training/update.py."""
    on_gpu = run.train.frames.device.type == "cuda"
    return on_gpu and run.config.cuda_graphs and run.is_recordable and run.world.size == 1 and not run.quantization


def forward_of(run: Run, net: Callable[..., torch.Tensor]) -> Forward:
    """What gives a loss and, by its backward, the gradients of `net`; compiled where the key `compile` is true.

    Compiled are batches of batch_size alone: the last one of a pass is not worth a compilation. On a GPU the kernels
    are recorded as CUDA graphs, unless all of the step is. Dropout draws what it draws uncompiled. Raises AsrKdError
    where it cannot be done.
    """
    device = run.train.frames.device
    to_graphs = device.type == "cuda" and not is_recorded(run)

    def forward(windows: torch.Tensor, index: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        with autocast(device, run.dtype):
            logits = net(windows, *more)
        return run.loss(logits, index, windows)

    if not run.config.compile:
        return forward
    if run.world.size > 1 or run.quantization:
        raise AsrKdError(
            "compile true: not for nets that are quantized, or that several processes train; set it to false"
        )
    for tensor in (run.train.pdf, *run.looked_up()):  # else a CUDA graph copies all of them in every step
        torch._dynamo.mark_static_address(tensor)
    torch.compiler.reset()  # what was compiled for another net is of no use, and counts against PyTorch's limit
    options = {"fallback_random": True, "triton.cudagraphs": to_graphs}
    compiled = torch.compile(forward, dynamic=False, options=options)

    def compiled_if_whole(windows: torch.Tensor, index: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        if index.shape[-1] != run.config.batch_size:
            return forward(windows, index, *more)
        if to_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step left in the graphs' memory is done with
        try:
            return compiled(windows, index, *more)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
            raise AsrKdError(
                f"compile true: cannot be done here ({reason}); it needs a C++ compiler such as g++, and on a GPU "
                "triton: install them, or set compile to false"
            ) from error

    return compiled_if_whole
