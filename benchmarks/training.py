#!/usr/bin/env python3
"""Training's frames per second against the loop that one would write by hand, and against its matrix products alone.

All train the same net on the same generated frames with the same batch size on the same threads, in turn; medians of
the rounds are printed. The plain loop is float32 over a DataLoader whose Dataset cuts one window a frame out of arrays
in memory (kinder to it than a file), with 0 workers and with one for each thread, of which the faster counts. The
ceiling is the products of forward pass, data gradient and weight gradient, on matrices that are there already. Outside
of the net's own step (forward, loss, backward, clipping, optimiser) is all other time, first of the steps alone, then
of an epoch of --num-frames with its checkpoint and the evaluation of a tenth as many frames.

--check-accuracy trains instead to the end in float32 and in the fast precision, over --seeds seeds, on generated states
that overlap, and compares frame accuracies on dev. --check-memory writes features of --num-frames frames, trains some
steps on hard labels and on stored soft targets, and compares the largest resident memory with the frames' own.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as asr-kd does

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from asr_kd.cli_common import run_main
from asr_kd.config import DistillConfig, DnnConfig, resolve
from asr_kd.distill.soft_targets import StoredTargets
from asr_kd.distill.student import student_loss
from asr_kd.errors import AsrKdError
from asr_kd.features.options import FbankOptions
from asr_kd.nnet.device import resolve_device, resolve_precision
from asr_kd.nnet.frames import Cmvn, Frames
from asr_kd.store.ali import write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.store.hdf5 import Layout
from asr_kd.store.targets import TargetsReader, write_targets
from asr_kd.training import loop
from asr_kd.training.data import LabelledSet, load_set
from asr_kd.training.loop import train_net
from asr_kd.training.run import Run, hard_loss

FEAT_DIM, UTT_FRAMES = 40, 300


def generated(num_frames: int, num_pdfs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Feats and states: states in runs of 3 to 11 frames, each a Gaussian around its own mean; Gaussians overlap."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(0).normal(scale=0.35, size=(num_pdfs, FEAT_DIM)).astype(np.float32)
    pdf = np.repeat(rng.integers(0, num_pdfs, num_frames // 3 + 1), rng.integers(3, 12, num_frames // 3 + 1))
    pdf = pdf[:num_frames].astype(np.int64)
    return means[pdf] + rng.standard_normal((num_frames, FEAT_DIM), dtype=np.float32), pdf


def labelled_set(
    num_frames: int, num_pdfs: int, seed: int, config: DnnConfig, device: torch.device, dtype: torch.dtype
) -> LabelledSet:
    """Generated frames as the training loop takes them, in utterances of UTT_FRAMES."""
    feats, pdf = generated(num_frames, num_pdfs, seed)
    num_utts = num_frames // UTT_FRAMES
    layout = Layout.from_lengths([f"utt{u:06d}" for u in range(num_utts)], [UTT_FRAMES] * num_utts)
    frames = Frames(feats, layout, config.left_context, config.right_context, device, dtype)
    cmvn = Cmvn("global", np.zeros(FEAT_DIM, np.float32), np.ones(FEAT_DIM, np.float32))
    labels = {"num_pdfs": num_pdfs, "model_digest": "generated"}
    states = torch.from_numpy(pdf).int().to(device)
    return LabelledSet(frames, states, num_pdfs, cmvn, {}, labels, f"{seed}", f"{seed}", num_utts)


class Windows(Dataset):
    """One window a frame, as one writes it by hand."""

    def __init__(self, feats: np.ndarray, pdf: np.ndarray, config: DnnConfig):
        self.feats, self.pdf = feats, pdf
        self.context = np.arange(-config.left_context, config.right_context + 1)

    def __len__(self) -> int:
        return len(self.pdf)

    def __getitem__(self, frame: int) -> tuple[torch.Tensor, int]:
        first = frame - frame % UTT_FRAMES
        rows = np.clip(frame + self.context, first, first + UTT_FRAMES - 1)
        return torch.from_numpy(self.feats[rows].reshape(-1)), int(self.pdf[frame])


class PlainLoop:
    """A float32 nn.Sequential, AdamW, and a DataLoader; `speed` goes on where it stopped."""

    def __init__(self, dims: list[int], config: DnnConfig, data: Dataset, device: torch.device, num_workers: int):
        layers = [module for a, b in pairwise(dims) for module in (nn.Linear(a, b), nn.ReLU())]
        self._net = nn.Sequential(*layers[:-1]).to(device)
        self._optimizer = torch.optim.AdamW(self._net.parameters(), lr=config.learning_rate)
        self._loader = DataLoader(data, config.batch_size, shuffle=True, num_workers=num_workers)
        self._device = device

    def speed(self, seconds: float) -> float:
        """Frames per second over `seconds`, after the first batch has come (with workers that takes a while)."""
        begin, frames = None, 0
        for windows, pdf in self._loader:
            if begin is None:
                synchronize(self._device)
                begin = time.perf_counter()
            else:
                frames += len(pdf)
            self._optimizer.zero_grad()
            loss = functional.cross_entropy(self._net(windows.to(self._device)), pdf.to(self._device))
            loss.backward()
            self._optimizer.step()
            if time.perf_counter() - begin > seconds:
                break
        synchronize(self._device)
        return frames / (time.perf_counter() - begin)


class Products:
    """The matrix products of a step and nothing else."""

    def __init__(self, dims: list[int], batch_size: int, device: torch.device, dtype: torch.dtype):
        make = lambda *shape: torch.randn(shape, device=device, dtype=dtype)  # noqa: E731
        self._weights = [make(b, a) for a, b in pairwise(dims)]
        self._values = [make(batch_size, dim) for dim in dims]
        self._batch_size, self._device = batch_size, device

    def speed(self, seconds: float) -> float:
        """Frames per second over `seconds`."""
        synchronize(self._device)
        begin, frames = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            for layer, weight in enumerate(self._weights):
                torch.mm(self._values[layer], weight.t())
            for layer, weight in reversed(list(enumerate(self._weights))):
                torch.mm(self._values[layer + 1].t(), self._values[layer])
                if layer:  # features get no gradient
                    torch.mm(self._values[layer + 1], weight)
            frames += self._batch_size
            if self._device.type == "cuda" and frames % (50 * self._batch_size) == 0:
                synchronize(self._device)
        synchronize(self._device)
        return frames / (time.perf_counter() - begin)


def name_of(dtype: torch.dtype) -> str:
    """float32 or bfloat16."""
    return str(dtype).removeprefix("torch.")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """While entered, what train_net's parts take: `step` the net's own, `epoch_end` what follows the steps."""

    def __init__(self, device: torch.device):
        self._device, self._begin = device, 0.0
        self.step = self.epoch_end = 0.0

    def __enter__(self) -> "Stopwatch":
        self._replaced = {name: getattr(loop, name) for name in ("make_optimizer", "evaluate", "save_checkpoint")}
        loop.make_optimizer = self._make_optimizer
        loop.evaluate = self._timed("evaluate")
        loop.save_checkpoint = self._timed("save_checkpoint")
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._replaced.items():
            setattr(loop, name, function)

    def _make_optimizer(self, net: nn.Module, config: DnnConfig) -> torch.optim.Optimizer:
        net.register_forward_pre_hook(lambda *_: self._start())
        optimizer = self._replaced["make_optimizer"](net, config)
        optimizer.register_step_post_hook(lambda *_: self._stop())
        return optimizer

    def _start(self) -> None:
        synchronize(self._device)
        self._begin = time.perf_counter()

    def _stop(self) -> None:
        synchronize(self._device)
        self.step += time.perf_counter() - self._begin

    def _timed(self, name: str) -> Callable:
        def timed(*args: object) -> object:
            begin = time.perf_counter()
            try:
                return self._replaced[name](*args)
            finally:
                self.epoch_end += time.perf_counter() - begin

        return timed


def train(config: DnnConfig, sets: list[LabelledSet], dtype: torch.dtype, seed: int = 1) -> dict:
    """The training record of train_net, which is silent here."""
    data, dev = sets
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        run = Run(Path(folder), seed, config, data, dev, data.labelled, hard_loss(data), {"kind": "hard"}, dtype)
        return train_net(run).training


def measure(args: argparse.Namespace, config: DnnConfig, device: torch.device, dtypes: list[torch.dtype]) -> None:
    """Print the table of speeds."""
    dims = [FEAT_DIM * (config.left_context + 1 + config.right_context)]
    dims += [config.hidden_dim] * config.num_hidden_layers + [args.num_pdfs]
    sizes = (args.num_frames, args.num_frames // 10)
    sets = {dtype: [labelled_set(n, args.num_pdfs, n, config, device, dtype) for n in sizes] for dtype in dtypes}
    data = Windows(*generated(args.num_frames, args.num_pdfs, args.num_frames), config)
    num_threads = torch.get_num_threads()
    plain = [PlainLoop(dims, config, data, device, num_workers) for num_workers in (0, num_threads)]
    products = {dtype: Products(dims, config.batch_size, device, dtype) for dtype in dtypes}
    rows: dict[torch.dtype, list[dict[str, float]]] = {dtype: [] for dtype in dtypes}
    budget = dict.fromkeys(dtypes, 20)
    for number in range(args.rounds + 1):  # the first one warms up and finds out how many steps fill the time
        plain_speed = max(each.speed(args.seconds) for each in plain)
        for dtype in dtypes:
            ceiling = products[dtype].speed(args.seconds)
            with Stopwatch(device) as watch:
                record = train(replace(config, max_steps=budget[dtype]), sets[dtype], dtype)
            ours = record["frames_per_second"]
            budget[dtype] = max(20, int(args.seconds * ours / config.batch_size))
            outside = 1 - watch.step / record["train_seconds"]
            epoch = args.num_frames / ours
            row = {"ours": ours, "plain": plain_speed, "ratio": ours / plain_speed, "ceiling": ceiling}
            row |= {"share": ours / ceiling, "outside": outside}
            row["outside_epoch"] = (outside * epoch + watch.epoch_end) / (epoch + watch.epoch_end)
            rows[dtype] += [row] * (number > 0)
    print(
        f"{config.num_hidden_layers}x{config.hidden_dim} on {dims[0]} inputs, {args.num_pdfs} states, batches of "
        f"{config.batch_size}, {num_threads} threads, {device}; medians of {args.rounds} rounds"
    )
    print("precision    ours fr/s  plain fr/s  ratio  ceiling fr/s  of ceiling  outside the step  with epoch's end")
    for dtype, found in rows.items():
        m = {key: statistics.median(row[key] for row in found) for key in found[0]}
        print(
            f"{name_of(dtype):10s}  {m['ours']:10,.0f}  {m['plain']:10,.0f}  {m['ratio']:5.2f}  {m['ceiling']:12,.0f}  "
            f"{m['share']:10.0%}  {m['outside']:16.1%}  {m['outside_epoch']:16.1%}"
        )
    for dtype, found in rows.items():
        bound = statistics.median(row["ceiling"] / row["plain"] for row in found)
        print(
            f"the plain float32 loop reaches {1 / bound:.0%} of the rate of the matrix products in {name_of(dtype)}: "
            f"nothing that computes in it can be more than {bound:.2f} times as fast here"
        )


def check_accuracy(args: argparse.Namespace, config: DnnConfig, device: torch.device, fast: torch.dtype) -> None:
    """Print dev frame accuracies in both precisions."""
    accuracy: list[np.ndarray] = []
    for dtype in (torch.float32, fast):
        sizes = (args.num_frames, args.num_frames // 4)
        sets = [labelled_set(n, args.num_pdfs, n, config, device, dtype) for n in sizes]
        records = [train(config, sets, dtype, seed) for seed in range(1, args.seeds + 1)]
        accuracy.append(np.array([max(row["dev_frame_acc"] for row in record["history"]) for record in records]))
        print(f"{name_of(dtype):10s}  dev frame accuracies {', '.join(f'{value:.2f}' for value in accuracy[-1])} %")
    a, b = accuracy
    difference, error = b.mean() - a.mean(), float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a)))
    verdict = "within" if abs(difference) <= 2 * error else "not within"
    print(f"difference {difference:+.3f} points, {verdict} two standard errors over the seeds ({error:.3f} each)")


def check_memory(args: argparse.Namespace, config: DnnConfig, device: torch.device) -> None:
    """Print what training holds beside its frames (and its stored targets), each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder)
        for name, num_frames in (("train", args.num_frames), ("dev", args.num_frames // 10)):
            write_set(path, name, num_frames, args.num_pdfs)
        write_stored_targets(path, args.num_pdfs)
        for targets in (None, "dense.h5", "top20.h5"):
            work = (path, targets, replace(config, max_steps=20), device)
            process = multiprocessing.get_context("spawn").Process(target=print_peak, args=work)
            process.start()
            process.join()


def write_set(folder: Path, name: str, num_frames: int, num_pdfs: int) -> None:
    """`name`.feats.h5 and `name`.ali.h5 of noise."""
    rng = np.random.default_rng(num_frames)
    with FeatsWriter(folder / f"{name}.feats.h5", kind="fbank", options=FbankOptions(), sample_rate=16000) as writer:
        for u in range(num_frames // UTT_FRAMES):
            writer.append(f"{name}{u:06d}", name, rng.standard_normal((UTT_FRAMES, FEAT_DIM), dtype=np.float32))
    layout = FeatsReader(folder / f"{name}.feats.h5").layout
    pdf = rng.integers(0, num_pdfs, layout.num_frames)
    write_ali(folder / f"{name}.ali.h5", layout, pdf, num_pdfs=num_pdfs, model_digest="generated", sil_pdfs=[])


def write_stored_targets(folder: Path, num_pdfs: int) -> None:
    """dense.h5 and top20.h5 for the training set, all mass spread evenly."""
    with FeatsReader(folder / "train.feats.h5") as reader:
        layout, content_digest = reader.layout, reader.content_digest
    attributes = {"temperature": 2.0, "mean": "arithmetic", "members": ["generated"], "model_digest": "generated"}
    attributes["content_digest"] = content_digest
    for top_k, name in ((None, "dense.h5"), (20, "top20.h5")):
        width = top_k or num_pdfs

        def block(rows: slice, width: int = width) -> dict[str, np.ndarray]:
            n = rows.stop - rows.start
            prob = np.full((n, width), 1 / num_pdfs, np.float32)
            return {"prob": prob, "pdf": np.tile(np.arange(width), (n, 1)), "tail": 1 - prob.sum(axis=1)}

        begins = range(0, layout.num_frames, 8192)
        blocks = ((rows, block(rows)) for b in begins if (rows := slice(b, min(b + 8192, layout.num_frames))))
        write_targets(folder / name, layout, blocks, num_pdfs=num_pdfs, top_k=top_k, attributes=attributes)


def print_peak(folder: Path, targets: str | None, config: DnnConfig, device: torch.device) -> None:
    """Train and print the largest resident memory of this process."""
    shape = {"left_context": config.left_context, "right_context": config.right_context}
    shape |= {"device": device, "dtype": torch.float32}
    data = load_set(folder / "train.feats.h5", folder / "train.ali.h5", cmvn="utterance", **shape)
    dev = load_set(folder / "dev.feats.h5", folder / "dev.ali.h5", cmvn=data.cmvn, **shape)
    held = sum(each.frames.layout.num_frames * FEAT_DIM * 4 for each in (data, dev))
    loss, out = hard_loss(data), folder / "net"
    if targets:
        reader = TargetsReader(folder / targets)
        held += (folder / targets).stat().st_size
        stored = StoredTargets.from_readers([reader], device)
        loss = student_loss(data, stored, resolve(DistillConfig))
    with contextlib.redirect_stderr(io.StringIO()):
        train_net(Run(out, 1, config, data, dev, data.labelled, loss, {"kind": str(targets)}, torch.float32))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    what = f"frames and {targets}" if targets else "frames"
    print(f"{what:22s}  {held / 1e6:8,.0f} MB  peak {peak / 1e6:8,.0f} MB  difference {(peak - held) / 1e6:7,.0f} MB")


def main(args: argparse.Namespace) -> None:
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    config = resolve(
        DnnConfig,
        {
            "num_hidden_layers": args.num_hidden_layers,
            "hidden_dim": args.hidden_dim,
            "batch_size": args.batch_size,
            "num_epochs": args.num_epochs,
        },
    )
    if args.num_frames < 10 * UTT_FRAMES or args.num_frames % (20 * UTT_FRAMES):
        raise AsrKdError(f"--num-frames {args.num_frames}: must be a multiple of {20 * UTT_FRAMES}")
    fast = resolve_precision(args.precision, device)
    if args.check_memory:
        check_memory(args, config, device)
    elif args.check_accuracy:
        check_accuracy(args, config, device, fast)
    else:
        measure(args, config, device, [torch.float32] + [fast] * (fast != torch.float32))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-hidden-layers", type=int, default=4)
    parser.add_argument("--hidden-dim", type=int, default=512)
    parser.add_argument("--num-pdfs", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-frames", type=int, default=60_000, help="generated; a tenth or quarter more are dev's")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in a round (default 2)")
    parser.add_argument("--threads", type=int, default=0, help="default: one for each core")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="the fast one: auto, float32 or bfloat16")
    parser.add_argument("--check-accuracy", action="store_true", help="compare dev accuracies in place of speeds")
    parser.add_argument("--check-memory", action="store_true", help="compare resident memory in place of speeds")
    parser.add_argument("--folder", type=Path, help="for the files of --check-memory (default: the temporary folder)")
    parser.add_argument("--seeds", type=int, default=3, help="of --check-accuracy")
    parser.add_argument("--num-epochs", type=int, default=4, help="of --check-accuracy")
    sys.exit(run_main(main, parser))
