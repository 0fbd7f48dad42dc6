"""Nets that differ in their seed alone trained together, as one stack of nets over the same resident frames.

A member has its own weights, order of frames, views, dropout, clipping, history, best epoch and folder, and ends with
the weights that train_net gives it, but for the order of sums (and roundings, in bfloat16 on a CPU). All of it is in a
TrainingState, as if the net were alone; while steps are made, weights and the optimiser's state are in one more, that
of the stack.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import CARD
from asr_kd.nnet.stacked import StackedNets
from asr_kd.training.apart import Apart, train_apart
from asr_kd.training.augment import Augmentation
from asr_kd.training.averaging import WeightAverage
from asr_kd.training.checkpoint import Checkpoint, Tensors, load_checkpoint, restore, save_checkpoint, snapshot
from asr_kd.training.loop import (
    batches_of_epoch,
    describe,
    end_epoch,
    finish,
    is_complete,
    mean_loss,
    new_state,
    order_of_pass,
    progress_of,
    seed_of_pass,
    summation,
    take_the_place,
    train_net,
    warn_of_other_bits,
)
from asr_kd.training.optimizer import make_optimizer
from asr_kd.training.progress import HEADER, Progress
from asr_kd.training.run import Run
from asr_kd.training.state import TrainingState
from asr_kd.training.stream import StreamedIndex
from asr_kd.training.update import Update

# The checkpoint of all members, in the folder of the first.
NAME = "stacked.safetensors"

# In a step of one net: a large GPU takes a quarter of a millisecond for them, less than Python does to launch them.
FEW_OPERATIONS = 1e11


def train_all(runs: Sequence[Run], stacked: str, apart: Apart | None = None) -> None:
    """Train every run, together, apart or in turn: `stacked` is always, never, or auto, as the key has it.

    Auto takes them together on a GPU that one does not fill, and where they were begun together. A net that was begun
    by itself goes on so. Raises AsrKdError where they have to be trained together and cannot.
    """
    for run in runs:
        if isinstance(run.transfer_index, StreamedIndex):  # a pass that batches do not fit into is met before the first
            for number_of_pass in range(-(-run.num_steps // run.steps_per_pass)):
                order_of_pass(run, number_of_pass)
    reason = why_in_turn(runs) if len(runs) > 1 else None
    if reason and stacked == "always":
        raise AsrKdError(f"stacked always: {reason}; with stacked auto they are trained in turn")
    together = len(runs) > 1 and not reason and (stacked == "always" or (stacked == "auto" and _suggested(runs)))
    is_streamed = any(isinstance(run.transfer_index, StreamedIndex) for run in runs)  # by a thread of this process
    is_apart = apart and len(runs) > 1 and not together and not is_streamed
    if apart and not is_apart:  # this process trains them after all
        torch.set_num_threads(apart.num_threads)
    if together:
        for run in runs:
            if (alone := load_checkpoint(run.out)) and alone.progress["fingerprint"] == run.fingerprint:
                train_net(run)
        train_together(runs)
        return
    if begun := [run.out / NAME for run in runs if (run.out / NAME).exists()]:
        runs[0].world.log(
            f"warning: {begun[0]} is of nets begun together, which are trained in turn now, each from its own "
            "beginning; it stays, and with stacked auto or always they go on from there"
        )
    if is_apart:
        train_apart(runs, apart)
        return
    for run in runs:
        train_net(run)


def why_in_turn(runs: Sequence[Run]) -> str | None:
    """What keeps runs from being trained together, in words, or None."""
    first = runs[0]
    reasons = {
        "several processes train each net": first.world.size > 1,
        "nets that are pruned or quantized are trained by themselves": bool(first.compressed_by),
        "schedule newbob goes back with each net by itself": first.config.schedule == "newbob",
        "every pass draws other frames": first.draw is not None,
        "frames that are streamed have one order for all": not isinstance(first.transfer_index, torch.Tensor),
        "the nets differ in more than their seed": any(
            run.config != first.config or run.loss_key != first.loss_key or run.train is not first.train for run in runs
        ),
        "the nets are trained on unlike numbers of frames": len({len(run.transfer_index) for run in runs}) > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _suggested(runs: Sequence[Run]) -> bool:
    """Whether runs were begun together, or one of them does not fill the GPU that it is trained on."""
    run = runs[0]
    a = run.architecture
    dims = [a.window * a.feat_dim, *[a.hidden_dim] * a.num_hidden_layers, a.num_pdfs]
    operations = 6 * run.config.batch_size * sum(dim_in * dim_out for dim_in, dim_out in pairwise(dims))
    small = run.train.frames.device.type == "cuda" and operations < FEW_OPERATIONS
    return small or any((run.out / NAME).exists() for run in runs)


@dataclass(eq=False)
class Member:
    """A net of a stack.

    made_from: the run's fingerprint; dropout: where its random numbers come from; progress: what is told of it.
    """

    run: Run
    made_from: str
    state: TrainingState
    dropout: torch.Generator
    progress: Progress | None = None

    @classmethod
    def new(cls, run: Run, made_from: str) -> "Member":
        """Before the first step."""
        return cls(run, made_from, new_state(run), torch.Generator(run.train.frames.device))

    def to_checkpoint(self) -> Checkpoint:
        """That of a single net, and the state of its dropout."""
        found = self.state.to_checkpoint(fingerprint=self.made_from, **summation(self.run, self.state))
        return Checkpoint({**found.parts, "dropout": {"state": self.dropout.get_state()}}, found.progress)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Undo to_checkpoint."""
        self.state.restore(checkpoint)
        self.dropout.set_state(checkpoint.parts["dropout"]["state"])


