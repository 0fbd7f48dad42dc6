#!/usr/bin/env python3
"""Filterbanks made in batches on a device, samples and features in its memory, against one core of a CPU.

Both are asr_kd.features.fbank.compute_fbanks on the same generated recordings, tensors on the device and arrays, which
are faster, on the CPU; the CPU's are measured by processor time, on one thread. Medians of rounds.
"""

import argparse
import statistics
import sys

import numpy as np
import torch
from ceilings import Clock, machine

from asr_kd.cli_common import run_main
from asr_kd.features.fbank import compute_fbanks
from asr_kd.features.options import FbankOptions
from asr_kd.nnet.device import resolve_device

RATE = 16000


def seconds_of_all(waves: list[torch.Tensor] | list[np.ndarray], batch: int, clock: Clock) -> float:
    """Time of the filterbanks of all recordings, `batch` at a time."""
    begin = clock()
    for first in range(0, len(waves), batch):
        compute_fbanks(waves[first : first + batch], FbankOptions())
    return clock() - begin


def main(args: argparse.Namespace) -> None:
    """Print one line."""
    torch.set_num_threads(1)
    device, cpu = resolve_device(args.device), torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    waves = [3000 * torch.randn(RATE * args.length, generator=generator) for _ in range(args.num_utts)]
    there = [wave.to(device) for wave in waves]
    few = [wave.numpy() for wave in waves[: max(8, args.num_utts // 16)]]  # of a core, that is enough
    ratios, speeds = [], []
    for number in range(args.rounds + 1):
        core = seconds_of_all(few, 8, Clock("cpu", cpu)) / len(few)
        ours = seconds_of_all(there, args.batch, Clock("cpu", device)) / len(there)
        if number:  # the first one warms up
            ratios.append(core / ours)
            speeds.append(args.length / ours)
    on_device, on_cpu = (compute_fbanks(each[:1], FbankOptions())[0] for each in (there, few))
    difference = float(np.abs(on_device.cpu().numpy() - on_cpu).max())
    print(machine(device))
    print(
        f"{len(waves)} recordings of {args.length} s, {args.batch} at a time: {statistics.median(speeds):,.0f} times "
        f"real time, {statistics.median(ratios):.1f} times one core ({min(ratios):.1f} to {max(ratios):.1f}); largest "
        f"difference from the CPU's {difference:.1e}"
    )


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-utts", type=int, default=1024, help="recordings (default 1024)")
    parser.add_argument("--length", type=int, default=10, help="seconds of each (default 10)")
    parser.add_argument("--batch", type=int, default=256, help="recordings at a time on the device (default 256)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
