"""`asr-kd train`, `train-ensemble`, `soft-targets`, `sweep`, `distill`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from asr_kd.cli_common import log
from asr_kd.commands.options import add_device_option, add_sets, parse_seeds
from asr_kd.config import DistillConfig, DnnConfig, EnsembleConfig, add_config_options, config_from_args, resolve
from asr_kd.distill.soft_targets import OnlineTargets, StoredTargets, check_members, write_soft_targets
from asr_kd.distill.student import student_schedule, train_student
from asr_kd.errors import AsrKdError
from asr_kd.nnet.device import resolve_device, resolve_precision
from asr_kd.nnet.frames import Frames
from asr_kd.nnet.net_dir import TrainedNet, load_net
from asr_kd.runinfo import fingerprint, run_info, stamp, up_to_date
from asr_kd.store.atomic import write_json, write_text
from asr_kd.store.feats import FeatsReader
from asr_kd.store.targets import TargetsReader
from asr_kd.training.data import LabelledSet, load_set
from asr_kd.training.loop import Run, hard_loss, train_net

SETS = {"": "the training set", "dev": "the set that the best epoch is chosen on"}


def _add_training_parser(subparsers: Any, name: str, help_text: str, description: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=help_text, description=description)
    add_sets(parser, SETS, ("feats", "ali"))
    parser.add_argument("--out", type=Path, required=True, help="one folder a seed is made below this one")
    add_device_option(parser)
    return parser


@dataclasses.dataclass
class _Session:
    """What every training command begins with: configuration, device, and both sets on it."""

    values: dict[str, Any]
    dnn: DnnConfig
    distill: DistillConfig
    device: torch.device
    dtype: torch.dtype
    train: LabelledSet
    dev: LabelledSet


def _begin(args: argparse.Namespace) -> _Session:
    values = config_from_args(args)
    dnn = resolve(DnnConfig, values)
    device = resolve_device(args.device)
    dtype = resolve_precision(dnn.precision, device)
    shape = {"left_context": dnn.left_context, "right_context": dnn.right_context, "device": device, "dtype": dtype}
    train = load_set(args.feats, args.ali, cmvn=dnn.cmvn, **shape)
    dev = load_set(args.dev_feats, args.dev_ali, cmvn=train.cmvn, **shape)
    if (dev.labels, dev.front_end) != (train.labels, train.front_end):
        raise AsrKdError(f"{args.dev_ali}: its states or features are not those of {args.ali}")
    overlap = set(train.frames.layout.utt_ids) & set(dev.frames.layout.utt_ids)
    if overlap:
        raise AsrKdError(f"{args.dev_feats}: utterance {min(overlap)} is in the training set too")
    write_json(args.out / "run.json", {**run_info(args.command_line, str(device)), "config": values})
    return _Session(values, dnn, resolve(DistillConfig, values), device, dtype, train, dev)


def add_train(subparsers: Any) -> None:
    parser = _add_training_parser(
        subparsers,
        "train",
        "train single nets on hard labels",
        "Train a frame classifier for every seed; a kill is resumed by the same command.",
    )
    parser.add_argument("--seeds", default="1", help="like 1-3 or 1,2,5 (default 1)")
    parser.add_argument(
        "--student-schedule", action="store_true", help="take the student's epochs and learning rate: the long baseline"
    )
    add_config_options(parser, [DnnConfig, DistillConfig])
    parser.set_defaults(main=train)


def train(args: argparse.Namespace) -> None:
    seeds = parse_seeds(args.seeds)
    session = _begin(args)
    config = student_schedule(session.dnn, session.distill) if args.student_schedule else session.dnn
    _train_seeds(args.out, seeds, config, session)


def _train_seeds(out: Path, seeds: list[int], config: DnnConfig, session: _Session) -> None:
    for seed in seeds:
        train_net(
            Run(
                out=out / f"seed{seed}",
                seed=seed,
                config=config,
                train=session.train,
                dev=session.dev,
                transfer_index=session.train.labelled,
                loss=hard_loss(session.train),
                loss_key={"kind": "hard"},
                dtype=session.dtype,
            )
        )


def add_train_ensemble(subparsers: Any) -> None:
    parser = _add_training_parser(
        subparsers,
        "train-ensemble",
        "train the members of an ensemble",
        "Train num_members nets that differ in their seed alone, over the same resident frames.",
    )
    parser.add_argument("--first-seed", type=int, default=1, help="that and the following (default 1)")
    add_config_options(parser, [EnsembleConfig, DnnConfig])
    parser.set_defaults(main=train_ensemble)


def train_ensemble(args: argparse.Namespace) -> None:
    session = _begin(args)
    num_members = resolve(EnsembleConfig, session.values).num_members
    if num_members < 1:
        raise AsrKdError(f"--num-members {num_members}: must be at least 1")
    _train_seeds(args.out, list(range(args.first_seed, args.first_seed + num_members)), session.dnn, session)


def _load_members(paths: list[Path], device: torch.device) -> list[TrainedNet]:
    members = [load_net(path) for path in paths]
    for member in members:
        member.net.to(device)
    return members


def add_soft_targets(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "soft-targets",
        help="store the ensemble's soft targets",
        description="Let the members label every frame of a feats.h5 and write targets.h5: dense, or the top_k largest "
        "and the mass left over.",
    )
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, metavar="DIR", help="folders of the members")
    parser.add_argument("--feats", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="targets.h5")
    add_device_option(parser)
    add_config_options(parser, [DistillConfig, DnnConfig])
    parser.set_defaults(main=soft_targets)


def soft_targets(args: argparse.Namespace) -> None:
    values = config_from_args(args)
    distill, device = resolve(DistillConfig, values), resolve_device(args.device)
    dtype = resolve_precision(values["precision"], device)
    members, reader = _load_members(args.teachers, device), FeatsReader(args.feats)
    check_members(members, reader)
    made_from = fingerprint(
        members=[member.digest for member in members],
        feats=reader.content_digest,
        distill=[distill.temperature, distill.combination, distill.top_k],
        dtype=str(dtype),
    )
    if up_to_date(args.out, made_from):
        log(f"{args.out}: up to date")
        return
    a = members[0].net.architecture
    frames = Frames.from_reader(reader, members[0].cmvn, a.left_context, a.right_context, device, dtype)
    write_soft_targets(
        args.out,
        members,
        reader,
        frames,
        temperature=distill.temperature,
        combination=distill.combination,
        top_k=distill.top_k,
        dtype=dtype,
    )
    stamp(args.out, made_from, command=args.command_line)
    log(f"{args.out}: {frames.layout.num_frames:,} frames, {args.out.stat().st_size / 1e6:.1f} MB")


def add_distill(subparsers: Any) -> None:
    parser = _add_training_parser(
        subparsers,
        "distill",
        "train students on soft targets",
        "Train a student for every seed on stored soft targets (--targets) or on those that the members give online, "
        "for every batch anew (--teachers).",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--targets", type=Path, help="targets.h5 made by asr-kd soft-targets")
    source.add_argument("--teachers", type=Path, nargs="+", metavar="DIR", help="folders of the members")
    parser.add_argument(
        "--allow-views", action="store_true", help="accept targets made from another view of the frames"
    )
    parser.add_argument("--seeds", default="1", help="like 1-3 or 1,2,5 (default 1)")
    add_config_options(parser, [DistillConfig, DnnConfig])
    parser.set_defaults(main=distill)


def distill(args: argparse.Namespace) -> None:
    seeds = parse_seeds(args.seeds)
    session = _begin(args)
    if args.targets:
        targets, key = _stored(args.targets, session, args.allow_views)
    else:
        members = _load_members(args.teachers, session.device)
        check_members(members, FeatsReader(args.feats), session.train.labels["model_digest"])
        targets = OnlineTargets(members, session.distill.temperature, session.distill.combination, session.dtype)
        key = {"members": [m.digest for m in members], "combination": session.distill.combination, "values": "online"}
    for seed in seeds:
        _train_student(args.out / f"seed{seed}", seed, session, session.distill, targets, key)


def _stored(path: Path, session: _Session, allow_views: bool = False) -> tuple[StoredTargets, dict[str, Any]]:
    reader = TargetsReader(path)
    train = session.train
    reader.require_fit(
        train.frames.layout,
        train.content_digest,
        train.num_pdfs,
        train.labels["model_digest"],
        allow_views=allow_views,
    )
    key = {"members": reader.members, "combination": reader.combination, "values": reader.digest}
    return StoredTargets.from_reader(reader, session.device), key


def _train_student(out: Path, seed: int, session: _Session, config: DistillConfig, targets, key) -> TrainedNet:
    return train_student(out, seed, session.dnn, config, session.train, session.dev, targets, key, session.dtype)


def add_sweep(subparsers: Any) -> None:
    parser = _add_training_parser(
        subparsers,
        "sweep",
        "choose temperature, weight and mean on dev",
        "Train a student of sweep_epochs for every setting; OUT/sweep.json lists them, OUT/best.yaml holds the best by "
        "dev frame accuracy, to be given to soft-targets and distill with --config.",
    )
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, metavar="DIR", help="folders of the members")
    add_config_options(parser, [DistillConfig, DnnConfig])
    parser.set_defaults(main=sweep)


def sweep(args: argparse.Namespace) -> None:
    session = _begin(args)
    members = _load_members(args.teachers, session.device)
    check_members(members, FeatsReader(args.feats), session.train.labels["model_digest"])
    rows = []
    for combination in session.distill.sweep_combinations:
        for temperature in session.distill.sweep_temperatures:
            targets = StoredTargets.from_members(members, session.train.frames, temperature, combination, session.dtype)
            key = {"members": [m.digest for m in members], "combination": combination, "values": "dense"}
            for soft_weight in session.distill.sweep_soft_weights:
                config = dataclasses.replace(
                    session.distill, soft_weight=soft_weight, student_epochs=session.distill.sweep_epochs
                )
                name = f"{combination}-T{temperature:g}-w{soft_weight:g}"
                student = _train_student(args.out / name, 1, session, config, targets, key)
                rows.append(_sweep_row(combination, temperature, soft_weight, student))
    best = max(rows, key=lambda row: row["dev_frame_acc"])
    write_json(args.out / "sweep.json", rows)
    chosen = {key: best[key] for key in ("temperature", "soft_weight", "combination")}
    write_text(args.out / "best.yaml", "".join(f"{key}: {json.dumps(value)}\n" for key, value in chosen.items()))
    log(f"best on dev: {chosen}, frame accuracy {best['dev_frame_acc']:.2f} %")


def _sweep_row(combination: str, temperature: float, soft_weight: float, student: TrainedNet) -> dict[str, Any]:
    best_epoch = student.training["history"][student.training["best_epoch"] - 1]
    return {
        "temperature": temperature,
        "soft_weight": soft_weight,
        "combination": combination,
        "dev_frame_acc": best_epoch["dev_frame_acc"],
        "dev_xent": best_epoch["dev_xent"],
        "epochs": len(student.training["history"]),
    }
