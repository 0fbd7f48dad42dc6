#!/usr/bin/env python3
"""Soft targets of many states: how fast they are made, and what the loss on them takes, on generated data.

A row for each number of states. The ceiling is the matrix products of the members' forward passes, on matrices that are
there already; operations are 2 for each of their weights; "copies" is how long reading windows, weights and values and
writing values, logits and targets takes at the bandwidth at which memory is copied, as a share of the ceiling's time.
Beside it stand the whole of asr-kd soft-targets but for reading features, as a share of the ceiling's speed, and where
the time goes: `nets` all of the forward passes and windows, `mean` softmax and mean over members,
`keep` choosing what is kept and bringing it to the CPU, `write` the file with its digests.

--losses compares a batch's loss and gradient with those that autograd makes of the plain formula: time, and the largest
memory beyond the logits. Times are those of the CPU on a CPU, and of the clock on a GPU; medians of rounds.
"""

import argparse
import ctypes
import multiprocessing
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import torch
from ceilings import Clock, copy_bandwidth, machine
from torch.nn import functional

from asr_kd.cli_common import run_main
from asr_kd.config import DnnConfig, resolve
from asr_kd.distill.kept import largest
from asr_kd.distill.soft_targets import pack
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast, resolve_device, resolve_precision
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.inference import mean_posteriors, of_type, windows_at_once
from asr_kd.nnet.model import Architecture, FrameClassifier, new_net
from asr_kd.store.hdf5 import Layout
from asr_kd.store.targets import write_targets
from asr_kd.training.cross_entropy import SoftBatch, Term, cross_entropy, hard_targets

FEAT_DIM, UTT_FRAMES = 40, 250
# Names and widths.
COLUMNS = {"states": 7, "Mop/frame": 9, "kB/frame": 9, "copies": 6, "Gop/s": 7, "ceiling": 11, "whole": 11, "share": 6}
COLUMNS |= dict.fromkeys(("nets", "mean", "keep", "write"), 6)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes: of CPU time, or until the GPU is done."""
    clock = Clock("cpu", device)
    begin = clock()
    work()
    return clock() - begin


def forward_bytes(net: FrameClassifier, block: int, dtype: torch.dtype) -> float:
    """Bytes that a net's forward pass moves for each frame of a block, at least, if no cache helps."""
    weights = sum(layer.weight.numel() for layer in net.linear)
    values = sum(layer.in_features + layer.out_features for layer in net.linear)
    return (weights / block + values) * dtype.itemsize


@torch.inference_mode()
def products(nets: list[FrameClassifier], inputs: list[torch.Tensor], num_blocks: int) -> None:
    """The matrix products of the forward passes of so many blocks, and nothing else."""
    for _ in range(num_blocks):
        for net in nets:
            for layer, rows in zip(net.linear, inputs, strict=True):
                functional.linear(rows, layer.weight)


@torch.inference_mode()
def forward(nets: list[FrameClassifier], frames: Frames, dtype: torch.dtype, block: int) -> None:
    """The members' logits of all frames."""
    for _, windows in frames.blocks(block):
        with autocast(frames.device, dtype):
            for net in nets:
                net(windows)


