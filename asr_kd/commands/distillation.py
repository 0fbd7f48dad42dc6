"""`asr-kd soft-targets`, `sweep`, `distill`."""

import argparse
import dataclasses
import itertools
import json
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from asr_kd.cli_common import log
from asr_kd.commands.command import command, one_of, option, path
from asr_kd.commands.options import (
    DEVICE,
    SEEDS,
    TEACHERS,
    TRAINING_SETS,
    parse_seeds,
    refuse_label_smoothing,
    resolve_compute,
)
from asr_kd.commands.training import AT_A_TIME, INITIALISE, OUT, TRANSFER, Session, at_a_time, begin, initial_nets
from asr_kd.config import SWEPT, CompressConfig, DistillConfig, DnnConfig, resolve
from asr_kd.distill.out_of_fold import unseen_utts
from asr_kd.distill.soft_targets import OnlineTargets, SoftTargets, StoredTargets, check_members, write_soft_targets
from asr_kd.distill.specialist_inference import SPECIALISTS
from asr_kd.distill.student import student_run
from asr_kd.distill.transfer import read_utt2uniq
from asr_kd.errors import AsrKdError
from asr_kd.nnet.frames import Frames, FramesOnDisk
from asr_kd.nnet.net_dir import TrainedNet, best_epoch, load_net
from asr_kd.runinfo import make
from asr_kd.store.atomic import write_json, write_text
from asr_kd.store.feats import FeatsReader
from asr_kd.store.targets import TargetsReader, TargetsRows
from asr_kd.training.data import digest_of
from asr_kd.training.run import Run
from asr_kd.training.stacked import train_all
from asr_kd.training.stream import StreamedSet

AnyTargets = TypeVar("AnyTargets", TargetsReader, TargetsRows)


def load_members(paths: Sequence[Path], device: torch.device) -> list[TrainedNet]:
    """The nets in the folders `paths`, on `device`; raises AsrKdError where two are the same."""
    members = [load_net(path) for path in paths]
    digests = [member.digest for member in members]
    for number, digest in enumerate(digests):
        if digest in digests[:number]:
            same = paths[digests.index(digest)]
            raise AsrKdError(f"--teachers {paths[number]}: is the same net as {same}, and would count twice")
        members[number].net.to(device)
    return members


@command(
    "soft-targets",
    "store the ensemble's soft targets",
    TEACHERS,
    path("--feats", "the frames to label"),
    path("--out", "targets.h5"),
    option(
        "--out-of-fold",
        "each utterance is labelled only by the members that were not trained on it",
        action="store_true",
    ),
    path("--utt2uniq", "for --out-of-fold: originals of perturbed copies, where names do not tell", required=False),
    DEVICE,
    config=[
        "temperature",
        "combination",
        "top_k",
        "top_k_kl",
        "target_pruning",
        "target_bits",
        "top_n",
        "precision",
        "resident_frames",
    ],
    by_torchrun=True,
)
def soft_targets(args: argparse.Namespace) -> None:
    """Let the members label every frame of a feats.h5: densely, or top_k states a frame.

    --out-of-fold: members trained with train-ensemble --folds do not label what they (or copies of it) were trained on.
    Started by torchrun, each process labels its share of the frames.
    """
    distill, compute = resolve(DistillConfig, args.values), resolve_compute(args)
    members, reader = load_members(args.teachers, compute.device), FeatsReader(args.feats)
    check_members(members, reader, combination=distill.combination)
    how = {key: getattr(distill, key) for key in ("temperature", "combination")} | distill.kept
    how |= _how_called(distill.combination, args.values)
    unseen = None
    if args.out_of_fold:
        utt2uniq = None if args.utt2uniq is None else read_utt2uniq(args.utt2uniq)
        unseen = unseen_utts(args.teachers, reader.layout, utt2uniq)
        num = unseen.sum(axis=0)
        args.world.log(
            f"{args.out}: every utterance is labelled by {num.min()} to {num.max()} of {len(members)} members"
        )

    def work() -> None:
        a = members[0].net.architecture
        fits = reader.layout.num_frames <= args.values["resident_frames"] or not args.values["resident_frames"]
        frames = (Frames.from_reader if fits else FramesOnDisk)(
            reader, members[0].cmvn, a.left_context, a.right_context, compute.device, compute.dtype
        )
        shared = {"dtype": compute.dtype, "unseen": unseen, "world": args.world}
        write_soft_targets(args.out, members, reader, frames, **how, **shared)
        if args.world.is_first:
            log(f"{args.out}: {frames.layout.num_frames:,} frames, {args.out.stat().st_size / 1e6:.1f} MB")

    made_from = {
        "members": [member.digest for member in members],
        "feats": reader.content_digest,
        "distill": how,
        "dtype": compute.dtype,
        **({} if unseen is None else {"unseen": digest_of(unseen)}),
    }
    with args.world.only_writer(args.out):
        make(args.out, work, command=args.command_line, world=args.world, **made_from)


