"""`asr-kd train`, `train-ensemble`, and what every command that trains begins with."""

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from asr_kd.cli_common import MAX_SEED, at_least_one, seed_number
from asr_kd.commands.command import command, option, path
from asr_kd.commands.options import DEVICE, SEEDS, TRAINING_SETS, parse_seeds, resolve_compute
from asr_kd.config import CompressConfig, DistillConfig, DnnConfig, EnsembleConfig, resolve
from asr_kd.distill.out_of_fold import Folds
from asr_kd.distill.student import as_long_as_students
from asr_kd.distill.transfer import (
    TransferChoice,
    TransferSet,
    choose,
    original_of,
    parse_pdfs,
    pdfs_of_phones,
    read_utt2uniq,
    read_utt_list,
)
from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import TrainedNet, load_net
from asr_kd.runinfo import run_info
from asr_kd.store.ali import AliReader
from asr_kd.store.atomic import write_json
from asr_kd.training.apart import Apart, nets_apart
from asr_kd.training.data import LabelledSet, load_set
from asr_kd.training.run import Run, hard_loss
from asr_kd.training.stacked import train_all
from asr_kd.training.stream import StreamedSet, load_or_stream
from asr_kd.world import ALONE, World

OUT = path("--out", "one folder a seed is made below this one")
TRANSFER = (
    option("--train-share", "train on this share of the utterances (default 1)", type=float, default=1.0),
    option("--share-seed", "which ones; a larger share holds the smaller (default 1)", type=seed_number, default=1),
    path("--utt-list", "train on the utterances of this file, one a line", required=False),
    option("--omit-phones", "train on no frame of these phones' states, like AH,EH"),
    option("--omit-pdfs", "train on no frame of these states, like 12,13"),
    option("--only-pdfs", "train on frames of these states alone"),
    path("--utt2uniq", "originals of perturbed copies (default: by names like sp0.9-…)", required=False),
)
AT_A_TIME = option(
    "--nj",
    "nets trained at a time on a CPU, each in a process with its share of the threads (default 1)",
    type=at_least_one,
    default=1,
)
INITIALISE = path(
    "--initialise",
    "net to start from, or one for each seed (default: random weights)",
    nargs="+",
    metavar="DIR",
    required=False,
)


def at_a_time(args: argparse.Namespace) -> contextlib.AbstractContextManager[Apart | None]:
    """How the nets of AT_A_TIME are trained that are loaded inside; see nets_apart."""
    if args.nj > 1 and args.world.size > 1:
        raise AsrKdError("--nj: under torchrun there are several processes already; leave it out")
    return nets_apart(args.nj, resolve_compute(args).device)


@dataclass(frozen=True)
class Session:
    """Configuration, device, and both sets on it; `transfer` is what is trained on of the training set.

    world: the processes that train a net together.
    """

    values: dict[str, Any]
    dnn: DnnConfig
    device: torch.device
    dtype: torch.dtype
    transfer: TransferSet
    dev: LabelledSet
    world: World

    @property
    def train(self) -> LabelledSet:
        """The training set, with the labels that may be looked at."""
        return self.transfer.train

    def require_resident(self, command: str) -> None:
        """Raise AsrKdError where the training set is streamed, for what wants all of it at once."""
        if isinstance(self.train, StreamedSet):
            raise AsrKdError(f"resident_frames: {command} needs all frames on the device; leave it at 0")


def begin(args: argparse.Namespace) -> Session:
    """Load what TRAINING_SETS, TRANSFER, DEVICE and the configuration name; record the run in OUT/run.json.

    Raises AsrKdError where the sets differ in states or features, or share an utterance or a copy of one.
    """
    dnn, compute = resolve(DnnConfig, args.values), resolve_compute(args)
    shape = {
        "left_context": dnn.left_context,
        "right_context": dnn.right_context,
        "device": compute.device,
        "dtype": compute.dtype,
    }
    choice = transfer_choice(args)
    of_train = {"cmvn": dnn.cmvn, "extra_feats": vars(args).get("extra_feats"), "resident_frames": dnn.resident_frames}
    of_train["held_as"] = torch.int8 if dnn.eight_bit_frames else None
    train = load_or_stream(args.feats, args.ali, **of_train, **shape)
    dev = load_set(args.dev_feats, args.dev_ali, cmvn=train.cmvn, **shape)
    if dev.labels != train.labels:
        raise AsrKdError(f"{args.dev_ali}: its states are not those of {args.ali}")
    if dev.front_end != train.front_end:
        raise AsrKdError(f"{args.dev_feats}: was made otherwise (kind, options, rate, normalised) than {args.feats}")
    train_originals, dev_originals = (
        {original_of(utt_id, choice.utt2uniq) for utt_id in each.frames.layout.utt_ids} for each in (train, dev)
    )
    if overlap := train_originals & dev_originals:
        raise AsrKdError(f"{args.dev_feats}: utterance {min(overlap)} is in the training set too")
    if args.world.is_first:
        write_json(args.out / "run.json", {**run_info(args.command_line, str(compute.device)), "config": args.values})
    return Session(args.values, dnn, compute.device, compute.dtype, choose(train, choice), dev, args.world)