def train_together(runs: Sequence[Run]) -> None:
    """Train runs, of which why_in_turn has nothing to say, as one; those that are complete stay as they are.

    After any kill the same call ends with the same weights, bit for bit. Raises AsrKdError as train_net does.
    """
    # That of another first net, where they were begun with fewer.
    folder = next((run.out for run in runs if (run.out / NAME).exists()), runs[0].out)
    with contextlib.ExitStack() as locks:
        for run in runs:
            locks.enter_context(run.world.only_writer(run.out / CARD))
        members = []
        for run in runs:
            made_from = run.fingerprint
            if is_complete(run.out, made_from):
                run.world.log(f"{run.out}: up to date")
            else:
                members.append(Member.new(run, made_from))
        begun = _go_on(members, load_checkpoint(folder, NAME))
        for group in (begun, [member for member in members if member not in begun]):
            if group:
                _train(group, folder)
        (folder / NAME).unlink(missing_ok=True)


def _go_on(members: Sequence[Member], checkpoint: Checkpoint | None) -> list[Member]:
    """Those of `members` that a checkpoint has, which then are as it has them."""
    saved = checkpoint.progress["members"] if checkpoint else []
    numbers = {progress["fingerprint"]: number for number, progress in enumerate(saved)}
    begun = [member for member in members if member.made_from in numbers]
    # Those that had stopped and are not among `members` are complete: they have left the stack as they would have.
    gone = sum(bool(progress["stopped"]) for progress in saved) - sum(
        bool(saved[numbers[member.made_from]]["stopped"]) for member in begun
    )
    for member in begun:
        number = numbers[member.made_from]
        member.restore(Checkpoint(_part(checkpoint.parts, f"{number}."), saved[number]))
        member.state.num_together = len(begun) + gone
        warn_of_other_bits(member.run, member.state, saved[number])
    if begun:
        state = begun[0].state
        begun[0].run.world.log(f"{_names(begun)}: continuing after step {state.step}, in epoch {state.epoch}")
    return begun


def _part(parts: Mapping[str, Tensors], prefix: str) -> dict[str, Tensors]:
    return {name.removeprefix(prefix): named for name, named in parts.items() if name.startswith(prefix)}


def _names(members: Sequence[Member]) -> str:
    return ", ".join([str(members[0].run.out), *(member.run.out.name for member in members[1:])])


def _save(members: Sequence[Member], folder: Path) -> None:
    """One checkpoint of all, so that none is ever a step behind."""
    each = [member.to_checkpoint() for member in members]
    parts = {f"{number}.{name}": part for number, one in enumerate(each) for name, part in one.parts.items()}
    save_checkpoint(folder, Checkpoint(parts, {"members": [one.progress for one in each]}), NAME)


def _train(members: list[Member], folder: Path) -> None:
    """Train members that have made the same steps to the end of the last."""
    first = members[0]
    log, width = first.run.world.log, max(len(member.run.out.name) for member in members)
    log(f"{describe(first.run, first.state)}, {len(members)} together: {_names(members)}")
    log(f"{'':{width}}  {HEADER}")
    with contextlib.ExitStack() as opened:
        for member in members:
            take_the_place(member.run)

            def log_row(row: str, name: str = member.run.out.name) -> None:
                log(f"{name:{width}}  {row}")

            member.progress = opened.enter_context(progress_of(member.run, member.state, log_row))
        while members := _without_those_that_stopped(members):
            _train_until_one_stops(Stack(members), folder)


def _without_those_that_stopped(members: Sequence[Member]) -> list[Member]:
    """Members whose training goes on; the nets of the others are saved."""
    for member in members:
        if member.state.stopped:
            finish(member.run, member.state, member.made_from)
    return [member for member in members if not member.state.stopped]


