"""`asr-kd train`, `train-ensemble`, and what every command that trains begins with."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asr_kd.commands.command import command, option, path
from asr_kd.commands.options import DEVICE, SEEDS, TRAINING_SETS, parse_seeds, resolve_compute
from asr_kd.config import DistillConfig, DnnConfig, EnsembleConfig, resolve
from asr_kd.distill.student import student_schedule
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import run_info
from asr_kd.store.atomic import write_json
from asr_kd.training.data import LabelledSet, load_set
from asr_kd.training.loop import train_net
from asr_kd.training.run import Run, hard_loss

OUT = path("--out", "one folder a seed is made below this one")


@dataclass(frozen=True)
class Session:
    """Configuration, device, and both sets on it."""

    values: dict[str, Any]
    dnn: DnnConfig
    device: torch.device
    dtype: torch.dtype
    train: LabelledSet
    dev: LabelledSet


def begin(args: argparse.Namespace) -> Session:
    """Load what TRAINING_SETS, DEVICE and the configuration name; record the run in OUT/run.json.

    Raises AsrKdError where the sets differ in states or features, or share an utterance.
    """
    dnn, compute = resolve(DnnConfig, args.values), resolve_compute(args)
    shape = {
        "left_context": dnn.left_context,
        "right_context": dnn.right_context,
        "device": compute.device,
        "dtype": compute.dtype,
    }
    train = load_set(args.feats, args.ali, cmvn=dnn.cmvn, **shape)
    dev = load_set(args.dev_feats, args.dev_ali, cmvn=train.cmvn, **shape)
    if (dev.labels, dev.front_end) != (train.labels, train.front_end):
        raise AsrKdError(f"{args.dev_ali}: its states or features are not those of {args.ali}")
    overlap = set(train.frames.layout.utt_ids) & set(dev.frames.layout.utt_ids)
    if overlap:
        raise AsrKdError(f"{args.dev_feats}: utterance {min(overlap)} is in the training set too")
    write_json(args.out / "run.json", {**run_info(args.command_line, str(compute.device)), "config": args.values})
    return Session(args.values, dnn, compute.device, compute.dtype, train, dev)


@command(
    "train",
    "train single nets on hard labels",
    *TRAINING_SETS,
    OUT,
    SEEDS,
    option("--student-schedule", "take the student's epochs and learning rate: the long baseline", action="store_true"),
    DEVICE,
    config=[DnnConfig, "student_epochs", "student_learning_rate"],
)
def train(args: argparse.Namespace) -> None:
    """Train a frame classifier for every seed; a kill is resumed by the same command."""
    seeds = parse_seeds(args.seeds)
    session = begin(args)
    schedule = student_schedule(session.dnn, resolve(DistillConfig, args.values))
    train_seeds(args.out, seeds, schedule if args.student_schedule else session.dnn, session)


def train_seeds(out: Path, seeds: list[int], config: DnnConfig, session: Session) -> None:
    """Train a net on hard labels for every seed, into `out`/seedN."""
    for seed in seeds:
        train_net(
            Run(
                out=out / f"seed{seed}",
                seed=seed,
                config=config,
                train=session.train,
                dev=session.dev,
                transfer_index=session.train.labelled,
                loss=hard_loss(session.train, config.label_smoothing),
                loss_key={"kind": "hard"},
                dtype=session.dtype,
            )
        )


@command(
    "train-ensemble",
    "train the members of an ensemble",
    *TRAINING_SETS,
    OUT,
    option("--first-seed", "that and the following (default 1)", type=int, default=1),
    DEVICE,
    config=[EnsembleConfig, DnnConfig],
)
def train_ensemble(args: argparse.Namespace) -> None:
    """Train num_members nets that differ in their seed alone, over the same resident frames.

    A member that is complete is not trained again: after a kill, or with more members asked for, only the rest is.
    """
    num_members = resolve(EnsembleConfig, args.values).num_members
    if num_members < 1:
        raise AsrKdError(f"--num-members {num_members}: must be at least 1")
    session = begin(args)
    train_seeds(args.out, list(range(args.first_seed, args.first_seed + num_members)), session.dnn, session)
