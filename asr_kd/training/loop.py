"""The one training loop: single nets, members of an ensemble and students differ only in the loss they hand in."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from asr_kd import __version__
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast
from asr_kd.nnet.inference import mean_log_posteriors
from asr_kd.nnet.model import FrameClassifier, new_net
from asr_kd.nnet.net_dir import (
    CARD,
    TrainedNet,
    load_card,
    load_net,
    save_net,
    weights_digest,
    write_transfer_utts,
)
from asr_kd.runinfo import git_commit
from asr_kd.training.augment import Augmentation, mixed_seed
from asr_kd.training.checkpoint import NAME, load_checkpoint, save_checkpoint
from asr_kd.training.data import LabelledSet
from asr_kd.training.forward import is_recorded
from asr_kd.training.optimizer import make_optimizer
from asr_kd.training.progress import HEADER, Progress, tensorboard
from asr_kd.training.pruning import sparsity_of
from asr_kd.training.quantization import prepare, quantized
from asr_kd.training.random_order import random_order
from asr_kd.training.run import Run
from asr_kd.training.schedule import Newbob, make_schedule
from asr_kd.training.state import TrainingState
from asr_kd.training.stream import StreamedIndex, StreamedOrder
from asr_kd.training.update import Update

T = TypeVar("T")

# Frames to train on that a finished net is tried on.
MAX_TRANSFER_FRAMES = 100_000


def train_net(run: Run) -> TrainedNet:
    """Train, resume, or just load: after any kill the same call ends with the same weights, bit for bit.

    Keeps the epoch that is best on dev. All processes of run.world call it; their states stay the same, and the first
    writes. Raises AsrKdError if the loss stops being a number, no epoch was accepted, or another run is at work here.
    """
    made_from, world = run.fingerprint, run.world
    world.require_same(made_from, f"{run.out}: not all processes have the same data, options, version and precision")
    with world.only_writer(run.out / CARD):
        if world.first(lambda: is_complete(run.out, made_from)):
            world.log(f"{run.out}: up to date")
            return load_net(run.out)
        state = _begin(run, made_from)
        _train(run, state, made_from)
        trained = finish(run, state, made_from) if world.is_first else None
        world.wait()
    return trained or load_net(run.out)


def is_complete(out: Path, made_from: str) -> bool:
    return (out / CARD).exists() and load_card(out)["training"].get("fingerprint") == made_from


def _train(run: Run, state: TrainingState, made_from: str) -> None:
    """Train from where `state` stands to the end."""
    if run.world.is_first:
        take_the_place(run)
    run.world.log(HEADER)
    with contextlib.ExitStack() as stack:
        if isinstance(run.transfer_index, StreamedIndex):
            stack.callback(run.transfer_index.stream.stop)
        progress = stack.enter_context(progress_of(run, state, run.world.log))

        def save() -> None:
            if run.world.is_first:
                save_checkpoint(run.out, state.to_checkpoint(fingerprint=made_from, **summation(run, state)))

        def save_within_epoch() -> None:
            progress.within(state.step, mean_loss(run, state))
            save()

        while state.stopped is None:
            _train_epoch(run, state, save_within_epoch)
            progress.epoch(*end_epoch(run, state))
            save()


def take_the_place(run: Run) -> None:
    """Of a net that is there and was made from something else: from here on there is none until this one is trained."""
    if (run.out / CARD).exists():
        run.world.log(f"{run.out}: holds a net made from other inputs or another configuration, which is replaced")
        (run.out / CARD).unlink()


@contextlib.contextmanager
def progress_of(run: Run, state: TrainingState, log: Callable[[str], None]) -> Iterator[Progress]:
    """Rows for `log`, and curves where the run asks for them, from where `state` stands."""
    curves = contextlib.nullcontext()
    if run.config.tensorboard and run.world.is_first:
        curves = tensorboard(run.out.parent / "tensorboard" / run.out.name, state.step)
    with curves as opened:
        yield Progress(state.step, run.num_steps, log, opened)


def summation(run: Run, state: TrainingState) -> dict[str, int | bool]:
    """What the order of sums depends on, and so the last bits of the weights."""
    return {
        "num_threads": torch.get_num_threads(),
        "num_processes": run.world.size,
        "num_together": state.num_together,
        "compile": run.config.compile,
        "cuda_graphs": is_recorded(run),
    }


def _begin(run: Run, made_from: str) -> TrainingState:
    """The state of a fresh run, or of the one that was interrupted here.

    Raises AsrKdError where a net cannot be trained so; what is there from another run is left alone then.
    """
    pruning, quantization = run.pruning, run.quantization
    if run.world.size > 1 and quantization and quantization.to == "int8":
        raise AsrKdError(
            "quantize int8: the range of activations is that of a whole batch, which no process sees here; train in "
            "one process, or take int4"
        )
    state = new_state(run)
    run.world.log(
        f"{describe(run, state)}"
        + (f", in {run.world.size} processes" if run.world.size > 1 else "")
        + (f", {quantization.to}" if quantization else "")
        + (f", {pruning.sparsity(run.num_steps):.1%} pruned" if pruning else "")
    )
    goes_on = _go_on(run, state, made_from)
    run.world.require_same((goes_on, state.step), f"{run.out}: not all processes see the same {NAME}; share the folder")
    if isinstance(state.schedule, Newbob) and not goes_on:
        state.schedule.begin(_evaluate(run, state.net)["dev_xent"])
        state.accept()
    return state


def new_state(run: Run) -> TrainingState:
    """Before the first step; raises AsrKdError where there can be no such net."""
    device = run.train.frames.device
    net = new_net(run.architecture, run.seed)
    if run.initialise:
        run.initialise(net)
    if run.start:
        _take_weights(net, run.start, run.out)
    if run.quantization:
        prepare(net, run.quantization)
    net.to(device)
    schedule, optimizer = make_schedule(run.config, run.num_steps), make_optimizer(net, run.config)
    return TrainingState(net, optimizer, schedule, torch.zeros((), device=device), Update(run, net, optimizer))


def describe(run: Run, state: TrainingState) -> str:
    """What is about to be trained, in half a line."""
    return (
        f"{run.out}: {len(run.transfer_index):,} frames, {state.net.num_parameters:,} parameters, {run.num_steps:,} "
        f"steps of {run.config.batch_size}, {str(run.dtype).removeprefix('torch.')} on {run.train.frames.device}"
        + (", compiled" if run.config.compile else "")
    )


def _go_on(run: Run, state: TrainingState, made_from: str) -> bool:
    """Whether there is a checkpoint of this run, which `state` then is."""
    checkpoint = load_checkpoint(run.out)
    if checkpoint is None:
        return False
    if checkpoint.progress["fingerprint"] != made_from:
        run.world.log(
            f"{run.out}: configuration or inputs changed since the last run here; training from the beginning"
        )
        return False
    state.restore(checkpoint)
    run.world.log(f"{run.out}: continuing after step {state.step}, in epoch {state.epoch}")
    warn_of_other_bits(run, state, checkpoint.progress)
    return True


def warn_of_other_bits(run: Run, state: TrainingState, begun: Mapping[str, Any]) -> None:
    """Say where a run goes on otherwise than it was `begun`, by its checkpoint."""
    for key, now in summation(run, state).items():
        # Older checkpoints are of one process and one net, nothing compiled or recorded.
        before = begun.get(key, False if key in ("compile", "cuda_graphs") else 1)
        if before != now:
            draws = key == "num_processes" and (run.architecture.dropout or run.architecture.input_dropout)
            how = "dropout draws other numbers" if draws else "the weights will differ in their last bits"
            run.world.log(f"{run.out}: warning: begun with {key} {before}, continued with {now}; {how}")


def _take_weights(net: FrameClassifier, start: TrainedNet, out: Path) -> None:
    """Give `net` the weights of another; raises AsrKdError where it is of another shape."""
    ours, theirs = ([tuple(layer.weight.shape) for layer in each.linear] for each in (net, start.net))
    if ours != theirs:
        raise AsrKdError(
            f"{out}: has layers of {ours}, the net that it is to start from of {theirs}; they must have "
            "the same hidden_dim, num_hidden_layers, left_context and right_context"
        )
    for layer, other in zip(net.linear, start.net.linear, strict=True):
        layer.load_state_dict({"weight": other.weight, "bias": other.bias})


def _train_epoch(run: Run, state: TrainingState, save: Callable[[], None]) -> None:
    """Train from where `state` stands to the end of its epoch; `save` is called every checkpoint_minutes."""
    frames = run.train.frames
    augment = Augmentation(run.config, frames.window, frames.feat_dim, run.seed, frames.device)

    def begin_pass(number: int, is_new: bool) -> torch.Tensor | StreamedOrder:
        if is_new:
            torch.manual_seed(seed_of_pass(run, number))  # dropout
        return order_of_pass(run, number)

    for order, rows in batches_of_epoch(run, state, begin_pass, lambda: mean_loss(run, state), save):
        batch = order[rows].long()
        index = run.world.share(batch)
        rate, share = state.schedule.learning_rate(state.step), len(index) / len(batch)
        loss = state.update(index, rate, _windows(run, augment, batch, state.step), share=share)
        state.add_step(loss, len(batch))


def batches_of_epoch(
    run: Run,
    state: TrainingState,
    begin_pass: Callable[[int, bool], T],
    pause: Callable[[], object],
    save: Callable[[], None],
) -> Iterator[tuple[T, slice]]:
    """The batches of a net, or of a stack of nets, from where `state` stands to the end of its epoch.

    Yields what `begin_pass` made of a pass (its number, and whether its first batch comes next, or one in the middle
    after a resumption), and where in its order the batch lies; the caller makes a step of it, and adds it to `state`.
    At the end, and before `save`, which is called every checkpoint_minutes, the device has ended and `pause` is called.
    """
    config, seconds = run.config, 60.0 * run.config.checkpoint_minutes
    end = min(state.epoch_begin + (config.steps_per_epoch or run.steps_per_pass), run.num_steps)
    state.net.train()
    if config.dropout_schedule:
        set_dropout(state.net, config.dropout_schedule[min(state.epoch, len(config.dropout_schedule)) - 1])
    state.update.begin_epoch()
    order, begin = None, time.perf_counter()
    while state.step < end:
        number_of_pass, position = divmod(state.step, run.steps_per_pass)
        if order is None or position == 0:
            order = begin_pass(number_of_pass, position == 0)
        yield order, slice(position * config.batch_size, (position + 1) * config.batch_size)
        if run.pruning:
            run.pruning.after_step(state.net, state.step)
        if state.step > run.num_steps_before_average:
            state.add_to_average()
        if time.perf_counter() - begin > seconds and state.step < end:
            state.stop_clock(begin)
            pause()
            save()
            begin = time.perf_counter()
    state.stop_clock(begin)
    pause()


def _windows(run: Run, augment: Augmentation, batch: torch.Tensor, step: int) -> torch.Tensor | None:
    """What this process sees of a batch; None where that is the frames' own windows, and the frames are all there.

    Views are drawn for all of the batch, so that they do not depend on who sees them.
    """
    if run.world.size > 1 and (run.architecture.dropout or run.architecture.input_dropout):
        # A function of step and process: a checkpoint holds the random numbers of the first process alone.
        torch.manual_seed(mixed_seed(run.seed, step, run.world.rank))
    if not augment.active:
        is_resident = isinstance(run.transfer_index, torch.Tensor)
        return None if is_resident else run.train.frames.windows(run.world.share(batch))
    return run.world.share(augment(run.train.frames.windows(batch), step))


def seed_of_pass(run: Run, number_of_pass: int) -> int:
    """A seed for each pass: a resumed run draws what an unbroken one would have drawn."""
    return 1_000_003 * run.seed + number_of_pass


def order_of_pass(run: Run, number_of_pass: int) -> torch.Tensor | StreamedOrder:
    """The frames of one pass in their order, (n,) int32: half the memory of int64."""
    if isinstance(run.transfer_index, StreamedIndex):
        return run.transfer_index.order(run.seed, number_of_pass, run.config.batch_size)
    seed, number = seed_of_pass(run, number_of_pass), len(run.transfer_index)
    generator = torch.Generator().manual_seed(seed)
    device = run.train.frames.device
    if device.type == "cpu":
        order = torch.randperm(number, generator=generator, dtype=torch.int32)
    else:  # PyTorch's own order would be another on another model of GPU, and take several times its memory
        order = random_order(number, seed, device)
    frames = run.draw(generator) if run.draw else run.transfer_index
    return frames[order]


def set_dropout(net: FrameClassifier, rate: float) -> None:
    for module in net.layers[1:]:  # the first may be the inputs' dropout, which has a rate of its own
        if isinstance(module, nn.Dropout):
            module.p = rate


def mean_loss(run: Run, state: TrainingState) -> float:
    """Of the epoch under way; raises AsrKdError where it, or a weight, is no number."""
    mean = float(state.loss_sum) / state.num_frames
    if not mean < float("inf"):
        raise AsrKdError(f"{run.out}: the loss is {mean} in epoch {state.epoch}; lower the learning rate")
    if not all(parameter.isfinite().all() for parameter in state.net.parameters()):
        raise AsrKdError(f"{run.out}: a weight is no number in epoch {state.epoch}; lower the learning rate")
    return mean


def end_epoch(run: Run, state: TrainingState) -> tuple[dict[str, Any], bool]:
    """Evaluate; accept the epoch or go back; keep the best; decide whether to go on.

    Returns the epoch's row, and whether it is the best so far.
    """
    row: dict[str, Any] = {
        "epoch": state.epoch,
        "step": state.step,
        "train_loss": mean_loss(run, state),
        "learning_rate": state.schedule.learning_rate(state.step - 1),
        "frames_per_second": state.num_frames / state.seconds,
        "num_frames": state.num_frames,
        "seconds": state.seconds,
        **_evaluate(run, state.result),
    }
    if not math.isfinite(row["dev_xent"]):
        raise AsrKdError(f"{run.out}: dev's loss is {row['dev_xent']} in epoch {state.epoch}; lower the learning rate")
    verdict = state.schedule.after_epoch(row["epoch"], row["dev_xent"])
    if isinstance(state.schedule, Newbob):
        row["accepted"] = verdict.accepted
    if run.world.size > 1:
        run.world.require_same(
            weights_digest(state.net),
            f"{run.out}: the processes' weights came to differ in epoch {state.epoch}; run them on CPUs or GPUs of one "
            "kind, with the same packages",
        )
    if run.pruning:
        row |= {"sparsity": sparsity_of(state.net), "pruned": run.pruning.is_complete(state.step)}
    state.history.append(row)
    best = best_epoch(state.history, run.config.keep_best)
    if best == row["epoch"]:
        state.keep_best()
    if isinstance(state.schedule, Newbob):
        state.accept() if verdict.accepted else state.reject()
    if state.step >= run.num_steps:
        state.stopped = "max_steps" if run.config.max_steps else "num_epochs"
    elif verdict.finished:
        state.stopped = run.config.schedule
    elif run.config.patience and best and row["epoch"] - best >= run.config.patience:
        state.stopped = "patience"
    state.begin_epoch()
    return row, best == row["epoch"]


def best_epoch(history: list[dict[str, Any]], keep_best: str) -> int:
    """The last of the best by dev's frame accuracy or cross-entropy, or just the last; 0 if none can be.

    Epochs that were not accepted, and those that pruning was not over in, cannot.
    """
    sign, key = {"frame_acc": (1, "dev_frame_acc"), "xent": (-1, "dev_xent"), "last": (1, "epoch")}[keep_best]
    eligible = [row for row in history if row.get("accepted", True) and row.get("pruned", True)]
    return max(eligible, key=lambda row: (sign * row[key], row["epoch"]), default={"epoch": 0})["epoch"]


def _evaluate(run: Run, net: FrameClassifier) -> dict[str, float]:
    """As the first process finds it: all must draw the same conclusions."""
    return run.world.first(lambda: evaluate(net, run.dev, run.dtype))


def evaluate(net: FrameClassifier, dev: LabelledSet, dtype: torch.dtype) -> dict[str, float]:
    """Frame accuracy (percent) and cross-entropy (nats) over the labelled frames of a set."""
    net.eval()
    scores = _Scores()
    for rows, log_post in mean_log_posteriors([net], dev.frames, dtype=dtype):
        scores.add(log_post, dev.labels_of(rows))
    return {"dev_frame_acc": scores.frame_acc, "dev_xent": scores.xent}


@dataclass
class _Scores:
    """Sums over labelled frames; percent and nats, None where there is no such frame."""

    correct: int = 0
    xent_sum: float = 0.0
    count: int = 0

    def add(self, log_post: torch.Tensor, pdf: torch.Tensor) -> None:
        """Count frames: log posteriors (n, num_pdfs), labels (n,), those below 0 passed over."""
        keep = pdf >= 0
        pdf, log_post = pdf[keep], log_post[keep]
        self.correct += int((log_post.argmax(dim=-1) == pdf).sum())
        self.xent_sum += float(functional.nll_loss(log_post, pdf, reduction="sum"))
        self.count += len(pdf)

    @property
    def frame_acc(self) -> float | None:
        return 100.0 * self.correct / self.count if self.count else None

    @property
    def xent(self) -> float | None:
        return self.xent_sum / self.count if self.count else None


def finish(run: Run, state: TrainingState, made_from: str) -> TrainedNet:
    """Save the best epoch's net, and let go of the checkpoint."""
    best = best_epoch(state.history, run.config.keep_best)
    run.world.log(f"{run.out}: ended by {state.stopped}, best epoch {best}")
    if not state.best:
        raise AsrKdError(f"{run.out}: not one epoch was better on dev than the untrained net; change the learning rate")
    state.net.load_state_dict(state.best)
    net = quantized(state.net, run.quantization) if run.quantization else state.net
    record = {**_training_record(run, state, made_from), **_compression_record(run, net), **_transfer_record(run, net)}
    trained = TrainedNet(net.eval(), run.train.cmvn, run.train.front_end, run.train.labels, record)
    save_net(run.out, trained)
    (run.out / NAME).unlink(missing_ok=True)
    return trained


