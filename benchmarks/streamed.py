#!/usr/bin/env python3
"""What streaming costs: passes over a set that is read while it is trained on, against passes over a resident one.

Generated features, states and top-k targets are written to files of --folder; of the frames a --share is resident while
they are streamed. Passes alternate, medians of the rounds are printed. "ratio" is of streamed speed to resident, by
processor time of all threads (on a CPU, where what reads takes what trains could have had) and by the clock; "stood
still" the share of a streamed pass in which training waited for the reader; "read alone" what the reader brings to the
device in a second (on a CPU, of processor time) if nothing is computed: a faster net is held up by it.

--sizes trains for a pass on each of so many frames with --resident-frames, each in a process of its own, and prints the
largest resident memory.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import torch
from ceilings import Clock, machine
from generated import UTT_FRAMES
from growth import asr_kd, measured
from training import Net, Stopwatch, name_of
from training_checks import train, write_set, write_stored_targets

from asr_kd.cli_common import run_main
from asr_kd.config import DistillConfig, resolve
from asr_kd.distill.soft_targets import StoredTargets
from asr_kd.distill.student import student_loss
from asr_kd.distill.transfer import TransferChoice, choose
from asr_kd.nnet.device import resolve_device, resolve_precision
from asr_kd.store.targets import TargetsReader, TargetsRows
from asr_kd.training.data import LabelledSet, load_set
from asr_kd.training.run import Loss, hard_loss
from asr_kd.training.stream import Stream, StreamedSet, load_or_stream

DEV_FRAMES = 20 * UTT_FRAMES


class Arm:
    """A training set in a folder, resident or streamed, on hard labels or on soft targets too."""

    def __init__(self, folder: Path, net: Net, targets: Path | None, resident_frames: int, how: dict):
        self.net, self._how = net, how
        contexts = {"left_context": net.config.left_context, "right_context": net.config.right_context}
        paths = folder / "train.feats.h5", folder / "train.ali.h5"
        train_set = load_or_stream(*paths, cmvn="utterance", resident_frames=resident_frames, **contexts, **how)
        dev = (folder / "dev.feats.h5", folder / "dev.ali.h5")
        self.sets = [train_set, load_set(*dev, cmvn=train_set.cmvn, **contexts, **how)]
        self.index = choose(train_set, TransferChoice()).index
        self.loss = self._loss(train_set, targets)
        self.waited = 0.0
        if isinstance(train_set, StreamedSet):
            self._time_waiting(train_set.stream)

    def _loss(self, data: LabelledSet, targets: Path | None) -> Loss:
        if targets is None:
            return hard_loss(data)
        if isinstance(data, StreamedSet):
            stored = StoredTargets.from_stream([TargetsRows(targets)], data.stream)
        else:
            stored = StoredTargets.from_readers([TargetsReader(targets)], self._how["device"])
        return student_loss(data, stored, resolve(DistillConfig))

    def _time_waiting(self, stream: Stream) -> None:
        hold = stream.hold

        def timed(*args):
            begin = time.perf_counter()
            try:
                return hold(*args)
            finally:
                self.waited += time.perf_counter() - begin

        stream.hold = timed

    def train_pass(self) -> dict[str, float]:
        """Frames a second of a pass, by the clock and by processor time, and the share that it waited."""
        self.waited, config = 0.0, replace(self.net.config, num_epochs=1)
        with Stopwatch(Clock("cpu", self._how["device"])) as watch:
            record = train(config, self.sets, self._how["dtype"], loss=self.loss, index=self.index).training
        taken, frames = record["train_seconds"], record["num_train_frames"]
        return {"wall": frames / taken, "cpu": frames / watch.steps, "waited": self.waited / taken}

    def read_alone(self) -> float:
        """Frames a second, of processor time on a CPU, of a pass of which nothing but the order is used."""
        batch, clock = self.net.config.batch_size, Clock("cpu", self._how["device"])
        begin = clock()
        self.index.stream.stop()
        order = self.index.order(0, 0, batch)
        for place in range(0, len(self.index), batch):
            order[place : place + batch]
        self.index.stream.stop()
        return len(self.index) / (clock() - begin)


HEADER = """
| net | batch | precision | targets | resident fr/s | streamed fr/s | ratio | by processor | stood still | read alone |
|---|---:|---|---|---:|---:|---:|---:|---:|---:|"""


def written_sets(folder: Path, num_frames: int, num_pdfs: int) -> Path:
    """Write a training set of so many states, its dev set and its targets into `folder`, unless they are there."""
    if not folder.exists():
        folder.mkdir()
        write_set(folder, "dev", DEV_FRAMES, num_pdfs)
        write_set(folder, "train", num_frames, num_pdfs)
        write_stored_targets(folder, num_pdfs, 20)
    return folder


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Print the table of speeds."""
    device = resolve_device(args.device)
    how = {"device": device, "dtype": resolve_precision(args.precision, device)}
    share = round(args.num_frames * args.share)
    print(f"{machine(device)}; medians of {args.rounds} rounds")
    print(f"{args.num_frames:,} frames, {share:,} of them resident while they are streamed")
    print(HEADER)
    for net in (Net.parse(text, args.num_pdfs) for text in args.nets.split(",")):
        sets = written_sets(folder / str(net.num_pdfs), args.num_frames, net.num_pdfs)
        for name, targets in (("labels", None), ("top 20", sets / "top20.h5")):
            arms = [Arm(sets, net, targets, resident_frames, how) for resident_frames in (0, share)]
            rounds = [[arm.train_pass() for arm in arms] for _ in range(args.rounds + 1)][1:]  # the first warms up

            def median(of: Callable[[dict, dict], float], rounds: list = rounds) -> float:
                return statistics.median(of(resident, streamed) for resident, streamed in rounds)

            alone = statistics.median(arms[1].read_alone() for _ in range(args.rounds))
            cells = [net.name, net.config.batch_size, name_of(how["dtype"]), name]
            cells += [f"{median(lambda r, s: r['wall']):,.0f}", f"{median(lambda r, s: s['wall']):,.0f}"]
            cells += [f"{median(lambda r, s, key=key: s[key] / r[key]):.3f}" for key in ("wall", "cpu")]
            cells += [f"{median(lambda r, s: s['waited']):.1%}", f"{alone:,.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure_memory(args: argparse.Namespace, folder: Path) -> None:
    """Print the largest resident memory of passes over --sizes."""
    print(
        f"{machine(resolve_device(args.device))}; a pass of 1x16, of {args.resident_frames:,} resident frames or of all"
    )
    write_set(folder, "dev", DEV_FRAMES, args.num_pdfs)
    print("| frames | streamed, MiB | resident, MiB |")
    print("|---:|---:|---:|")
    for size in (int(text) for text in args.sizes.split(",")):
        # Apart, so that what is measured does not begin with what this took.
        measured(lambda size=size: write_set(folder, str(size), size, args.num_pdfs), folder / "log")
        paths = ["--feats", folder / f"{size}.feats.h5", "--ali", folder / f"{size}.ali.h5"]
        paths += ["--dev-feats", folder / "dev.feats.h5", "--dev-ali", folder / "dev.ali.h5"]
        net = ["--num-hidden-layers", 1, "--hidden-dim", 16, "--num-epochs", 1, "--device", args.device]
        found = []
        for resident_frames in (args.resident_frames, 0):
            out = folder / f"{size}.{resident_frames}"
            work = asr_kd("train", *paths, *net, "--resident-frames", resident_frames, "--out", out)
            found.append(measured(work, folder / "log")[1] >> 20)
        print(f"| {size:,} | {found[0]:,} | {found[1]:,} |", flush=True)
        (folder / f"{size}.feats.h5").unlink()


def main(args: argparse.Namespace) -> None:
    """Print one table."""
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.sizes:
            measure_memory(args, Path(folder))
            return
        with redirect_stderr(io.StringIO()):
            measure(args, Path(folder))


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    nets = "3x256:256,4x512:1024"
    parser.add_argument("--nets", default=nets, help=f"LAYERSxUNITS[/STATES][:BATCH], comma-separated (default {nets})")
    parser.add_argument("--num-pdfs", type=int, default=500, help="states where a net names none (default 500)")
    parser.add_argument("--num-frames", type=int, default=60_000, help="generated (default 60000)")
    parser.add_argument("--share", type=float, default=0.25, help="of the frames resident, if streamed (default 0.25)")
    parser.add_argument("--sizes", help="measure memory of so many frames, comma-separated, in place of speeds")
    parser.add_argument("--resident-frames", type=int, default=100_000, help="of --sizes (default 100000)")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--threads", type=int, default=0, help="default: one for each core")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--folder", type=Path, help="for files (default: the temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
