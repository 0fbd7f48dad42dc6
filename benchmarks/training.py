#!/usr/bin/env python3
"""Training's frames per second as a share of its matrix products alone, and against the loop that a user would write.

All train the same nets on the same generated frames on the same threads, in turn; medians of the rounds are printed.
The ceiling is the products of forward pass, weight gradient and data gradient, on matrices that are there already.
Operations are 6 for each weight (4 in the first layer), bytes those that are moved if no cache helps; "copies" is how
long these bytes take at the bandwidth at which memory is copied, as a share of the products' time: far below 1, and the
products are the ceiling; else a CPU, which does the one after the other, cannot be faster than both together ("of
both"), unless caches help. The user's loop is float32 over a DataLoader whose Dataset reads a window a frame from
HDF5, with 0 workers and with one for each thread, of which the faster counts; by processor time, of which workers only
take more, with 0. Outside of the net's own step (forward, loss, backward, clipping, optimiser) is all other time, first
of the steps alone, then of an epoch of --num-frames with its checkpoint and the evaluation of a tenth as many frames;
a GPU, which works on while Python prepares, has no such time.

--synthetic-frames trains a student on so many frames and their --top-k targets, all made on the device, and says what
they take there: the paper's scale without a corpus. A pass's order, drawn before it, counts by its share of the pass.

--check-accuracy trains instead to the end in float32 and in the fast precision, over --seeds seeds, on generated states
that overlap, and compares frame accuracies on dev. --check-memory writes features of --num-frames frames, trains some
steps on hard labels and on stored soft targets, and compares the largest resident memory with the frames' own. Both
take the first of --nets.
"""

import argparse
import re
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import torch
from ceilings import Clock, Cost, Products, copy_bandwidth, machine
from generated import FEAT_DIM, UTT_FRAMES, frames_and_states, labelled_set, top_k_targets
from plain_loop import PlainLoop, Windows, write_feats
from training_checks import check_accuracy, check_memory, name_of, train

from asr_kd.cli_common import run_main
from asr_kd.config import DistillConfig, DnnConfig, resolve
from asr_kd.distill.student import student_loss
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import resolve_device, resolve_precision
from asr_kd.nnet.model import Architecture
from asr_kd.training import loop
from asr_kd.training.data import LabelledSet
from asr_kd.training.run import Loss
from asr_kd.training.update import Update

# The paper's net at a quarter of its widths is the last one.
NETS = "3x256:256,4x512:256,4x512:1024,8x640/3500:256"
DEV_FRAMES = 10 * UTT_FRAMES  # beside --synthetic-frames


@dataclass(frozen=True)
class Net:
    """LAYERSxUNITS[/STATES][:BATCH], as --nets has it."""

    name: str
    config: DnnConfig
    num_pdfs: int

    @classmethod
    def parse(cls, text: str, num_pdfs: int) -> "Net":
        """Raises AsrKdError for anything else."""
        found = re.fullmatch(r"(\d+)x(\d+)(?:/(\d+))?(?::(\d+))?", text)
        if not found:
            raise AsrKdError(f"--nets {text}: write LAYERSxUNITS/STATES:BATCH, as 4x512/500:256 or 4x512")
        layers, units, states, batch = (int(part) if part else 0 for part in found.groups())
        keys = {"num_hidden_layers": layers, "hidden_dim": units, "batch_size": batch or 256}
        return cls(text.split(":")[0], resolve(DnnConfig, keys), states or num_pdfs)

    @property
    def architecture(self) -> Architecture:
        """Its shape on generated frames."""
        c = self.config
        sizes = (FEAT_DIM, c.num_hidden_layers, c.hidden_dim, self.num_pdfs)
        return Architecture(c.left_context, c.right_context, *sizes)

    @property
    def dims(self) -> list[int]:
        """Widths from inputs to states."""
        a = self.architecture
        return [a.feat_dim * a.window, *[a.hidden_dim] * a.num_hidden_layers, a.num_pdfs]


