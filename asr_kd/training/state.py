"""What changes while a net is trained; with the run's seed, everything that comes later follows from it."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from asr_kd.nnet.model import FrameClassifier
from asr_kd.training.averaging import WeightAverage
from asr_kd.training.checkpoint import Checkpoint, Tensors, restore, snapshot
from asr_kd.training.schedule import Schedule
from asr_kd.training.update import Update


@dataclass
class TrainingState:
    """A run between two steps.

    update: takes a step, as asr_kd/training/update.py has it. average: of the weights of the last steps,
    once these have begun. num_together: nets that are trained as one, this one counted. step: steps done. history: a
    row for every epoch.
    best: weights of the best epoch so far. accepted: snapshot after the last epoch that the schedule accepted, where it
    may reject one. stopped: why training is over, or None.
    Of the epoch under way: loss_sum (a scalar on the device, nats), num_frames, seconds of steps.
    """

    net: FrameClassifier
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss_sum: torch.Tensor
    update: Update
    average: WeightAverage | None = None
    num_together: int = 1
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Tensors = field(default_factory=dict)
    accepted: Tensors = field(default_factory=dict)
    stopped: str | None = None
    num_frames: int = 0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, from 1."""
        return len(self.history) + 1

    @property
    def epoch_begin(self) -> int:
        """Steps before the epoch under way."""
        return self.history[-1]["step"] if self.history else 0

    def begin_epoch(self) -> None:
        """Forget the sums of the last one."""
        self.loss_sum = torch.zeros_like(self.loss_sum)
        self.num_frames, self.seconds = 0, 0.0

    def add_step(self, loss: torch.Tensor, num_frames: int) -> None:
        """Count a step of `update`, which found the mean loss of so many frames."""
        self.loss_sum += loss * num_frames
        self.num_frames += num_frames
        self.step += 1

    def stop_clock(self, begin: float) -> None:
        """Wait for the device, and count the seconds since `begin` (time.perf_counter)."""
        self.loss_sum.cpu()
        self.seconds += time.perf_counter() - begin

    @property
    def result(self) -> FrameClassifier:
        """The net that training would end with now: the mean, where there is one."""
        return self.average.net if self.average else self.net

    def add_to_average(self) -> None:
        """Take the weights of this moment into the mean."""
        self.average = self.average or WeightAverage(self.net)
        self.average.add(self.net)

    def keep_best(self) -> None:
        """Take the result of this moment for the best."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.result.state_dict().items()}

    def accept(self) -> None:
        """Remember this moment as one to go back to."""
        self.accepted = snapshot(self.net, self.optimizer)

    def reject(self) -> None:
        """Go back to the weights and the optimiser of the last accepted moment."""
        restore(self.net, self.optimizer, self.accepted)

    def to_checkpoint(self, **progress: Any) -> Checkpoint:
        """All of this, the state of the random numbers (dropout's), and what else `progress` says."""
        random = {"cpu": torch.get_rng_state()}
        if self.loss_sum.is_cuda:
            random["cuda"] = torch.cuda.get_rng_state(self.loss_sum.device)
        parts = {"now": snapshot(self.net, self.optimizer), "best": self.best, "accepted": self.accepted}
        if self.average:
            parts["average"] = dict(self.average.net.state_dict())
            progress["num_averaged"] = self.average.count
        plain = ("step", "history", "stopped", "num_frames", "seconds")
        return Checkpoint(
            {**parts, "random": random, "sums": {"loss": self.loss_sum}},
            {**progress, **{name: getattr(self, name) for name in plain}, "schedule": self.schedule.state},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Undo to_checkpoint."""
        parts, progress = checkpoint.parts, checkpoint.progress
        restore(self.net, self.optimizer, parts["now"])
        self.schedule.restore(progress["schedule"])
        self.best, self.accepted = parts.get("best", {}), parts.get("accepted", {})
        if "average" in parts:
            self.average = WeightAverage(self.net)
            self.average.restore(parts["average"], progress["num_averaged"])
        self.loss_sum = parts["sums"]["loss"].to(self.loss_sum.device)
        for name in ("step", "history", "stopped", "num_frames", "seconds"):
            setattr(self, name, progress[name])
        torch.set_rng_state(parts["random"]["cpu"])
        if "cuda" in parts["random"]:
            torch.cuda.set_rng_state(parts["random"]["cuda"], self.loss_sum.device)
