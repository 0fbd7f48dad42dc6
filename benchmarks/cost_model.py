#!/usr/bin/env python3
"""What time and memory follow from: a model fitted to measured points, and what it says of corpora beyond this machine.

frames: a pass of training over generated frames, in a process of its own: its processor time and resident memory.
training: seconds a frame of nets and numbers of states; fitted as a · operations + b · states + c · units, where units
are the net's inputs and hidden units. soft targets: seconds a frame, fitted as a · operations + b · members · states +
c · states. Fits are of least relative error, with no coefficient below 0; the last point of each is held out, and
predicted. All on one core, by processor time.

The last tables are arithmetic, not measured: --num-members nets and a student of the paper's net, --num-epochs passes
each, and their soft targets, for corpora of so many hours, at the --speeds of one GPU, which benchmarks/training.py and
targets.py print there; and how far several GPUs divide the work, a net to each.
"""

import argparse
import statistics
import sys
import tempfile
from collections import deque
from itertools import pairwise
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import numpy as np
import torch
from ceilings import Clock, Cost, machine
from generated import FEAT_DIM, labelled_set
from growth import measured
from scipy.optimize import nnls
from training import Net, Trainer
from training_checks import train

from asr_kd.cli_common import run_main
from asr_kd.config import DnnConfig, resolve
from asr_kd.distill.soft_targets import pack
from asr_kd.nnet.inference import mean_posteriors
from asr_kd.nnet.model import new_net

CPU = torch.device("cpu")
FRAMES_PER_HOUR = 360_000
# The last of each is held out: the paper's net at a quarter of its widths; ten members.
TRAINING = "2x128/100,2x128/2000,3x256/100,3x256/2000,4x512/500,2x256/14000,8x640/3500"
TARGETS = "1*2x128/62,4*2x128/62,1*2x128/2000,4*2x128/2000,2*3x512/741,1*2x256/14000,10*2x256/3500"
HOURS = (2_000, 100_000, 1_000_000)
PAPER = "8x2560/14000"


def fit(rows: list[list[float]], seconds: list[float]) -> np.ndarray:
    """Coefficients ≥ 0 of least relative error, of all points but the last."""
    x, y = np.array(rows[:-1]), np.array(seconds[:-1])
    scale = x.max(axis=0)
    return nnls(x / scale / y[:, None], np.ones(len(y)))[0] / scale


def print_fit(names: list[str], terms: list[str], rows: list[list[float]], seconds: list[float]) -> None:
    """The points, what the model says of each, and its coefficients."""
    coefficients = fit(rows, seconds)
    print("| point | μs a frame | model | off by |\n|---|---:|---:|---:|")
    for number, (name, row, measured_s) in enumerate(zip(names, rows, seconds, strict=True)):
        model = float(np.dot(row, coefficients))
        held_out = " (held out)" if number == len(names) - 1 else ""
        print(f"| {name}{held_out} | {measured_s * 1e6:,.1f} | {model * 1e6:,.1f} | {model / measured_s - 1:+.0%} |")
    shares = ", ".join(f"{1e9 * c:.3g} ns for {term}" for c, term in zip(coefficients, terms, strict=True))
    print(f"\n{shares}\n", flush=True)


def one_pass(num_frames: int) -> None:
    """Train a small net on every frame once."""
    net = Net("", resolve(DnnConfig, {"num_hidden_layers": 1, "hidden_dim": 64, "num_epochs": 1}), 50)
    sets = [labelled_set(size, net.num_pdfs, size, net.config, CPU, torch.float32) for size in (num_frames, 3000)]
    train(net.config, sets, torch.float32)


def measure_frames(args: argparse.Namespace, folder: Path) -> None:
    """Print a row for each number of frames, and the lines through them."""
    found = []
    print("| frames | s | MiB |\n|---:|---:|---:|")
    for num_frames in map(int, args.frames.split(",")):
        seconds, memory = measured(lambda number=num_frames: one_pass(number), folder / "log")
        found.append((num_frames, seconds, memory))
        print(f"| {num_frames:,} | {seconds:.2f} | {memory >> 20:,} |", flush=True)
    frames, seconds, memory = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    per_frame, fixed = np.polyfit(frames, seconds, 1, w=1 / seconds)
    bytes_per_frame, fixed_bytes = np.polyfit(frames, memory, 1, w=1 / memory)
    print(
        f"\n{per_frame * 1e6:.2f} μs a frame and {fixed:.2f} s; {bytes_per_frame:.0f} bytes a frame and "
        f"{fixed_bytes / 2**20:.0f} MiB\n",
        flush=True,
    )


