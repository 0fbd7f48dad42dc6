#!/usr/bin/env python3
"""What the sizes of the paper cost, on generated data: a training step of one net, and soft targets on disk.

A step is forward, backward and update at float32; memory is the largest resident set of this process. Targets are made
from generated logits of all states, as the ensemble's are: softmax, the largest ones of each frame, targets.h5.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import torch
from torch.nn import functional

from asr_kd.cli_common import run_main
from asr_kd.config import DnnConfig, resolve
from asr_kd.distill.soft_targets import pack
from asr_kd.nnet.model import Architecture, new_net
from asr_kd.store.hdf5 import Layout
from asr_kd.store.targets import write_targets
from asr_kd.training.optimizer import clip_gradients, make_optimizer

FEAT_DIM = 40
BLOCK = 1024  # frames


def peak_mib() -> int:
    """Largest resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def measure_step(args: argparse.Namespace) -> None:
    """Print parameters, seconds of a step, and memory."""
    config = resolve(DnnConfig)
    sizes = (FEAT_DIM, args.num_hidden_layers, args.hidden_dim, args.num_pdfs)
    net = new_net(Architecture(config.left_context, config.right_context, *sizes), seed=1)
    optimizer = make_optimizer(net, config)
    windows = torch.randn(args.batch_size, net.architecture.window, FEAT_DIM)
    pdf = torch.randint(args.num_pdfs, (args.batch_size,))
    before = peak_mib()
    for step in range(args.steps + 1):
        if step == 1:  # the first one allocates
            start, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        functional.cross_entropy(net(windows), pdf).backward()
        clip_gradients(net, config.max_grad_norm)
        optimizer.step()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{args.num_hidden_layers}x{args.hidden_dim}, {args.num_pdfs} states: {net.num_parameters:,} parameters; "
        f"a step of {args.batch_size} frames takes {cpu / args.steps:.2f} s of CPU ({wall / args.steps:.2f} s), "
        f"{args.batch_size * args.steps / cpu:,.0f} frames a second of CPU; {peak_mib():,} MiB, {before:,} before it"
    )


def posteriors(num_frames: int, num_pdfs: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Posteriors of generated logits, a few of them large, block by block."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn((BLOCK, num_pdfs), generator=generator)
    for begin in range(0, num_frames, BLOCK):
        rows = slice(begin, min(begin + BLOCK, num_frames))
        yield rows, logits.roll(begin, dims=1)[: rows.stop - begin].softmax(dim=-1)


def measure_targets(args: argparse.Namespace) -> None:
    """Print bytes and seconds a frame of targets.h5."""
    layout = Layout.from_lengths(
        [f"utt{n:06d}" for n in range(args.num_frames // 1000)], [1000] * (args.num_frames // 1000)
    )
    attributes = {"temperature": 2.0, "mean": "arithmetic", "members": ["generated"], "model_digest": "generated"}
    attributes["content_digest"] = "generated"
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "targets.h5"
        start, cpu = time.perf_counter(), time.process_time()
        blocks = pack(posteriors(layout.num_frames, args.num_pdfs), args.top_k)
        write_targets(path, layout, blocks, num_pdfs=args.num_pdfs, top_k=args.top_k, attributes=attributes)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - start
        size = path.stat().st_size
    print(
        f"the {args.top_k} largest of {args.num_pdfs} for {layout.num_frames} frames: {size / layout.num_frames:.1f} "
        f"bytes a frame, {cpu:.1f} s of CPU ({wall:.1f} s), {layout.num_frames / cpu:,.0f} frames a second of CPU"
    )


def main(args: argparse.Namespace) -> None:
    """Print one line for the net and one for the targets."""
    measure_targets(args)
    measure_step(args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-hidden-layers", type=int, default=8)
    parser.add_argument("--hidden-dim", type=int, default=2560)
    parser.add_argument("--num-pdfs", type=int, default=14_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="timed (default 3)")
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--num-frames", type=int, default=20_000, help="with targets (default 20,000)")
    parser.add_argument("--folder", type=Path, help="for the file of targets (default: the temporary folder)")
    sys.exit(run_main(main, parser))
