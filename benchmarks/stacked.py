#!/usr/bin/env python3
"""Members of an ensemble trained together, as batched products over stacked weights, against one after the other.

A row for each net, and with --compile false,true another for each with its steps compiled; on a GPU all are recorded:
the time of a step of one net, of --num-members nets in turn, and of as many stacked, each through asr-kd's own training
on generated frames: order, windows, forward, loss, backward, clipping, optimiser. The first epoch of --steps is not
counted, and so compiling is not; an epoch's time ends when the GPU is done. Medians of --rounds, in which the three
follow each other; ratios are taken within a round. "of products": what the matrix products of all nets alone take, one
net's after another's, as a share of the stacked step. The last column is the largest difference between the mean losses
of that first epoch, stacked and in turn.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import torch
from ceilings import Clock, Products, machine
from generated import UTT_FRAMES, labelled_set
from training import Net, name_of

from asr_kd.cli_common import run_main
from asr_kd.config import DnnConfig
from asr_kd.nnet.device import resolve_device, resolve_precision
from asr_kd.nnet.net_dir import load_card
from asr_kd.training import loop, state
from asr_kd.training.data import LabelledSet
from asr_kd.training.run import Run, hard_loss
from asr_kd.training.stacked import train_all


@contextlib.contextmanager
def processor_time() -> Iterator[None]:
    """Let training measure its epochs by the processor time of this process."""
    modules, clock = (loop, state), SimpleNamespace(perf_counter=time.process_time)
    try:
        for module in modules:
            module.time = clock
        yield
    finally:
        for module in modules:
            module.time = time


def histories(
    num_nets: int, how: str, config: DnnConfig, sets: Sequence[LabelledSet], dtype: torch.dtype
) -> list[list[dict[str, Any]]]:
    """Train so many nets, `how` as the key `stacked` has it; the rows of every net's epochs."""
    train, dev = sets
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        shared = (config, train, dev, train.labelled, hard_loss(train), {"kind": "measured"}, dtype)
        runs = [Run(Path(folder) / f"seed{seed}", seed, *shared) for seed in range(1, num_nets + 1)]
        train_all(runs, how)
        return [load_card(run.out)["training"]["history"] for run in runs]


def step_ms(nets: Sequence[Sequence[dict[str, Any]]]) -> float:
    """Milliseconds of a step of all nets, without their first epochs."""
    steps = nets[0][-1]["step"] - nets[0][0]["step"]
    return 1e3 * sum(row["seconds"] for rows in nets for row in rows[1:]) / steps


def measure(args: argparse.Namespace, net: Net, compiled: bool, device: torch.device, dtype: torch.dtype) -> None:
    """Print a row."""
    steps = {"max_steps": 2 * args.steps, "steps_per_epoch": args.steps}
    config = replace(net.config, compile=compiled, keep_best="last", **steps)
    sizes = (args.num_frames, 2 * UTT_FRAMES)
    sets = [labelled_set(size, net.num_pdfs, size, config, device, dtype) for size in sizes]
    rounds, differences = [], []
    products, clock = Products(net.dims, config.batch_size, device, dtype), Clock(args.clock, device)
    for _ in range(args.rounds):
        one = histories(1, "never", config, sets, dtype)
        in_turn = histories(args.num_members, "never", config, sets, dtype)
        together = histories(args.num_members, "always", config, sets, dtype)
        of_products = 1e3 * args.num_members * config.batch_size / products.speed(clock, 0.3)
        rounds.append([*(step_ms(each) for each in (one, in_turn, together)), of_products])
        differences += [abs(a[0]["train_loss"] - b[0]["train_loss"]) for a, b in zip(in_turn, together, strict=True)]
    rounds = [[one, turn, both, turn / both, both / one, ceiling / both] for one, turn, both, ceiling in rounds]
    found = " | ".join(f"{statistics.median(values):.2f}" for values in zip(*rounds, strict=True))
    how = f"{config.batch_size} | {name_of(dtype)} | {'yes' if compiled else 'no'}"
    print(f"| {net.name} | {how} | {found} | {max(differences):.0e} |", flush=True)


HEADER = """
| net | batch | precision | compiled | one | in turn | stacked | in turn / stacked | stacked / one | of products | difference |
|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|"""  # noqa: E501 - a table


def main(args: argparse.Namespace) -> None:
    """Print one table."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    by_processor = args.clock == "cpu" and device.type == "cpu"
    kind = "processor" if by_processor else "wall"
    print(f"{machine(device)}; {kind} time, medians of {args.rounds} rounds; {args.num_members} members, ms a step")
    print(HEADER)
    with processor_time() if by_processor else contextlib.nullcontext():
        for compiled in args.compile.split(","):  # last, those that need a compiler: what was measured is printed
            for text in args.nets.split(","):
                net, dtype = Net.parse(text, args.num_pdfs), resolve_precision(args.precision, device)
                measure(args, net, compiled == "true", device, dtype)


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    nets = "3x256:256,4x512:256,4x512:1024"
    parser.add_argument("--nets", default=nets, help=f"LAYERSxUNITS[/STATES][:BATCH], comma-separated (default {nets})")
    parser.add_argument("--num-pdfs", type=int, default=500, help="states where a net names none (default 500)")
    parser.add_argument("--num-members", type=int, default=10)
    parser.add_argument("--compile", choices=["false", "true", "false,true"], default="false", help="(default false)")
    parser.add_argument("--num-frames", type=int, default=60_000, help="generated (default 60000)")
    parser.add_argument("--steps", type=int, default=100, help="of an epoch; two are trained (default 100)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--threads", type=int, default=0, help="default: one for each core")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="on a CPU (default wall)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