def measure_training(args: argparse.Namespace, clock: Clock) -> None:
    """Print the points of training, and their model."""
    names, rows, seconds = args.training.split(","), [], []
    for text in names:
        net = Net.parse(text, 500)
        sets = [labelled_set(6000, net.num_pdfs, seed, net.config, CPU, torch.float32) for seed in (1, 2)]
        trainer = Trainer(net, sets, torch.float32)
        speeds = [trainer.measure(clock, args.seconds)["ours"] for _ in range(args.rounds + 1)]
        seconds.append(1 / statistics.median(speeds[1:]))
        cost = Cost.of(net.dims, net.config.batch_size, torch.float32)
        rows.append([cost.operations, net.num_pdfs, sum(net.dims[:-1])])
    print_fit(names, ["an operation", "a state", "an input or hidden unit"], rows, seconds)


def measure_targets(args: argparse.Namespace, clock: Clock) -> None:
    """Print the points of soft targets, and their model."""
    names, rows, seconds = args.targets.split(","), [], []
    for text in names:
        members, _, shape = text.partition("*")
        net, num_members = Net.parse(shape, 500), int(members)
        num_pdfs = net.num_pdfs
        nets = [new_net(net.architecture, seed).eval() for seed in range(num_members)]
        frames = labelled_set(600, num_pdfs, 1, net.config, CPU, torch.float32).frames
        found = []
        for _ in range(args.rounds + 1):
            begin, number = clock(), 0
            while clock() - begin < args.seconds or not number:
                posteriors = mean_posteriors(nets, frames, temperature=2.0)
                deque(pack(posteriors, min(20, num_pdfs)), maxlen=0)
                number += 1
            found.append((clock() - begin) / (number * frames.layout.num_frames))
        seconds.append(statistics.median(found[1:]))
        operations = 2 * num_members * sum(a * b for a, b in pairwise(net.dims))
        rows.append([operations, num_members * num_pdfs, num_pdfs])
    print_fit(names, ["an operation", "a state of a member", "a state"], rows, seconds)


def predict(args: argparse.Namespace) -> None:
    """Print what corpora of HOURS would take."""
    member, student, labelled = (1 / float(speed) for speed in args.speeds.split(","))
    of_net, of_student = args.num_epochs * member, args.num_epochs * student  # seconds of a frame, as all below
    of_all = args.num_members * of_net + of_student
    # bfloat16 features; the label, the transfer set and the pass's order, int32; 20 targets and the tail.
    resident = 2 * FEAT_DIM + 3 * 4 + 20 * 4 + 2
    print(
        f"arithmetic: {args.num_members} members and a student of {PAPER}, {args.num_epochs} passes each, at "
        f"{args.speeds} frames/s (labels, soft targets, labelled by all members)\n"
    )
    print("| hours | frames | feats.h5, float16 | targets.h5, 20 of a frame | resident | training | soft targets |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for hours in HOURS:
        frames = hours * FRAMES_PER_HOUR
        days = [frames * seconds / 86_400 for seconds in (of_all, labelled)]
        sizes = [frames * each / 1e12 for each in (2 * FEAT_DIM, 20 * 4 + 2, resident)]
        print(
            f"| {hours:,} | {frames / 1e9:,.2f} G | {sizes[0]:,.2f} TB | {sizes[1]:,.2f} TB | {sizes[2]:,.2f} TB | "
            f"{days[0]:,.2f} GPU days | {days[1]:,.2f} GPU days |"
        )
    print("\n| GPUs | days of " + " | days of ".join(f"{hours:,} h" for hours in HOURS) + " | times one GPU |")
    print("|---:|" + "---:|" * len(HOURS) + "---:|")
    for number in (1, 2, 5, 10):
        seconds = -(-args.num_members // number) * of_net + labelled / number + of_student
        days = [hours * FRAMES_PER_HOUR * seconds / 86_400 for hours in HOURS]
        print(
            f"| {number} | " + " | ".join(f"{each:,.2f}" for each in days) + f" | {(of_all + labelled) / seconds:.1f} |"
        )


def main(args: argparse.Namespace) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    clock = Clock("cpu", CPU)
    print(machine(CPU) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        measure_frames(args, Path(folder))
    measure_training(args, clock)
    measure_targets(args, clock)
    predict(args)


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frames = "6000,60000,600000,6000000"
    parser.add_argument("--frames", default=frames, help=f"of a pass, comma-separated (default {frames})")
    parser.add_argument("--training", default=TRAINING, help=f"LAYERSxUNITS/STATES (default {TRAINING})")
    parser.add_argument("--targets", default=TARGETS, help=f"MEMBERS*LAYERSxUNITS/STATES (default {TARGETS})")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (default 1)")
    parser.add_argument("--num-members", type=int, default=10, help="of the last table (default 10)")
    parser.add_argument("--num-epochs", type=int, default=8, help="of the last table (default 8)")
    speeds = "984661,907454,159143"
    parser.add_argument("--speeds", default=speeds, help=f"of the last tables (default {speeds}: an H200)")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