def _train_until_one_stops(stack: "Stack", folder: Path) -> None:
    members = stack.members

    def save_within_epoch() -> None:
        for member in members:
            member.progress.within(member.state.step, mean_loss(member.run, member.state))
        _save(members, folder)

    while not any(member.state.stopped for member in members):
        stack.train_epoch(save_within_epoch)
        for member in members:
            member.progress.epoch(*end_epoch(member.run, member.state))
        _save(members, folder)


class Stack:
    """Members as one net; between epochs, and whenever it is to be saved, each has what is its own."""

    def __init__(self, members: Sequence[Member]):
        self.members, self.run = list(members), members[0].run
        states, frames = [member.state for member in members], self.run.train.frames
        self._views = [
            Augmentation(self.run.config, frames.window, frames.feat_dim, member.run.seed, frames.device)
            for member in self.members
        ]
        first, nets = states[0], StackedNets([state.net for state in states])
        optimizer = make_optimizer(nets, self.run.config)
        self.state = TrainingState(
            nets,
            optimizer,
            first.schedule,
            torch.stack([state.loss_sum for state in states]),
            Update(self.run, nets, optimizer),
            step=first.step,
            history=first.history,  # the same list: epochs of all end together
            num_frames=first.num_frames,
            seconds=sum(state.seconds for state in states),
        )
        now = _joined([snapshot(state.net, state.optimizer) for state in states])
        restore(nets, self.state.optimizer, now)
        if first.average:
            self.state.average = WeightAverage(nets)
            means = _joined([state.average.net.state_dict() for state in states])
            self.state.average.restore(means, first.average.count)
        for state in states:
            state.num_together = len(states)

    def train_epoch(self, save: Callable[[], None]) -> None:
        """Train to the end of the epoch; `save` is called every checkpoint_minutes."""
        if self.state.step == self.state.epoch_begin:
            self.state.begin_epoch()
        for orders, rows in batches_of_epoch(self.run, self.state, self._begin_pass, self._hand_out, save):
            self.train_step(orders[:, rows].long())

    def _begin_pass(self, number: int, is_new: bool) -> torch.Tensor:
        """The order of each member, (num_nets, n)."""
        if is_new:
            for member in self.members:
                member.dropout.manual_seed(seed_of_pass(member.run, number))
        return torch.stack([order_of_pass(member.run, number) for member in self.members])

    def train_step(self, index: torch.Tensor) -> None:
        """One step of every member, on frames `index` (num_nets, batch)."""
        state = self.state
        masks = state.net.dropout_masks(index.shape[1], [member.dropout for member in self.members], self.run.dtype)
        losses = state.update(index, state.schedule.learning_rate(state.step), self._windows(index), masks)
        state.add_step(losses, index.shape[1])

    def _windows(self, index: torch.Tensor) -> torch.Tensor | None:
        """What each member sees, (num_nets, batch, window * feat_dim), views of its own drawn as if it were alone.

        None where that is the frames' own windows.
        """
        if not self._views[0].active:
            return None
        windows = self.run.train.frames.windows(index.flatten()).unflatten(0, index.shape)
        return torch.stack([view(mine, self.state.step) for view, mine in zip(self._views, windows, strict=True)])

    def _hand_out(self) -> None:
        """Give each member what is its own; it has its share of the time."""
        whole, loss_sums = self.state, self.state.loss_sum.cpu()
        num_nets = len(self.members)
        now = _parted(snapshot(whole.net, whole.optimizer), num_nets)
        means = _parted(whole.average.net.state_dict(), num_nets) if whole.average else None
        for number, member in enumerate(self.members):
            state = member.state
            restore(state.net, state.optimizer, now[number])
            state.loss_sum.copy_(loss_sums[number])
            state.step, state.num_frames, state.seconds = whole.step, whole.num_frames, whole.seconds / num_nets
            if means:
                state.average = state.average or WeightAverage(state.net)
                state.average.restore(means[number], whole.average.count)


def _joined(each: Sequence[Tensors]) -> Tensors:
    """Tensors of single nets, by name, as the stack has them: matrices (num_nets, …), vectors one after another.

    A number (how many steps there were) is the same for all.
    """
    join = {0: lambda values: values[0], 1: torch.cat, 2: torch.stack}
    return {name: join[value.ndim]([tensors[name] for tensors in each]) for name, value in each[0].items()}


def _parted(tensors: Tensors, num_nets: int) -> list[Tensors]:
    """Undo _joined."""
    part = {0: lambda value: [value] * num_nets, 1: lambda value: value.chunk(num_nets), 3: torch.unbind}
    parts = {name: part[value.ndim](value) for name, value in tensors.items()}
    return [{name: values[number] for name, values in parts.items()} for number in range(num_nets)]
