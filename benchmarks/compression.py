#!/usr/bin/env python3
"""Time of a frame by compressed nets on one CPU core, as a share of the full net's in the same round.

Every round measures all nets in turn, in CPU time, at each batch size: 1 is streaming, a frame at a time. Printed are
medians over rounds of the share, and bytes of the weights on disk. Nets of 8 bits multiply integers where this PyTorch
can on this CPU (--out says so), else the numbers that they stand for, as nets of 4 bits always do. Weights of 0 are
multiplied as others are.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from asr_kd.cli_common import Parser, log, run_main
from asr_kd.errors import AsrKdError
from asr_kd.nnet import quantized
from asr_kd.nnet.model import FrameClassifier
from asr_kd.nnet.net_dir import WEIGHTS, load_net
from asr_kd.store.atomic import write_json


def seconds_a_frame(net: FrameClassifier, batch_size: int, seconds: float) -> float:
    """CPU time, the least of several runs of `seconds` / 5: whatever else the machine does only adds to it."""
    windows = torch.randn(batch_size, net.architecture.window * net.architecture.feat_dim)
    least = float("inf")
    with torch.inference_mode():
        net(windows)
        for _ in range(5):
            calls, begin = 0, time.process_time()
            while (elapsed := time.process_time() - begin) < seconds / 5:
                net(windows)
                calls += 1
            least = min(least, elapsed / (calls * batch_size))
    return least


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    batches = [int(size) for size in args.batches.split(",")]
    full = load_net(args.full).net
    nets = {str(folder): load_net(folder).net for folder in args.nets}
    shapes = {net.architecture.window * net.architecture.feat_dim for net in [full, *nets.values()]}
    if len(shapes) > 1:
        raise AsrKdError(f"--nets: inputs of {sorted(shapes)} numbers cannot be compared")
    shares: dict[tuple[str, int], list[float]] = {}
    times: dict[int, list[float]] = {}
    for number in range(args.rounds):
        for batch in batches:
            of_full = seconds_a_frame(full, batch, args.seconds)
            times.setdefault(batch, []).append(of_full)
            for name, net in nets.items():
                shares.setdefault((name, batch), []).append(seconds_a_frame(net, batch, args.seconds) / of_full)
        log(f"round {number + 1} of {args.rounds}")
    rows = []
    for name in nets:
        of_full = {str(batch): statistics.median(shares[name, batch]) for batch in batches}
        rows.append({"net": name, "bytes": (Path(name) / WEIGHTS).stat().st_size, "time_of_full": of_full})
    found = {"integers": quantized.has_int8_products(), "cpu": torch.backends.cpu.get_cpu_capability(), "nets": rows}
    found["microseconds_of_full"] = {str(batch): 1e6 * statistics.median(times[batch]) for batch in batches}
    if args.out:
        write_json(args.out, found)
    print(
        f"{args.full}: {(args.full / WEIGHTS).stat().st_size:,} bytes, "
        + ", ".join(f"{us:.2f} µs a frame in batches of {batch}" for batch, us in found["microseconds_of_full"].items())
    )
    for row in rows:
        print(
            f"{row['net']}: {row['bytes']:,} bytes, "
            + ", ".join(f"{share:.2f} of that in batches of {batch}" for batch, share in row["time_of_full"].items())
        )


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=Path, required=True, help="folder of the net that the others are measured by")
    parser.add_argument("--nets", type=Path, nargs="+", required=True, help="folders of nets with the same input")
    parser.add_argument("--batches", default="1,256", help="frames at a time (default 1,256)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each measurement in a round (default 0.25)")
    parser.add_argument("--out", type=Path, help="JSON of the same")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