def _transfer_record(run: Run, net: FrameClassifier) -> dict[str, Any]:
    """How the frames to train on were chosen and how well the net knows them; whose they are goes into a file beside.

    transfer_frame_acc (percent) and transfer_xent (nats) are over those of a sample that have a label; null if none
    has.
    """
    record: dict[str, Any] = {"transfer": run.transfer}
    if run.transfer:
        record["transfer"] = {**run.transfer, "utts_digest": write_transfer_utts(run.out, _transfer_utts(run))}
    index, scores = _sample(run).long(), _Scores()
    net.eval()
    index = index[run.train.pdf[index] >= 0]
    with torch.inference_mode():
        for block in index.split(8192) if len(index) else ():
            with autocast(run.train.frames.device, run.dtype):
                logits = net(run.train.frames.windows(block))
            scores.add(logits.float().log_softmax(dim=-1), run.train.labels_of(block))
    return {**record, "transfer_frame_acc": scores.frame_acc, "transfer_xent": scores.xent}


def _sample(run: Run) -> torch.Tensor:
    """At most MAX_TRANSFER_FRAMES of the frames to train on, evenly spaced; or of streamed ones, whole utterances."""
    if isinstance(run.transfer_index, StreamedIndex):
        return run.transfer_index.sample(MAX_TRANSFER_FRAMES)
    number = len(run.transfer_index)
    spread = torch.linspace(0, number - 1, min(MAX_TRANSFER_FRAMES, number), dtype=torch.float64)
    return run.transfer_index[spread.round().long().to(run.transfer_index.device)]


