"""One step of training: the loss of a batch, its gradients, and what the optimiser makes of them.

On a GPU the step of a whole batch is recorded once as a CUDA graph and replayed from then on: some hundred kernels are
launched by one call, where Python would take longer to launch them than a small net's take to run.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from asr_kd.nnet.stacked import StackedNets
from asr_kd.training.data_parallel import backward_together
from asr_kd.training.forward import forward_of, is_recorded
from asr_kd.training.optimizer import bound_norms, clip_gradients, clip_gradients_of_each
from asr_kd.training.pruning import kept_zero
from asr_kd.training.run import Run
from asr_kd.training.working_copy import working_copy

# (frame numbers, windows or None, dropout masks…) → the loss.
Work = Callable[..., torch.Tensor]


class Update:
    """What a step does to `net`, a single one or a stack, and to its optimiser."""

    def __init__(self, run: Run, net: nn.Module, optimizer: torch.optim.Optimizer):
        self._run, self._net, self._optimizer = run, net, optimizer
        self._copy = working_copy(run, net, optimizer)
        self._forward = forward_of(run, self._copy or net)
        self._clip = clip_gradients_of_each if isinstance(net, StackedNets) else clip_gradients
        self._is_recorded, self._prunes = is_recorded(run), run.pruning is not None
        self._recording: Recording | None = None

    def begin_epoch(self) -> None:
        """Between epochs the optimiser may go back to another state, and dropout change: what was recorded is over."""
        if self._recording and not self._recording.is_of(self._net, self._optimizer):
            self._recording = None

    def __call__(
        self,
        index: torch.Tensor,
        learning_rate: float,
        windows: torch.Tensor | None = None,
        masks: Sequence[torch.Tensor] = (),
        share: float = 1.0,
    ) -> torch.Tensor:
        """Take a step on frames `index` ((num_nets,) batch); returns their loss, to be read before the next step.

        windows: what the net sees, (…, batch, window * feat_dim); None where that is what Frames.windows gives, always
        or never in a run. masks: of a stack's dropout. share: of the batch that `index` is; others have the rest.
        """
        inputs = [index, windows, *masks]
        is_whole = index.shape[-1] == self._run.config.batch_size
        if is_whole and self._recording is None and self._is_recorded:
            self._recording = Recording(self._work, inputs, self._net, self._optimizer)
        if self._recording:
            self._recording.learning_rate.fill_(learning_rate)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
        return self._recording(inputs) if is_whole and self._recording else self._work(*inputs, share=share)

    def _work(
        self, index: torch.Tensor, windows: torch.Tensor | None, *masks: torch.Tensor, share: float = 1.0
    ) -> torch.Tensor:
        if windows is None:
            windows = self._run.train.frames.windows(index.flatten()).unflatten(0, index.shape)
        return self._learn(index, windows, masks, share)

    def _learn(
        self, index: torch.Tensor, windows: torch.Tensor, masks: Sequence[torch.Tensor], share: float
    ) -> torch.Tensor:
        run, net, config = self._run, self._net, self._run.config
        loss = self._forward(windows, index, *masks)
        loss = backward_together(net, loss, share, run.world)
        with kept_zero(net) if self._prunes else contextlib.nullcontext():
            if self._copy:
                self._copy.step()
            else:
                self._step()
            if config.max_norm:
                bound_norms(net, config.max_norm)
        return loss

    def _step(self) -> None:
        if self._run.config.max_grad_norm:
            self._clip(self._net, self._run.config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class Recording:
    """A step as a CUDA graph, that works on copies of what it is given.

    learning_rate: a scalar on the device, which the optimiser reads in every step from now on, recorded or not.
    """

    def __init__(
        self, work: Work, inputs: Sequence[torch.Tensor | None], net: nn.Module, optimizer: torch.optim.Optimizer
    ):
        """Record `work`; weights, the optimiser and random numbers stay as they are."""
        self._inputs = [None if each is None else each.clone() for each in inputs]
        device = self._inputs[0].device
        self.learning_rate = torch.zeros((), device=device)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
            if "capturable" in group:  # AdamW asks to be told
                group["capturable"] = True
        # This first time is also when targets are made that are made at all only if a batch asks for them.
        undone = _without_effect(net, optimizer, device)
        self._replay, self._loss = recorded(lambda: work(*self._inputs), device, undone)
        self._of = _places(net, optimizer)

    def is_of(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Whether what it works on is still what the net and its optimiser have."""
        return self._of == _places(net, optimizer)

    def __call__(self, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Take a step; the loss stands there until the next one."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            if given is not None:
                mine.copy_(given)
        self._replay()
        return self._loss


def recorded(
    work: Callable[[], torch.Tensor], device: torch.device, undone: contextlib.AbstractContextManager[None]
) -> tuple[Callable[[], None], torch.Tensor]:
    """What does `work` on the GPU from now on, and where its result stands then; a first time is `undone`."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), undone:
        work()  # kernels, workspaces and the optimiser's state are built now
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: the one that reads a streamed set pins memory meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = work()
    return graph.replay, result


@contextlib.contextmanager
def _without_effect(net: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Undo what happens inside to weights, optimiser and random numbers, in their places; new state begins as 0."""
    weights = [each.detach().clone() for each in net.parameters()]
    before = {
        parameter: {name: _copy(value) for name, value in state.items()} for parameter, state in optimizer.state.items()
    }
    cpu = device.type == "cpu"
    random = torch.get_rng_state() if cpu else torch.cuda.get_rng_state(device)
    yield
    with torch.no_grad():
        for mine, value in zip(net.parameters(), weights, strict=True):
            mine.copy_(value)
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    old = before.get(parameter, {}).get(name)
                    value.zero_() if old is None else value.copy_(old)
    torch.set_rng_state(random) if cpu else torch.cuda.set_rng_state(random, device)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _places(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """What a recording has fixed: where weights and state of the optimiser are, and the rates of dropout."""
    tensors = [*net.parameters(), *(value for state in optimizer.state.values() for value in state.values())]
    places = [each.data_ptr() for each in tensors if isinstance(each, torch.Tensor)]
    return [*places, *(module.p for module in net.modules() if isinstance(module, nn.Dropout))]
