"""Learning rates: functions of the step, or, as Kaldi's newbob, of what dev said after each epoch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from asr_kd.config import DnnConfig
from asr_kd.errors import AsrKdError

# Share of the peak at `progress` (0 after the warm-up, 1 at the last step), given the share at the end.
DECAYS: Mapping[str, Callable[[float, float], float]] = {
    "linear": lambda progress, end: 1.0 - (1.0 - end) * progress,
    "cosine": lambda progress, end: end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress)),
    "exponential": lambda progress, end: end**progress,
    "constant": lambda progress, end: 1.0,
}


@dataclass(frozen=True)
class Verdict:
    """What becomes of an epoch: are its weights kept, and was it the last?"""

    accepted: bool = True
    finished: bool = False


class Schedule:
    """Linear warm-up from 0 to the peak, then one of DECAYS until the last of `num_steps`."""

    def __init__(self, config: DnnConfig, num_steps: int):
        self._config = config
        self._num_steps = num_steps
        self._warmup = min(config.warmup_steps, num_steps // 2)

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self._warmup:
            return self._config.learning_rate * (step + 1) / self._warmup
        progress = (step - self._warmup) / max(self._num_steps - self._warmup - 1, 1)
        decay = DECAYS[self._config.schedule]
        return self._config.learning_rate * decay(progress, self._config.final_learning_rate_ratio)

    def after_epoch(self, epoch: int, dev_xent: float) -> Verdict:
        """To be told the cross-entropy on dev after every epoch, counted from 1."""
        return Verdict()

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON has it; give it back through `restore`."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo `state`."""


@dataclass(frozen=True)
class _NewbobState:
    factor: float = 1.0
    halving: bool = False
    loss: float | None = None


class Newbob(Schedule):
    """Kaldi's egs/wsj/s5/steps/nnet/train_scheduler.sh, whose options give the keys their names.

    An epoch that is not better on dev than the last accepted one is rejected: training goes on from that one. Once the
    relative improvement falls below start_halving_impr, the rate is halved after every epoch; the end has come when it
    falls below end_halving_impr after that. The first keep_lr_iters epochs change no rate, and they and the first
    min_iters are always accepted. Warm-up, which Kaldi has not, multiplies the rate; warmup_steps 0 is Kaldi.
    """

    def __init__(self, config: DnnConfig, num_steps: int):
        super().__init__(config, num_steps)
        self._now = _NewbobState()

    def begin(self, dev_xent: float) -> None:
        """To be told the cross-entropy of the untrained net: the first epoch is measured against it."""
        self._now = replace(self._now, loss=dev_xent)

    def learning_rate(self, step: int) -> float:
        """See Schedule."""
        rate = self._config.learning_rate * self._now.factor
        return rate * (step + 1) / self._warmup if step < self._warmup else rate

    def after_epoch(self, epoch: int, dev_xent: float) -> Verdict:
        """See Schedule."""
        config, before = self._config, self._now
        if before.loss is None:
            raise AsrKdError("newbob measures the first epoch against the untrained net, whose loss is missing")
        accepted = dev_xent < before.loss or epoch <= max(config.keep_lr_iters, config.min_iters)
        loss = dev_xent if accepted else before.loss
        self._now = replace(before, loss=loss)
        if epoch <= config.keep_lr_iters:
            return Verdict(accepted)
        improvement = (before.loss - loss) / before.loss
        if before.halving and improvement < config.end_halving_impr:
            # An epoch within min_iters that ought to have been the last leaves the rate alone.
            return Verdict(accepted, finished=epoch > config.min_iters)
        if before.halving or improvement < config.start_halving_impr:
            self._now = replace(self._now, halving=True, factor=before.factor * config.halving_factor)
        return Verdict(accepted)

    @property
    def state(self) -> dict[str, Any]:
        """See Schedule."""
        return asdict(self._now)

    def restore(self, state: dict[str, Any]) -> None:
        """See Schedule."""
        self._now = _NewbobState(**state)


def make_schedule(config: DnnConfig, num_steps: int) -> Schedule:
    """What `schedule` names."""
    return Newbob(config, num_steps) if config.schedule == "newbob" else Schedule(config, num_steps)
