"""`asr-kd correct-bias`."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asr_kd.cli_common import log
from asr_kd.commands.command import command, one_of, option, output, path
from asr_kd.commands.options import DEVICE, Compute, resolve_compute
from asr_kd.distill.bias import bias_at_maximum, bias_for_reduced, corrected, overtaking, reduce_classes
from asr_kd.distill.soft_targets import check_members
from asr_kd.distill.transfer import parse_pdfs, pdfs_of_phones
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import autocast
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.net_dir import CARD, TrainedNet, load_card, load_net, save_net
from asr_kd.nnet.priors import read_counts
from asr_kd.runinfo import make
from asr_kd.store.ali import AliReader, require_fit
from asr_kd.store.feats import FeatsReader
from asr_kd.store.targets import TargetsReader
from asr_kd.training.data import digest_of


@command(
    "correct-bias",
    "repair the output biases of states that the transfer set lacked",
    path("--net", "folder of the student"),
    path("--feats", "frames like those to come, whose labels are not looked at (but for --test-tuned)"),
    one_of(
        path("--classes", "states, like 12,13,14", type=str), path("--phones", "the states of these phones", type=str)
    ),
    path("--ali", "alignment of --feats: names the phones' states; labels for --test-tuned", required=False),
    one_of(
        path("--targets", "targets.h5 of --feats: each state gets the teacher's mean soft target"),
        path("--counts", "ali_train_pdf.counts: each state gets its share of these"),
        option("--test-tuned", "one bias for all, the best for the labels of --ali, as published", action="store_true"),
    ),
    option("--max-frames", "look at so many, evenly spaced, at most (default 500000)", type=int, default=500_000),
    output("--out", "folder of the corrected net", mark=CARD),
    DEVICE,
    config=["precision"],
)
def correct_bias(args: argparse.Namespace) -> None:
    """Write a copy of a net whose output biases give --classes the posteriors that they should have on average.

    The biases are solved for together, from unlabelled frames: the mean posterior of each state becomes the teacher's
    mean soft target, at the targets' temperature, or its share of known counts. --test-tuned is the variant of Hinton,
    Vinyals & Dean 2015, section 3: one bias chosen for accuracy on labelled frames. Its accuracy on those very frames
    is that of a tuning set; net.json calls it test-tuned.
    """
    if args.ali is None and (args.phones or args.test_tuned):
        raise AsrKdError("--phones and --test-tuned need the alignment of --feats: give --ali")
    if args.max_frames < 1:
        raise AsrKdError(f"--max-frames {args.max_frames}: at least one is needed")
    if (args.out / CARD).exists() and "bias_correction" not in load_card(args.out)["training"]:
        raise AsrKdError(f"--out {args.out}: holds a net that correct-bias did not make; name another folder")
    compute, net, reader = resolve_compute(args), load_net(args.net), FeatsReader(args.feats)
    check_members([net], reader)
    ali = None if args.ali is None else AliReader(args.ali)
    if ali is not None:
        require_fit(ali.layout, reader.layout, (str(args.ali), str(args.feats)))
        check_members([net], reader, ali.model_digest)
    classes = pdfs_of_phones(ali, args.phones) if args.phones else parse_pdfs(args.classes, "--classes")
    shares, share_key = _shares(args, reader, net, classes)

    def work() -> None:
        net.net.to(compute.device)
        blocks = _log_posteriors(net, reader, compute, args.max_frames, shares.temperature if shares else 1.0)
        if shares is None:
            biases = _test_tuned(blocks, ali, classes)
        else:
            reduced = torch.cat([reduce_classes(log_post, classes) for _, log_post in blocks])
            biases = shares.temperature * bias_for_reduced(reduced, shares.values)
        record = {**share_key, "net": net.digest, "feats": reader.content_digest}
        save_net(args.out, corrected(net, classes, biases, record))
        shown = ", ".join(f"{pdf}: {bias:+.2f}" for pdf, bias in zip(classes, biases.tolist(), strict=True))
        log(f"{args.out}: biases {shown} nats ({share_key['by']})")

    make(
        args.out / CARD,
        work,
        command=args.command_line,
        net=net.digest,
        feats=reader.content_digest,
        classes=classes,
        shares=share_key,
        max_frames=args.max_frames,
        dtype=compute.dtype,
    )


@dataclass(frozen=True)
class _Shares:
    values: list[float]
    temperature: float


def _shares(
    args: argparse.Namespace, reader: FeatsReader, net: TrainedNet, classes: list[int]
) -> tuple[_Shares | None, dict[str, Any]]:
    """What the mean posteriors are to be, None where labels decide; and what net.json says of it."""
    num_pdfs = net.net.architecture.num_pdfs
    if not 0 <= min(classes) <= max(classes) < num_pdfs:
        raise AsrKdError(f"states {classes}: the net has 0 to {num_pdfs - 1}")
    if args.test_tuned:
        return None, {"by": "test-tuned", "labels": digest_of(AliReader(args.ali).pdf)}
    if args.counts:
        counts = read_counts(args.counts)
        if len(counts) != num_pdfs:
            raise AsrKdError(f"{args.counts}: counts {len(counts)} states, the net has {num_pdfs}")
        shares = _Shares((counts / counts.sum())[classes].tolist(), 1.0)
        return shares, {"by": "counts", "shares": shares.values}
    targets = TargetsReader(args.targets)
    targets.require_fit(reader.layout, reader.content_digest, num_pdfs, net.labels["model_digest"])
    rows = _spread(reader.layout.num_frames, args.max_frames)
    if targets.tail is not None and (tail := float(targets.tail[rows].mean(dtype=np.float64))):
        log(
            f"warning: {args.targets}: {100 * tail:.2g} % of the mass is in tails, which are no state's: shares are "
            "too small; give targets of all states, or --target-pruning random"
        )
    shares = _Shares(targets.mean(rows)[classes].tolist(), targets.temperature)
    return shares, {"by": "unlabelled statistics", "shares": shares.values, "targets": targets.digest}


def _spread(num_frames: int, at_most: int) -> np.ndarray:
    """Numbers of evenly spaced frames."""
    return np.unique(np.linspace(0, num_frames - 1, min(at_most, num_frames)).round().astype(np.int64))


@torch.inference_mode()
def _log_posteriors(
    net: TrainedNet, reader: FeatsReader, compute: Compute, max_frames: int, temperature: float
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Log posteriors of evenly spaced frames, block by block: (frame numbers, (n, num_pdfs) float32)."""
    a = net.net.architecture
    frames = Frames.from_reader(reader, net.cmvn, a.left_context, a.right_context, compute.device, compute.dtype)
    rows = _spread(reader.layout.num_frames, max_frames)
    for block in np.array_split(rows, -(-len(rows) // 8192)):
        with autocast(frames.device, compute.dtype):
            logits = net.net(frames.windows(torch.from_numpy(block).to(frames.device)))
        yield block, (logits.float() / temperature).log_softmax(dim=-1)


def _test_tuned(blocks: Iterator[tuple[np.ndarray, torch.Tensor]], ali: AliReader, classes: list[int]) -> torch.Tensor:
    found = []
    for rows, log_post in blocks:
        labels = torch.from_numpy(ali.pdf[rows]).to(log_post.device)
        found.append(overtaking(log_post[labels >= 0], labels[labels >= 0], classes))
    overtakes, gain = (torch.cat(parts) for parts in zip(*found, strict=True))
    return torch.full((len(classes),), bias_at_maximum(overtakes, gain), dtype=torch.float64)
