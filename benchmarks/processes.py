#!/usr/bin/env python3
"""What several processes make of one net, and on a CPU of as many nets.

One net: `torchrun … asr-kd train` by 1, 2, 4, … of them, at the same global batch. Nets, one a process:
`asr-kd train --seeds 1-N --nj N`. On a CPU the cores are divided: one process of N threads, then N of one thread each;
on GPUs each process has one. Generated frames and states; frames a second are of the epochs after the first, by the
clock, of all nets together. "ratio" is to the first number of processes, which must be 1 to compare with one net.
"summed" is what the processes sum in every step: the gradient, in float32. The last column is dev's cross-entropy after
the last epoch (of the first net): of one net the same to the order of sums in float32, whatever trains it, and to
roundings in bfloat16.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from ceilings import machine
from streamed import written_sets
from training import Net

from asr_kd.cli_common import run_main
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import resolve_device

HEADER = """
| net | batch | processes | threads | nets | summed, MB | frames/s | ratio | cross-entropy |
|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def numbers_of_processes(text: str, device: torch.device) -> list[int]:
    """As --processes has them."""
    if text != "all":
        return [int(number) for number in text.split(",")]
    most = torch.cuda.device_count() if device.type == "cuda" else os.cpu_count() or 1
    return [1 << power for power in range(most.bit_length())]


def measured(
    net: Net, sets: Path, out: Path, number: int, num_nets: int, threads: int, args: argparse.Namespace
) -> tuple[float, float]:
    """Frames a second of `number` processes, which train one net or as many, and dev's cross-entropy.

    Raises AsrKdError where they fail.
    """
    command = [sys.executable, "-m"]
    if num_nets == 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", number, "-m"]
        threads = max(1, threads // number)
    command += ["asr_kd.cli", "train"]
    command += ["--seeds", f"1-{num_nets}", "--nj", num_nets] if num_nets > 1 else []
    for part in ("train", "dev"):
        prefix = "" if part == "train" else "dev-"
        command += [f"--{prefix}feats", sets / f"{part}.feats.h5", f"--{prefix}ali", sets / f"{part}.ali.h5"]
    keys = {"num_hidden_layers": net.config.num_hidden_layers, "hidden_dim": net.config.hidden_dim}
    keys |= {"batch_size": net.config.batch_size, "num_epochs": 1 + args.rounds, "device": args.device}
    for key, value in {**keys, "precision": args.precision, "out": out}.items():
        command += [f"--{key.replace('_', '-')}", value]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise AsrKdError(f"{number} processes failed: {done.stderr.strip().splitlines()[-1]}")
    cards = [json.loads((out / f"seed{seed}/net.json").read_text()) for seed in range(1, num_nets + 1)]
    histories = [card["training"]["history"][1:] for card in cards]
    speeds = [sum(row["num_frames"] for row in rows) / sum(row["seconds"] for row in rows) for rows in histories]
    return sum(speeds), histories[0][-1]["dev_xent"]


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    device = resolve_device(args.device)
    print(machine(device))
    print(HEADER)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for number_of_net, net in enumerate(Net.parse(text, args.num_pdfs) for text in args.nets.split(",")):
            sets = written_sets(Path(folder) / str(net.num_pdfs), args.num_frames, net.num_pdfs)
            size = 4 * sum((inputs + 1) * outputs for inputs, outputs in pairwise(net.dims))
            first = 0.0
            numbers = numbers_of_processes(args.processes, device)
            apart = [number for number in numbers if number > 1 and device.type == "cpu"]
            threads = args.threads or os.cpu_count() or 1
            for number, num_nets in [*((each, 1) for each in numbers), *((each, each) for each in apart)]:
                out = Path(folder) / f"net{number_of_net}-{number}-{num_nets}"
                found, xent = measured(net, sets, out, number, num_nets, threads, args)
                first = first or found
                summed = f"{size / 1e6:.1f}" if number > num_nets else "–"
                cells = [net.name, net.config.batch_size, number, max(1, threads // number), num_nets, summed]
                cells += [f"{found:,.0f}", f"{found / first:.2f}", f"{xent:.4f}"]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    nets = "3x256:256,4x512:1024"
    parser.add_argument("--nets", default=nets, help=f"LAYERSxUNITS[/STATES][:BATCH], comma-separated (default {nets})")
    parser.add_argument("--num-pdfs", type=int, default=500, help="states where a net names none (default 500)")
    parser.add_argument("--num-frames", type=int, default=120_000, help="generated (default 120000)")
    parser.add_argument(
        "--processes", default="1,2", help="how many, comma-separated, or all: 1, 2, 4, … (default 1,2)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="epochs that count (default 2)")
    parser.add_argument("--threads", type=int, default=0, help="of all processes together (default: one for each core)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--folder", type=Path, help="for files (default: the temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