class Stopwatch:
    """While entered, seconds of train_net's parts.

    `steps`: all of them; of that `net`: the net's own, and `order`: drawn for `passes` passes. `epoch_end`: what comes
    after.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self.steps = self.net = self.order = self.epoch_end = 0.0
        self.passes = 0

    def __enter__(self) -> "Stopwatch":
        parts = {
            "_train_epoch": "steps",
            "order_of_pass": "order",
            "evaluate": "epoch_end",
            "save_checkpoint": "epoch_end",
        }
        self._replaced = {name: getattr(loop, name) for name in parts}
        for name, part in parts.items():
            setattr(loop, name, self._timed(self._replaced[name], part))
        self._learn = Update._learn
        if not self._clock.waits:  # for the GPU to be done, in every step: it would be slower
            Update._learn = self._timed(self._learn, "net")
        return self

    def __exit__(self, *_: object) -> None:
        Update._learn = self._learn
        for name, function in self._replaced.items():
            setattr(loop, name, function)

    def _timed(self, function: Callable, part: str) -> Callable:
        def timed(*args: object, **how: object) -> object:
            begin = self._clock()
            try:
                return function(*args, **how)
            finally:
                setattr(self, part, getattr(self, part) + self._clock() - begin)
                self.passes += part == "order"

        return timed


class Trainer:
    """train_net on the same sets again and again, as many steps as fill the time."""

    def __init__(self, net: Net, sets: list[LabelledSet], dtype: torch.dtype, loss: Loss | None = None):
        self._net, self._sets, self._dtype, self._loss = net, sets, dtype, loss
        self._num_steps = 0

    def measure(self, clock: Clock, seconds: float) -> dict[str, float]:
        """Speed in frames a second, and the shares of time outside the net's own step."""
        if not self._num_steps:  # a few tell how many fill the time
            self._num_steps = 4
            self.measure(clock, seconds)
        config = replace(self._net.config, max_steps=self._num_steps)
        with Stopwatch(clock) as watch:
            history = train(config, self._sets, self._dtype, loss=self._loss).training["history"]
        num_frames = sum(row["num_frames"] for row in history)
        of_pass = num_frames / (watch.passes * self._sets[0].frames.layout.num_frames)
        taken = watch.steps - watch.order * (1 - min(1.0, of_pass))
        speed = num_frames / taken
        self._num_steps = max(4, int(seconds * speed / config.batch_size))
        epoch = self._sets[0].frames.layout.num_frames / speed
        outside = float("nan") if clock.waits else 1 - watch.net / taken
        epoch_end = watch.epoch_end / len(history)
        return {
            "ours": speed,
            "outside": outside,
            "outside_epoch": (outside * epoch + epoch_end) / (epoch + epoch_end),
            "order": watch.order / watch.passes,
        }


HEADER = """
| net | batch | precision | Mop a frame | kB a frame | copies | products Gop/s | products fr/s | ours fr/s | of products | of both | user's fr/s | ours / user's | outside the step | with epoch's end |
|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""  # noqa: E501 - a table


def print_row(net: Net, dtype: torch.dtype, bandwidth: float, rounds: list[dict[str, float]]) -> None:
    """One configuration, medians of its rounds; ratios are taken within a round."""
    rounds = [{**each, "share": each["ours"] / each["products"]} for each in rounds]
    if "plain" in rounds[0]:
        rounds = [{**each, "ratio": each["ours"] / each["plain"]} for each in rounds]
    m = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    cost = Cost.of(net.dims, net.config.batch_size, dtype)
    copies = cost.bytes * m["products"] / bandwidth
    peer = f"{m['plain']:,.0f} | {m['ratio']:.2f}" if "plain" in m else "– | –"
    print(
        f"| {net.name} | {net.config.batch_size} | {name_of(dtype)} | {cost.operations / 1e6:.2f} | "
        f"{cost.bytes / 1e3:.1f} | {copies:.2f} | "
        f"{cost.operations * m['products'] / 1e9:,.0f} | {m['products']:,.0f} | {m['ours']:,.0f} | {m['share']:.0%} | "
        f"{m['share'] * (1 + copies):.0%} | "
        f"{peer} | {m['outside']:.1%} | {m['outside_epoch']:.1%} |".replace("nan%", "–"),
        flush=True,
    )


def begin_table(args: argparse.Namespace, clock: Clock, device: torch.device) -> float:
    """Print what machine it is; returns the bytes a second at which it copies memory."""
    bandwidth = copy_bandwidth(clock, device)
    held = "; frames of ours in 8 bits" if args.eight_bit_frames else ""
    how = f"{clock.kind} time, medians of {args.rounds} rounds"
    print(f"{machine(device)}; {how}; copies {bandwidth / 1e9:.1f} GB/s{held}")
    return bandwidth


def measure(args: argparse.Namespace, nets: list[Net], clock: Clock, device: torch.device, fast: torch.dtype) -> None:
    """Print the table of speeds."""
    bandwidth = begin_table(args, clock, device)
    print(HEADER)
    for net in nets:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            plain = plain_loops(net, args.num_frames, Path(folder) / "feats.h5", clock, device)
            parts = {}
            for dtype in dict.fromkeys([torch.float32, fast] if args.with_float32 == "true" else [fast]):
                sizes = (args.num_frames, args.num_frames // 10)
                sets = [labelled_set(size, net.num_pdfs, size, net.config, device, dtype) for size in sizes]
                products = Products(net.dims, net.config.batch_size, device, dtype)
                parts[dtype] = products, Trainer(net, sets, dtype), []
            for number in range(args.rounds + 1):  # the first one warms up
                user = max(each.speed(clock, args.seconds) for each in plain)
                for products, trainer, rounds in parts.values():
                    found = {"plain": user, "products": products.speed(clock, args.seconds)}
                    found |= trainer.measure(clock, args.seconds)
                    rounds += [found] * (number > 0)
        for dtype, (_, _, rounds) in parts.items():
            print_row(net, dtype, bandwidth, rounds)


def plain_loops(net: Net, num_frames: int, path: Path, clock: Clock, device: torch.device) -> list[PlainLoop]:
    """The user's loop over a file of generated frames, once for each number of workers worth trying."""
    feats, pdf = frames_and_states(num_frames, net.num_pdfs, 1, torch.device("cpu"), torch.float32)
    write_feats(path, feats)
    workers = {0, torch.get_num_threads()} if clock.kind == "wall" else {0}
    return [PlainLoop(net.dims, net.config, Windows(path, pdf.numpy(), net.config), device, each) for each in workers]