def _compression_record(run: Run, net: FrameClassifier) -> dict[str, Any]:
    """How the net was compressed, and the share of its weights that are 0."""
    return {"compress": {**run.compressed_by, "sparsity": sparsity_of(net)}} if run.compressed_by else {}


def _transfer_utts(run: Run) -> list[str]:
    """Utterances of which there is a frame to train on."""
    if isinstance(run.transfer_index, StreamedIndex):
        return run.transfer_index.utt_ids
    offsets = torch.from_numpy(run.train.frames.layout.offsets)
    utts = torch.unique(torch.searchsorted(offsets, run.transfer_index.cpu().long(), right=True)) - 1
    return [run.train.frames.layout.utt_ids[u] for u in utts.tolist()]


def _training_record(run: Run, state: TrainingState, made_from: str) -> dict[str, Any]:
    seconds = sum(row["seconds"] for row in state.history)
    return {
        "fingerprint": made_from,
        "seed": run.seed,
        "started_from": run.start.digest if run.start else None,
        "config": asdict(run.config),
        "loss": run.loss_key,
        "best_epoch": best_epoch(state.history, run.config.keep_best),
        "stopped_by": state.stopped,
        "history": state.history,
        "num_train_frames": len(run.transfer_index),
        "train_seconds": seconds,
        "frames_per_second": sum(row["num_frames"] for row in state.history) / seconds,
        **summation(run, state),
        "version": __version__,
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "device": str(run.train.frames.device),
        "precision": str(run.dtype).removeprefix("torch."),
    }