@command(
    "distill",
    "train students on soft targets",
    *TRAINING_SETS,
    one_of(path("--targets", "targets.h5 made by asr-kd soft-targets"), TEACHERS),
    option("--allow-views", "accept targets made from another view of the frames", action="store_true"),
    *TRANSFER,
    option("--unlabelled", "no label is looked at: only the soft targets count", action="store_true"),
    option("--labelled-share", "of the utterances trained on keep their labels", type=float, default=1.0),
    path("--extra-feats", "more frames to train on, unlabelled: untranscribed speech, or copies", required=False),
    path("--extra-targets", "targets.h5 of --extra-feats; not needed with --teachers", required=False),
    INITIALISE,
    OUT,
    SEEDS,
    AT_A_TIME,
    DEVICE,
    config=[
        "temperature",
        "soft_weight",
        "hard_weight",
        "combination",
        "top_n",
        "matching",
        "label_use",
        "online_members",
        "student_start",
        "student_epochs",
        "student_learning_rate",
        "student_schedule",
        "student_average_share",
        "student_view_share",
        "student_patience",
        "stacked",
        DnnConfig,
        CompressConfig,
    ],
    by_torchrun=True,
)
def distill(args: argparse.Namespace) -> None:
    """Train a student for every seed.

    Started by torchrun, all processes train one student after the other, each on its part of every batch.

    Soft targets are stored ones (--targets), whose temperature and mean are theirs, or those that the members give
    online (--teachers), for every batch anew. With student_start member, seed N starts from the weights of the Nth
    of --teachers; beside --targets, name the nets with --initialise. A frame without label counts in the soft term
    alone. With --extra-feats a student shows what teachers and speech do together; that of one member on the
    same frames is its control.
    """
    seeds, config = parse_seeds(args.seeds), resolve(DistillConfig, args.values)
    if (args.extra_targets is None) != (args.extra_feats is None or args.targets is None):
        raise AsrKdError("--extra-feats and --extra-targets go together; with --teachers, --extra-feats is enough")
    refuse_label_smoothing(args)
    if config.soft_weight == 0 and (args.unlabelled or args.labelled_share == 0) and config.label_use != "conditional":
        raise AsrKdError("soft_weight 0: without labels a student has nothing else to learn from; set it above 0")
    with at_a_time(args) as apart:
        session = begin(args)
        if args.targets:
            targets, key = _stored(args, session)
        else:
            members = _load_teachers(args, session, [config.combination])
            targets = _online(members, config.temperature, config.combination, config, session)
            key = _key(members, config.combination, "online", args.values)
        starts = initial_nets(args.initialise or _first_weights(args, config, seeds), seeds, session)
        compress = resolve(CompressConfig, args.values)
        runs = [
            _student_run(args.out / f"seed{seed}", seed, session, config, targets, key, starts.get(seed), compress)
            for seed in seeds
        ]
        train_all(runs, args.values["stacked"], apart)