def transfer_choice(args: argparse.Namespace) -> TransferChoice:
    """What the options TRANSFER, and those that `distill` has beside them, ask for."""
    given = {key: value for key, value in vars(args).items() if value is not None}
    omitted = parse_pdfs(given["omit_pdfs"], "--omit-pdfs") if "omit_pdfs" in given else []
    if "omit_phones" in given:
        omitted += pdfs_of_phones(AliReader(args.ali), given["omit_phones"])
    return TransferChoice(
        share=given.get("train_share", 1.0),
        share_seed=given.get("share_seed", 1),
        utt_ids=read_utt_list(given["utt_list"]) if "utt_list" in given else None,
        omit_pdfs=tuple(sorted(set(omitted))),
        only_pdfs=tuple(parse_pdfs(given["only_pdfs"], "--only-pdfs")) if "only_pdfs" in given else (),
        labelled_share=0.0 if given.get("unlabelled") else given.get("labelled_share", 1.0),
        utt2uniq=read_utt2uniq(given["utt2uniq"]) if "utt2uniq" in given else None,
    )


@command(
    "train",
    "train single nets on hard labels",
    *TRAINING_SETS,
    *TRANSFER,
    OUT,
    SEEDS,
    AT_A_TIME,
    INITIALISE,
    option("--as-long-as-students", "with a student's epochs and patience: the long baseline", action="store_true"),
    DEVICE,
    config=[DnnConfig, "stacked", "student_epochs", "student_patience", "student_view_share", CompressConfig],
    by_torchrun=True,
)
def train(args: argparse.Namespace) -> None:
    """Train a frame classifier for every seed; a kill is resumed by the same command.

    Started by torchrun, all processes train one net after the other, each on its part of every batch.
    """
    seeds = parse_seeds(args.seeds)
    with at_a_time(args) as apart:
        session = begin(args)
        long = as_long_as_students(session.dnn, resolve(DistillConfig, args.values))
        schedule = long if args.as_long_as_students else session.dnn
        starts = initial_nets(args.initialise, seeds, session)
        compress = resolve(CompressConfig, args.values)
        transfer_sets = {seed: session.transfer for seed in seeds}
        train_seeds(args.out, transfer_sets, schedule, session, starts, compress, apart)


def initial_nets(folders: Sequence[Path] | None, seeds: Sequence[int], session: Session) -> dict[int, TrainedNet]:
    """The net that each seed starts from; empty where none is named.

    Raises AsrKdError where they are neither one nor one for each seed, or are of other features or states.
    """
    if not folders:
        return {}
    if len(folders) not in (1, len(seeds)):
        raise AsrKdError(f"--initialise names {len(folders)} nets for {len(seeds)} seeds; name one, or one for each")
    nets = [load_net(folder) for folder in folders]
    for folder, net in zip(folders, nets, strict=True):
        if (net.labels, net.front_end) != (session.train.labels, session.train.front_end):
            raise AsrKdError(f"--initialise {folder}: its states or features are not those of the training set")
        if net.cmvn.mode != session.dnn.cmvn:
            raise AsrKdError(f"--initialise {folder}: normalises by {net.cmvn.mode}, not by {session.dnn.cmvn}")
    return {seed: nets[number % len(nets)] for number, seed in enumerate(seeds)}


def train_seeds(
    out: Path,
    transfer_sets: dict[int, TransferSet],
    config: DnnConfig,
    session: Session,
    starts: Mapping[int, TrainedNet] | None = None,
    compress: CompressConfig | None = None,
    apart: Apart | None = None,
) -> None:
    """Train a net on hard labels for every seed, on its transfer set, into `out`/seedN."""
    runs = [
        Run(
            out=out / f"seed{seed}",
            seed=seed,
            config=config,
            train=transfer.train,
            dev=session.dev,
            transfer_index=transfer.index,
            loss=hard_loss(transfer.train, config.label_smoothing),
            loss_key={"kind": "hard"},
            dtype=session.dtype,
            transfer=transfer.record,
            start=(starts or {}).get(seed),
            compress=compress,
            world=session.world,
        )
        for seed, transfer in transfer_sets.items()
    ]
    train_all(runs, session.values["stacked"], apart)


@command(
    "train-ensemble",
    "train the members of an ensemble",
    *TRAINING_SETS,
    *TRANSFER,
    option("--folds", "train each member on all but one of so many folds: that of its seed, modulo this", type=int),
    option("--fold-seed", "which utterances are in which fold (default 1)", type=seed_number, default=1),
    OUT,
    option("--first-seed", "that and the following (default 1)", type=seed_number, default=1),
    AT_A_TIME,
    DEVICE,
    config=[EnsembleConfig, DnnConfig],
    by_torchrun=True,
)
def train_ensemble(args: argparse.Namespace) -> None:
    """Train num_members nets that differ in their seed alone, over the same resident frames.

    Started by torchrun, each process trains its share of the members, by itself.

    A member that is complete is not trained again: after a kill, or with more members asked for, only the rest is.
    With --folds every member lacks some utterances (and their perturbed copies); soft-targets --out-of-fold lets it
    label those alone.
    """
    num_members = resolve(EnsembleConfig, args.values).num_members
    if num_members < 1:
        raise AsrKdError(f"--num-members {num_members}: must be at least 1")
    seeds = range(args.first_seed, args.first_seed + num_members)
    if seeds[-1] > MAX_SEED:
        raise AsrKdError(f"--first-seed {args.first_seed}: the last member's would be {seeds[-1]}, above {MAX_SEED}")
    with at_a_time(args) as apart:
        session = begin(args)
        transfer_sets = {seed: session.transfer for seed in seeds}
        if args.folds is not None:
            folds = Folds(session.train.frames.layout, args.folds, args.fold_seed, transfer_choice(args).utt2uniq)
            for seed, transfer in transfer_sets.items():
                transfer_sets[seed] = folds.without(transfer, seed % args.folds)
        own = {seed: transfer_sets[seed] for seed in args.world.share(sorted(transfer_sets))}
        train_seeds(args.out, own, session.dnn, replace(session, world=ALONE), apart=apart)
