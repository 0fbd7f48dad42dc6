#!/usr/bin/env python3
"""Members of an ensemble trained together, as batched products over stacked weights, against one after the other.

A row for each net: the time of a whole step (forward, loss, backward, fused AdamW) of --num-members nets over the same
windows, in turn and stacked, and that of one net alone. The first step of the stacked nets is compared with those of
the single ones. The stacked net is a prototype that lives here, for it to be known where it would pay.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as asr-kd does

import torch
from ceilings import Clock, machine
from torch import nn
from training import Net, name_of

from asr_kd.cli_common import run_main
from asr_kd.nnet.device import autocast, resolve_device, resolve_precision
from asr_kd.nnet.model import FrameClassifier, new_net
from asr_kd.training.cross_entropy import Term, cross_entropy, hard_targets
from asr_kd.training.optimizer import make_optimizer


class Stacked(nn.Module):
    """Frame classifiers of one shape over the same windows: (batch, inputs) → logits (num_members, batch, num_pdfs)."""

    def __init__(self, nets: list[FrameClassifier]):
        super().__init__()
        layers = list(zip(*(net.linear for net in nets), strict=True))
        self.weights = nn.ParameterList(torch.stack([linear.weight.detach() for linear in layer]) for layer in layers)
        # Flat, so that the optimiser does not take them for matrices, whose weights decay.
        self.biases = nn.ParameterList(torch.cat([linear.bias.detach() for linear in layer]) for layer in layers)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        # The windows are the same for all: one wide product in place of a batched one.
        members, dim, _ = self.weights[0].shape
        first = torch.addmm(self.biases[0], windows, self.weights[0].flatten(0, 1).t())
        values = first.view(-1, members, dim).transpose(0, 1)
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:], strict=True):
            values = torch.baddbmm(bias.view(members, 1, -1), values.relu(), weight.transpose(1, 2))
        return values


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of a batch, summed over members if there are several: (…, batch, num_pdfs)."""
    rows = logits.flatten(0, -2)
    weight = torch.full((len(rows),), 1 / len(labels), device=rows.device)
    return cross_entropy(rows, [Term(hard_targets(labels.repeat(len(rows) // len(labels))), weight)])


def step_of(net: nn.Module, windows: torch.Tensor, labels: torch.Tensor, spec: Net, dtype: torch.dtype) -> Callable:
    """A training step of `net` on one batch."""
    optimizer = make_optimizer(net, spec.config)

    def step() -> None:
        with autocast(windows.device, dtype):
            logits = net(windows)
        loss_of(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds_of(work: Callable, clock: Clock, at_least: float) -> float:
    """Seconds of one call, over as many as take `at_least`."""
    number, taken = 1, 0.0
    while taken < at_least:
        number, begin = 2 * number, clock()
        for _ in range(number):
            work()
        taken = clock() - begin
    return taken / number


@torch.no_grad()
def largest_difference(nets: list[FrameClassifier], stacked: Stacked) -> float:
    """Between parameters of the stacked and the single nets, as a share of the largest of a layer."""
    pairs = []
    for member, net in enumerate(nets):
        for linear, weight, bias in zip(net.linear, stacked.weights, stacked.biases, strict=True):
            pairs += [(linear.weight, weight[member]), (linear.bias, bias.view(len(nets), -1)[member])]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-9)) for a, b in pairs)


def measure(args: argparse.Namespace, spec: Net, device: torch.device, dtype: torch.dtype) -> None:
    """Print a row."""
    config, clock = spec.config, Clock(args.clock, device)
    nets = [new_net(spec.architecture, seed).to(device) for seed in range(args.num_members)]
    stacked = Stacked(nets)
    windows = torch.randn(config.batch_size, spec.dims[0], device=device)
    labels = torch.randint(spec.num_pdfs, (config.batch_size,), device=device)
    steps = [step_of(net, windows, labels, spec, dtype) for net in nets]
    together = step_of(stacked, windows, labels, spec, dtype)

    def in_turn() -> None:
        for step in steps:
            step()

    in_turn()
    together()
    difference = largest_difference(nets, stacked)
    rounds = []
    for _ in range(args.rounds):
        rounds.append([seconds_of(work, clock, args.seconds) for work in (steps[0], in_turn, together)])
    one, turn, both = (1e3 * statistics.median(each[i] for each in rounds) for i in range(3))
    gain = statistics.median(each[1] / each[2] for each in rounds)
    print(
        f"| {spec.name} | {config.batch_size} | {name_of(dtype)} | {one:.2f} | {turn:.2f} | {both:.2f} | {gain:.2f} | "
        f"{statistics.median(each[2] / each[0] for each in rounds):.2f} | {difference:.0e} |",
        flush=True,
    )


def main(args: argparse.Namespace) -> None:
    """Print one table."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{machine(device)}; {Clock(args.clock, device).kind} time; {args.num_members} members, ms a step")
    print("\n| net | batch | precision | one | in turn | stacked | in turn / stacked | stacked / one | difference |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for text in args.nets.split(","):
        measure(args, Net.parse(text, args.num_pdfs), device, resolve_precision(args.precision, device))


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    nets = "3x256:256,4x512:256,4x512:1024"
    parser.add_argument("--nets", default=nets, help=f"LAYERSxUNITS[/STATES][:BATCH], comma-separated (default {nets})")
    parser.add_argument("--num-pdfs", type=int, default=500, help="states where a net names none (default 500)")
    parser.add_argument("--num-members", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement, at least (default 0.5)")
    parser.add_argument("--threads", type=int, default=0, help="default: one for each core")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="on a CPU (default wall)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