def measure_making(args: argparse.Namespace, num_pdfs: int, folder: Path, bandwidth: float) -> None:
    """Print a row for one number of states."""
    config, device = resolve(DnnConfig), resolve_device(args.device)
    dtype = resolve_precision(args.precision, device)
    context = (config.left_context, config.right_context)
    a = Architecture(*context, FEAT_DIM, args.num_hidden_layers, args.hidden_dim, num_pdfs)
    nets = [new_net(a, seed).to(device).eval() for seed in range(args.num_members)]
    typed = [of_type(net, dtype) for net in nets]
    layout = Layout.from_lengths([f"utt{n:06d}" for n in range(args.num_utts)], [UTT_FRAMES] * args.num_utts)
    feats = torch.randn(layout.num_frames, FEAT_DIM, generator=torch.Generator().manual_seed(1))
    frames = Frames(feats, layout, *context, device, dtype)
    block = min(windows_at_once(nets, device), layout.num_frames)
    inputs = [torch.randn(block, layer.in_features, device=device, dtype=dtype) for layer in nets[0].linear]
    top_k = min(args.top_k, num_pdfs) or None

    def mean():
        return mean_posteriors(nets, frames, temperature=2.0, dtype=dtype)

    def keep():
        return pack(mean(), top_k, args.target_pruning, args.target_bits)

    def write() -> None:
        attributes = {"temperature": 2.0, "mean": "arithmetic", "members": ["generated"], "model_digest": "generated"}
        attributes["content_digest"] = "generated"
        shape = {"num_pdfs": num_pdfs, "top_k": top_k, "bits": args.target_bits}
        write_targets(folder / "t.h5", layout, keep(), **shape, attributes=attributes)

    stages = {
        "ceiling": lambda: products(typed, inputs, layout.num_frames // block),
        "nets": lambda: forward(typed, frames, dtype, block),
        "mean": lambda: deque(mean(), maxlen=0),
        "keep": lambda: deque(keep(), maxlen=0),
        "write": write,
    }
    found = {name: [] for name in stages}
    for _ in range(args.rounds + 1):  # the first round allocates
        for name, work in stages.items():
            found[name].append(seconds(work, device))
    t = {name: statistics.median(times[1:]) for name, times in found.items()}
    t["ceiling"] *= layout.num_frames / (layout.num_frames // block * block)
    whole = t["write"]
    # Of a frame.
    operations = 2 * len(nets) * sum(layer.weight.numel() for layer in nets[0].linear)
    moved = len(nets) * forward_bytes(nets[0], block, dtype) + (4 * top_k + 2 if top_k else 2 * num_pdfs)
    ceiling = layout.num_frames / t["ceiling"]
    parts = [t["nets"], t["mean"] - t["nets"], t["keep"] - t["mean"], t["write"] - t["keep"]]
    print(
        f"{num_pdfs:7,}  {operations / 1e6:9,.2f}  {moved / 1e3:9,.1f}  {moved * ceiling / bandwidth:6.2f}  "
        f"{operations * ceiling / 1e9:7,.0f}  {ceiling:11,.0f}  {layout.num_frames / whole:11,.0f}  "
        f"{t['ceiling'] / whole:6.1%}  " + "  ".join(f"{part / whole:6.1%}" for part in parts),
        flush=True,
    )


def memory_taken(work: Callable[[], object], device: torch.device) -> int:
    """Bytes by which the largest memory while `work` runs exceeds the memory before; on a CPU, on Linux alone."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the largest

    def kib(key: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])

    ctypes.CDLL(None).malloc_trim(0)  # memory that is freed and kept (prepare_runtime) would hide what `work` takes
    before = kib("VmRSS")
    work()
    return (kib("VmHWM") - before) << 10


def soft_targets(kind: str, batch_size: int, num_pdfs: int, top_k: int, device: torch.device) -> SoftBatch:
    """Generated targets, in the types that they are stored in."""
    generator = torch.Generator().manual_seed(2)
    if kind == "labels":
        return hard_targets(torch.randint(num_pdfs, (batch_size,), generator=generator).to(device))
    prob = (2 * torch.randn(batch_size, num_pdfs, generator=generator)).softmax(dim=-1).to(device)
    return SoftBatch(prob.half()) if kind == "dense" else largest(prob, top_k)


def plain(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """The mean loss, as one writes it for autograd."""
    log_q = (logits.float() / temperature).log_softmax(dim=-1)
    if targets.pdf is None:
        return -(targets.prob.float() * log_q).sum(dim=-1).mean()
    named = (targets.prob.float() * log_q.gather(-1, targets.pdf)).sum(dim=-1)
    if targets.tail is None:
        return -named.mean()
    return -(named + targets.tail.float() * log_q.scatter(-1, targets.pdf, float("-inf")).logsumexp(dim=-1)).mean()


def ours(logits: torch.Tensor, targets: SoftBatch, temperature: float) -> torch.Tensor:
    """The mean loss, as it is trained with."""
    weight = torch.full(logits.shape[:1], 1 / len(logits), device=logits.device)
    return cross_entropy(logits, [Term(targets, weight, temperature)])


LOSSES = {"plain": plain, "ours": ours}


def loss_cost(args: argparse.Namespace, name: str, kind: str, num_pdfs: int, dtype: torch.dtype) -> tuple[float, int]:
    """Seconds of a loss with its gradient, and the bytes that it takes beyond logits and targets."""
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    targets = soft_targets(kind, args.batch_size, num_pdfs, args.top_k, device)
    logits = torch.randn(args.batch_size, num_pdfs, device=device, dtype=dtype).requires_grad_()
    temperature = 1.0 if kind == "labels" else 2.0

    def work() -> None:
        logits.grad = None
        LOSSES[name](logits, targets, temperature).backward()

    small = torch.randn(2, num_pdfs, device=device, dtype=dtype).requires_grad_()
    LOSSES[name](small, targets.of(slice(0, 2)), temperature).backward()  # what PyTorch itself takes
    taken = memory_taken(work, device)
    return min(seconds(work, device) for _ in range(args.rounds)), taken


def loss_cost_apart(args: argparse.Namespace, *what: object) -> tuple[float, int]:
    """As loss_cost, in a process of its own: what others took before would hide what this takes."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=lambda: there.send(loss_cost(args, *what)))
    process.start()
    there.close()  # so that a process that dies does not leave this one waiting
    try:
        return here.recv()
    except EOFError as error:
        raise AsrKdError(f"{what[1]}, {what[0]}: its process ended early, see above; of too little memory?") from error
    finally:
        process.join()


def measure_losses(args: argparse.Namespace, num_pdfs: int) -> None:
    """Print a row for each kind of target and type of logits."""
    measure = loss_cost_apart if resolve_device(args.device).type == "cpu" else loss_cost
    for dtype in (torch.float32, torch.bfloat16):
        for kind in ("labels", "dense", "top"):
            found = {name: measure(args, name, kind, num_pdfs, dtype) for name in LOSSES}
            (plain_s, plain_bytes), (our_s, our_bytes) = found["plain"], found["ours"]
            size = args.batch_size * num_pdfs * 4
            print(
                f"{num_pdfs:7,}  {str(dtype).removeprefix('torch.'):8s}  {kind:6s}  {plain_s * 1e3:8.1f}  "
                f"{our_s * 1e3:8.1f}  {plain_s / our_s:5.2f}  {plain_bytes / size:6.2f}  {our_bytes / size:6.2f}",
                flush=True,
            )


def main(args: argparse.Namespace) -> None:
    """Print one table."""
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = [int(size) for size in args.num_pdfs.split(",")]
    if args.losses:
        print(machine(resolve_device(args.device)))
        print(f"a batch of {args.batch_size}; memory in float32 tensors of the logits' size")
        print("states   logits    target  plain ms   ours ms  ratio   plain    ours  memory")
        for num_pdfs in sizes:
            measure_losses(args, num_pdfs)
        return
    device = resolve_device(args.device)
    bandwidth = copy_bandwidth(Clock("cpu", device), device)
    what = f"{args.target_pruning} {args.top_k} of {args.target_bits} bits" if args.top_k else "dense"
    nets = f"{args.num_members} nets of {args.num_hidden_layers}x{args.hidden_dim}"
    print(f"{machine(device)}; copies {bandwidth / 1e9:.1f} GB/s")
    print(f"{nets}, {resolve_precision(args.precision, device)}; {what}; frames and operations a second, and shares")
    print("  ".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for num_pdfs in sizes:
            measure_making(args, num_pdfs, Path(folder), bandwidth)


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pdfs", default="62,741,14000", help="states, comma-separated (default 62,741,14000)")
    parser.add_argument("--num-members", type=int, default=10)
    parser.add_argument("--num-hidden-layers", type=int, default=8)
    parser.add_argument("--hidden-dim", type=int, default=2560)
    parser.add_argument("--num-utts", type=int, default=400, help=f"of {UTT_FRAMES} frames (default 400)")
    parser.add_argument("--top-k", type=int, default=20, help="kept of each frame; 0 keeps all (default 20)")
    parser.add_argument("--target-pruning", default="tail", help="tail or random")
    parser.add_argument("--target-bits", type=int, choices=(16, 8), default=16, help="of a target kept (default 16)")
    parser.add_argument("--losses", action="store_true", help="measure the loss in place of making targets")
    parser.add_argument("--batch-size", type=int, default=1024, help="of --losses (default 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--threads", type=int, default=0, help="default: one for each core")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--folder", type=Path, help="for the file (default: the temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
