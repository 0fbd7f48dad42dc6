"""What training.py checks beside speeds: dev accuracy in the fast precision, and memory beside the frames."""

import argparse
import contextlib
import io
import multiprocessing
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from generated import FEAT_DIM, UTT_FRAMES, labelled_set

from asr_kd.config import DistillConfig, DnnConfig, resolve
from asr_kd.distill.soft_targets import StoredTargets
from asr_kd.distill.student import student_loss
from asr_kd.features.options import FbankOptions
from asr_kd.nnet.net_dir import TrainedNet
from asr_kd.store.ali import write_ali
from asr_kd.store.feats import FeatsReader
from asr_kd.store.feats_writer import FeatsWriter
from asr_kd.store.targets import TargetsReader, write_targets
from asr_kd.training.data import LabelledSet, load_set
from asr_kd.training.loop import train_net
from asr_kd.training.run import Loss, Run, hard_loss
from asr_kd.training.stream import StreamedIndex


def name_of(dtype: torch.dtype) -> str:
    """float32 or bfloat16."""
    return str(dtype).removeprefix("torch.")


def train(
    config: DnnConfig,
    sets: list[LabelledSet],
    dtype: torch.dtype,
    seed: int = 1,
    loss: Loss | None = None,
    index: StreamedIndex | torch.Tensor | None = None,
) -> TrainedNet:
    """train_net, silent and on the hard labels of all frames unless told otherwise."""
    data, dev = sets
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        loss = loss or hard_loss(data)
        index = data.labelled if index is None else index
        return train_net(Run(Path(folder), seed, config, data, dev, index, loss, {"kind": "measured"}, dtype))


def check_accuracy(args: argparse.Namespace, config: DnnConfig, device: torch.device, fast: torch.dtype) -> None:
    """Print dev frame accuracies in both precisions."""
    accuracy: list[np.ndarray] = []
    for dtype in (torch.float32, fast):
        sizes = (args.num_frames, args.num_frames // 4)
        sets = [labelled_set(n, args.num_pdfs, n, config, device, dtype) for n in sizes]
        records = [train(config, sets, dtype, seed).training for seed in range(1, args.seeds + 1)]
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
        for top_k in (None, 20):
            write_stored_targets(path, args.num_pdfs, top_k)
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


def write_stored_targets(folder: Path, num_pdfs: int, top_k: int | None) -> None:
    """dense.h5, or topK.h5, for the training set, all mass spread evenly."""
    with FeatsReader(folder / "train.feats.h5") as reader:
        layout, content_digest = reader.layout, reader.content_digest
    attributes = {"temperature": 2.0, "mean": "arithmetic", "members": ["generated"], "model_digest": "generated"}
    attributes["content_digest"] = content_digest
    width = top_k or num_pdfs

    def block(rows: slice) -> dict[str, np.ndarray]:
        n = rows.stop - rows.start
        prob = np.full((n, width), 1 / num_pdfs, np.float32)
        return {"prob": prob, "pdf": np.tile(np.arange(width), (n, 1)), "tail": 1 - prob.sum(axis=1)}

    begins = range(0, layout.num_frames, 8192)
    blocks = ((rows, block(rows)) for b in begins if (rows := slice(b, min(b + 8192, layout.num_frames))))
    path = folder / (f"top{top_k}.h5" if top_k else "dense.h5")
    write_targets(path, layout, blocks, num_pdfs=num_pdfs, top_k=top_k, attributes=attributes)


def print_peak(folder: Path, targets: str | None, config: DnnConfig, device: torch.device) -> None:
    """Train and print the largest resident memory of this process."""
    shape = {"left_context": config.left_context, "right_context": config.right_context}
    shape |= {"device": device, "dtype": torch.float32}
    held_as = torch.int8 if config.eight_bit_frames else None
    data = load_set(folder / "train.feats.h5", folder / "train.ali.h5", cmvn="utterance", held_as=held_as, **shape)
    dev = load_set(folder / "dev.feats.h5", folder / "dev.ali.h5", cmvn=data.cmvn, **shape)
    train_bytes = 1 if config.eight_bit_frames else 4
    held = FEAT_DIM * (data.frames.layout.num_frames * train_bytes + dev.frames.layout.num_frames * 4)
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