def _first_weights(args: argparse.Namespace, config: DistillConfig, seeds: Sequence[int]) -> list[Path]:
    """The member that each seed starts from, by the key student_start; raises AsrKdError where none is named."""
    if config.student_start == "random":
        return []
    if not args.teachers:
        raise AsrKdError("student_start member: name the nets to start from, with --initialise")
    return [args.teachers[(seed - 1) % len(args.teachers)] for seed in seeds]


def _stored(args: argparse.Namespace, session: Session) -> tuple[StoredTargets, dict[str, Any]]:
    files = [(args.targets, args.feats)]
    if args.extra_targets:
        files.append((args.extra_targets, args.extra_feats))
    is_streamed = isinstance(session.train, StreamedSet)
    kind = TargetsRows if is_streamed else TargetsReader
    readers = [_fitting_targets(kind(targets), FeatsReader(feats), args, session) for targets, feats in files]
    key = {
        "members": readers[0].members,
        "combination": readers[0].combination,
        "values": " ".join(reader.digest for reader in readers),
    }
    if any(reader.sequence for reader in readers):
        key["sequence"] = [reader.sequence for reader in readers]
    if is_streamed:
        return StoredTargets.from_stream(readers, session.train.stream), key
    return StoredTargets.from_readers(readers, session.device), key


def _fitting_targets(reader: AnyTargets, feats: FeatsReader, args: argparse.Namespace, session: Session) -> AnyTargets:
    """Targets of these features and of the states at hand; raises AsrKdError if they are of others."""
    train = session.train
    for key in ("temperature", "combination"):
        if key in vars(args) and args.values[key] != getattr(reader, key):
            raise AsrKdError(f"--{key} {args.values[key]}: {reader.path} was made with {getattr(reader, key)}")
    reader.require_fit(
        feats.layout,
        feats.content_digest,
        train.num_pdfs,
        train.labels["model_digest"],
        allow_views=args.allow_views,
    )
    return reader


def _load_teachers(args: argparse.Namespace, session: Session, combinations: Sequence[str]) -> list[TrainedNet]:
    members, reader = load_members(args.teachers, session.device), FeatsReader(args.feats)
    for combination in combinations:
        check_members(members, reader, session.train.labels["model_digest"], combination=combination)
    return members


def _how_called(combination: str, values: dict[str, Any]) -> dict[str, int]:
    """What the answers of specialists depend on beside their nets."""
    return {"top_n": values["top_n"]} if combination == SPECIALISTS else {}


def _key(members: Sequence[TrainedNet], combination: str, values: str, config_values: dict[str, Any]) -> dict[str, Any]:
    called = _how_called(combination, config_values)
    if values == "online" and config_values["online_members"]:
        called["online_members"] = config_values["online_members"]
    return {"members": [member.digest for member in members], "combination": combination, "values": values, **called}


def _student_run(
    out: Path,
    seed: int,
    session: Session,
    config: DistillConfig,
    targets: SoftTargets,
    key: dict[str, Any],
    start: TrainedNet | None = None,
    compress: CompressConfig | None = None,
) -> Run:
    sets = (session.transfer, session.dev)
    how = (session.dtype, start, compress, session.world)
    return student_run(out, seed, session.dnn, config, *sets, targets, key, *how)


@command(
    "sweep",
    "choose temperature, weight and mean on dev",
    *TRAINING_SETS,
    TEACHERS,
    OUT,
    SEEDS,
    DEVICE,
    config=[DistillConfig, DnnConfig, "top_n", "stacked"],
)
def sweep(args: argparse.Namespace) -> None:
    """Train students of sweep_epochs, one for every seed, with every setting; none where there is one setting only.

    OUT/sweep.json lists them; OUT/best.yaml holds the best by dev frame accuracy, mean over seeds, for --config of
    soft-targets and distill.
    """
    refuse_label_smoothing(args)
    seeds, config = parse_seeds(args.seeds), resolve(DistillConfig, args.values)
    session = begin(args)
    members = _load_teachers(args, session, config.sweep_combinations)
    axes = [dict.fromkeys(getattr(config, key)) for key in SWEPT.values()]
    settings = [dict(zip(SWEPT, values, strict=True)) for values in itertools.product(*axes)]
    if len(settings) > 1:
        rows = _try_settings(args, config, session, members, settings, seeds)
        best = max(rows, key=lambda row: row["dev_frame_acc"])
        told = f"best on dev, frame accuracy {best['dev_frame_acc']:.2f} %"
    else:
        rows, best, told = [], settings[0], "the only setting, so nothing to choose"
    write_json(args.out / "sweep.json", rows)
    chosen = {key: best[key] for key in SWEPT}
    write_text(args.out / "best.yaml", "".join(f"{key}: {json.dumps(value)}\n" for key, value in chosen.items()))
    log(f"{told}: {chosen}")


