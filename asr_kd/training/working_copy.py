"""Training in bfloat16 on a CPU that multiplies it: float32 weights, and a copy of them that computes.

Mixed precision as Micikevicius et al. 2018 (arXiv:1710.03740, section 3.1) have it. Autocast converts all weights to
bfloat16 in every step, and all gradients back; here the optimiser, which has each weight in hand, writes the copy too,
and takes gradients as they are. Such processors multiply so fast that all that is not a product takes as long as the
products: what lies between two of them is one compiled pass, over what the last one has left in a cache.
"""

import math
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional

from asr_kd.nnet.device import cpu_kernels
from asr_kd.nnet.model import FrameClassifier
from asr_kd.nnet.rectified import rectified
from asr_kd.training.run import Run


class WorkingCopy:
    """What computes for a FrameClassifier in training, and takes steps for it and its optimiser.

    max_grad_norm: to what the overall norm of the gradients is scaled down, as torch's clip_grad_norm_ does it; 0: it
    is not.
    """

    def __init__(
        self, net: FrameClassifier, optimizer: torch.optim.AdamW, max_grad_norm: float, kernels: ModuleType
    ) -> None:
        self._net, self._optimizer, self._max_grad_norm, self._kernels = net, optimizer, max_grad_norm, kernels
        self._layers = [_Layer(layer) for layer in net.linear]
        # Of the batch at hand: what each layer is given, by what dropout multiplied it, and the norm of gradients.
        self._values: list[torch.Tensor] = []
        self._scales: list[float] = []
        self._squares = 0.0

    @torch.no_grad()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits (batch, num_pdfs) bfloat16 of windows (batch, …); when they get a gradient, the net gets its own."""
        rates = self._dropout_rates()
        self._scales = [1 / (1 - rate) if rate < 1 else 0.0 for rate in rates]
        self._values = [functional.dropout(windows.flatten(1).bfloat16(), rates[0])]
        *hidden, last = self._layers
        for layer, rate in zip(hidden, rates[1:], strict=True):
            x = rectified(self._values[-1], layer.updated(), layer.bias.bfloat16())
            self._values.append(functional.dropout(x, rate))
        logits = torch.addmm(last.bias.bfloat16(), self._values[-1], last.updated().t())
        logits.requires_grad_().register_hook(self._backward)
        return logits

    def _dropout_rates(self) -> list[float]:
        """Of the inputs, and of what each hidden layer gives."""
        rates = [0.0]
        for layer in self._net.layers:
            if isinstance(layer, nn.Dropout):
                rates[-1] = layer.p
            elif isinstance(layer, nn.ReLU):
                rates.append(0.0)
        return rates

    @torch.no_grad()
    def _backward(self, grad: torch.Tensor) -> None:
        grad, kernels, self._squares = grad.contiguous(), self._kernels, 0.0
        of_bias = kernels.sum_over_rows(grad)
        for number in reversed(range(len(self._layers))):
            layer, x = self._layers[number], self._values.pop()
            layer.bias.grad = of_bias
            torch.mm(grad.t(), x, out=layer.grad)
            if self._max_grad_norm:  # while a cache holds it
                self._squares += kernels.sum_of_squares(layer.grad) + float(of_bias.dot(of_bias))
            if number:
                grad = grad @ layer.working
                if self._scales[number] != 1:
                    grad *= self._scales[number]
                of_bias = kernels.relu_backward_(grad, x)

    @torch.no_grad()
    def step(self) -> None:
        """A step of AdamW with the gradients there are."""
        scale = self._max_grad_norm / (math.sqrt(self._squares) + 1e-6) if self._max_grad_norm else 1.0
        scale = 1.0 if scale >= 1.0 else scale  # NaN stays
        if scale != 1.0:
            for layer in self._layers:
                layer.bias.grad.mul_(scale)
        self._optimizer.step()  # of the biases alone: weights have no gradients of their own
        self._optimizer.zero_grad(set_to_none=True)
        group = self._optimizer.param_groups[0]
        for layer in self._layers:
            state = self._state_of(layer.weight)
            state["step"] += 1
            numbers = self._kernels.AdamW.of(float(state["step"]), scale, group)
            self._kernels.adamw(layer.weight, layer.grad, state["exp_avg"], state["exp_avg_sq"], layer.working, numbers)

    def _state_of(self, weight: nn.Parameter) -> dict[str, torch.Tensor]:
        """As torch's AdamW has it, and checkpoints keep it."""
        state = self._optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        return state


class _Layer:
    """Weights and biases of a layer, the bfloat16 copy of the weights, and room for its gradient."""

    def __init__(self, layer: nn.Linear):
        self.weight, self.bias = layer.weight, layer.bias
        self.working, self.grad = (torch.empty_like(layer.weight, dtype=torch.bfloat16) for _ in range(2))
        self._version = -1

    def updated(self) -> torch.Tensor:
        """The copy; converted where another than a step has changed the weights: a resumption, pruning."""
        if self.weight._version != self._version:
            self.working.copy_(self.weight)
            self._version = self.weight._version
        return self.working


def working_copy(run: Run, net: nn.Module, optimizer: torch.optim.Optimizer) -> WorkingCopy | None:
    """None where `net` computes by itself: other devices and types, stacks of nets, SGD, and what changes the layers.

    Of several processes, too, which add up float32 gradients.
    """
    is_plain = isinstance(net, FrameClassifier) and isinstance(optimizer, torch.optim.AdamW)
    is_taken = is_plain and not run.quantization and not run.config.compile and run.world.size == 1
    kernels = cpu_kernels(run.train.frames.device) if is_taken and run.dtype == torch.bfloat16 else None
    return WorkingCopy(net, optimizer, run.config.max_grad_norm, kernels) if kernels else None