def measure_synthetic(
    args: argparse.Namespace, nets: list[Net], clock: Clock, device: torch.device, dtype: torch.dtype
) -> None:
    """Print the table of speeds on --synthetic-frames, and what they take."""
    bandwidth = begin_table(args, clock, device)
    print(
        f"{args.synthetic_frames:,} frames of {FEAT_DIM} in {name_of(dtype)}, the {args.top_k} largest targets of each"
    )
    print(HEADER)
    notes = []
    for net in nets:
        begin = clock()
        sizes = (args.synthetic_frames, DEV_FRAMES)
        sets = [labelled_set(size, net.num_pdfs, size, net.config, device, dtype) for size in sizes]
        targets = top_k_targets(args.synthetic_frames, net.num_pdfs, min(args.top_k, net.num_pdfs), device)
        made = clock() - begin
        trainer = Trainer(net, sets, dtype, student_loss(sets[0], targets, resolve(DistillConfig)))
        products, rounds = Products(net.dims, net.config.batch_size, device, dtype), []
        for number in range(args.rounds + 1):
            found = {"products": products.speed(clock, args.seconds), **trainer.measure(clock, args.seconds)}
            rounds += [found] * (number > 0)
        print_row(net, dtype, bandwidth, rounds)
        order, speed = (statistics.median(each[key] for each in rounds) for key in ("order", "ours"))
        notes.append(
            f"{net.name}, batch {net.config.batch_size}: made in {made:.1f} s; order of a pass {order:.1f} s; a pass "
            f"{args.synthetic_frames / speed / 3600:,.2f} h; {peak_memory(device)}"
        )
        del sets, targets, trainer  # the next net's must fit beside nothing
    print("", *notes, sep="\n")


def peak_memory(device: torch.device) -> str:
    """The most that this process held on the GPU, or in memory."""
    if device.type == "cuda":
        return f"at most {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB of the GPU"
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.2f} GiB resident"


def main(args: argparse.Namespace) -> None:
    """Print what was asked for."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    nets = [Net.parse(text, args.num_pdfs) for text in args.nets.split(",")]
    if args.eight_bit_frames:
        nets = [replace(net, config=replace(net.config, eight_bit_frames=True)) for net in nets]
    for name, number in (("num-frames", args.num_frames), ("synthetic-frames", args.synthetic_frames)):
        if number and (number < 10 * UTT_FRAMES or number % (20 * UTT_FRAMES)):
            raise AsrKdError(f"--{name} {number}: must be a multiple of {20 * UTT_FRAMES}")
    fast, clock = resolve_precision(args.precision, device), Clock(args.clock, device)
    if args.check_memory:
        check_memory(args, nets[0].config, device)
    elif args.check_accuracy:
        check_accuracy(args, replace(nets[0].config, num_epochs=args.num_epochs), device, fast)
    elif args.synthetic_frames:
        measure_synthetic(args, nets, clock, device, fast)
    else:
        measure(args, nets, clock, device, fast)


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=NETS, help=f"LAYERSxUNITS[/STATES][:BATCH], comma-separated (default {NETS})")
    parser.add_argument("--num-pdfs", type=int, default=500, help="states where a net names none (default 500)")
    parser.add_argument("--num-frames", type=int, default=60_000, help="generated; a tenth or quarter more are dev's")
    parser.add_argument(
        "--synthetic-frames", type=int, default=0, help="train a student on so many, made on the device"
    )
    parser.add_argument("--top-k", type=int, default=20, help="targets of each of --synthetic-frames (default 20)")
    parser.add_argument("--eight-bit-frames", action="store_true", help="ours are held in 8 bits")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in a round (default 2)")
    parser.add_argument("--threads", type=int, default=0, help="default: one for each core")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="on a CPU (default wall)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="the fast one: auto, float32 or bfloat16")
    parser.add_argument(
        "--with-float32", choices=["true", "false"], default="true", help="measure it too (default true)"
    )
    parser.add_argument("--check-accuracy", action="store_true", help="compare dev accuracies in place of speeds")
    parser.add_argument("--check-memory", action="store_true", help="compare resident memory in place of speeds")
    parser.add_argument("--folder", type=Path, help="for files (default: the temporary folder)")
    parser.add_argument("--seeds", type=int, default=3, help="of --check-accuracy")
    parser.add_argument("--num-epochs", type=int, default=4, help="of --check-accuracy")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