def _try_settings(
    args: argparse.Namespace,
    config: DistillConfig,
    session: Session,
    members: Sequence[TrainedNet],
    settings: Sequence[dict[str, Any]],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Students with every setting, and how good they are on dev: means over seeds."""
    if not config.online_targets:
        session.require_resident("asr-kd sweep without online_targets")
    starts = initial_nets(_first_weights(args, config, seeds), seeds, session)
    rows = []
    for taught, group in itertools.groupby(settings, lambda each: (each["combination"], each["temperature"])):
        targets, values = _sweep_targets(members, session, *taught, config)
        key = _key(members, taught[0], values, args.values)
        for setting in group:
            weighed = dataclasses.replace(
                config, soft_weight=setting["soft_weight"], student_epochs=config.sweep_epochs
            )
            out = args.out / "{combination}-T{temperature:g}-w{soft_weight:g}".format(**setting)
            runs = [
                _student_run(out / f"seed{seed}", seed, session, weighed, targets, key, starts.get(seed))
                for seed in seeds
            ]
            train_all(runs, args.values["stacked"])
            rows.append({**setting, "seeds": list(seeds), **_dev_scores(runs)})
    return rows


def _online(
    members: Sequence[TrainedNet], temperature: float, combination: str, config: DistillConfig, session: Session
) -> OnlineTargets:
    """Soft targets of every batch as the student sees it; raises AsrKdError where they cannot be compiled."""
    if session.dnn.compile and config.online_members and config.online_members < len(members):
        raise AsrKdError(
            "compile true: not with online_members, of which others answer in every batch; set compile to false"
        )
    called = _how_called(combination, session.values)
    return OnlineTargets(members, temperature, combination, session.dtype, **called, num_drawn=config.online_members)


def _sweep_targets(
    members: Sequence[TrainedNet], session: Session, combination: str, temperature: float, config: DistillConfig
) -> tuple[SoftTargets, str]:
    """Soft targets of one setting, and what their values are, for the fingerprint."""
    if config.online_targets:
        return _online(members, temperature, combination, config, session), "online"
    values = f"top{config.top_k}" if config.top_k else "dense"
    if config.kept.keys() != {"top_k"}:
        values = json.dumps(config.kept)
    return _LazyTargets(members, session, temperature, combination, config.kept), values


class _LazyTargets:
    """The members' targets, computed when the first batch asks for them: not for a student that is there."""

    def __init__(
        self,
        members: Sequence[TrainedNet],
        session: Session,
        temperature: float,
        combination: str,
        kept: dict[str, Any],
    ):
        self.temperature, self.is_recordable = temperature, True
        called = _how_called(combination, session.values)
        self._compute = cache(
            lambda: StoredTargets.from_members(
                members, session.train.frames, temperature, combination, session.dtype, **called, **kept
            )
        )

    @property
    def looked_up(self) -> Sequence[torch.Tensor]:
        return self._compute().looked_up

    def batch(self, index: torch.Tensor, windows: torch.Tensor):
        return self._compute().batch(index, windows)


def _dev_scores(runs: Sequence[Run]) -> dict[str, Any]:
    """Of nets that are trained, each at its best epoch: means, and the frame accuracy of each as `per_seed`."""
    best = [best_epoch(run.out) for run in runs]
    return {
        **{key: statistics.mean(epoch[key] for epoch in best) for key in ("dev_frame_acc", "dev_xent")},
        "per_seed": [epoch["dev_frame_acc"] for epoch in best],
    }
