"""`asr-kd train-specialists`, `specialist-coverage`."""

import argparse
from pathlib import Path
from typing import Any

from asr_kd.cli_common import at_least_one, log, seed_number
from asr_kd.commands.command import command, option, output, path
from asr_kd.commands.options import DEVICE, TRAINING_SETS, refuse_label_smoothing
from asr_kd.config import DnnConfig, SpecialistsConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import make
from asr_kd.store.atomic import write_json
from asr_kd.store.parsing import parse_json

SET_FILE = "specialists.json"
# Keys of conf/dnn.yaml that a specialist has from its generalist.
_SHAPE = ("left_context", "right_context", "num_hidden_layers", "hidden_dim", "cmvn")


@command(
    "train-specialists",
    "train nets for the states that a net confuses",
    path("--generalist", "folder of the net that they start from and answer beside"),
    *TRAINING_SETS,
    path("--out", "folder of specialists.json and of one folder a specialist"),
    option("--seed", "of the clusters and of the first specialist (default 1)", type=seed_number, default=1),
    option("--nj", "specialists trained at a time, each in a process (default 1)", type=at_least_one, default=1),
    DEVICE,
    config=[SpecialistsConfig, DnnConfig, "temperature"],
)
def train_specialists(args: argparse.Namespace) -> None:
    """Cluster the states by the generalist's predictions, and train a specialist for every cluster.

    Shape and normalisation are the generalist's. OUT/specialists.json says which states each has; together with the
    generalist they answer under the combination `specialists`: in systems.yaml nets: [[GENERALIST, OUT/spec1, …]], and
    as --teachers GENERALIST OUT/spec1 … --combination specialists.
    """
    from asr_kd.commands.training import begin
    from asr_kd.distill.clustering import choose_classes, cluster_states, prediction_statistics
    from asr_kd.distill.specialist_training import SpecialistTraining
    from asr_kd.distill.specialist_training import train_specialists as train
    from asr_kd.nnet.net_dir import load_net

    refuse_label_smoothing(args)
    generalist = load_net(args.generalist)
    args.values |= _shape_of(generalist, args)
    config, session = resolve(SpecialistsConfig, args.values), begin(args)
    session.require_resident("asr-kd train-specialists")
    _require_same_inputs(args, generalist, session.train)
    generalist.net.to(session.device)
    how = {
        "clustering": config.clustering,
        "num_specialists": config.num_specialists,
        "specialist_size": config.specialist_size,
        "seed": args.seed,
        "generalist": generalist.digest,
    }

    def cluster() -> None:
        statistics = prediction_statistics(generalist.net, session.train, session.dtype)
        clusters = cluster_states(config.clustering, statistics, config.num_specialists, args.seed)
        classes = [chosen.tolist() for chosen in choose_classes(clusters, config.specialist_size)]
        write_json(args.out / SET_FILE, {**how, "num_pdfs": session.train.num_pdfs, "classes": classes})

    labels = [session.train.content_digest, session.train.ali_digest]
    make(args.out / SET_FILE, cluster, command=args.command_line, train=labels, dtype=session.dtype, **how)
    classes = _read_classes(args.out)
    log(f"{args.out / SET_FILE}: specialists of {', '.join(str(len(each)) for each in classes)} states")
    training = SpecialistTraining(
        generalist, config, session.dnn, args.values["temperature"], session.train, session.dev, session.dtype
    )
    jobs = {args.out / f"spec{number}": each for number, each in enumerate(classes, 1)}
    train(training, jobs, args.seed, args.nj)


def _shape_of(generalist, args: argparse.Namespace) -> dict[str, Any]:
    """The generalist's values of _SHAPE; raises AsrKdError where the command line asks for others."""
    a = generalist.net.architecture
    shape = {key: getattr(a, key) for key in _SHAPE if hasattr(a, key)} | {"cmvn": generalist.cmvn.mode}
    for key, value in shape.items():
        if key in vars(args) and args.values[key] != value:
            raise AsrKdError(f"--{key.replace('_', '-')} {args.values[key]}: the generalist has {value}")
    return shape


def _require_same_inputs(args: argparse.Namespace, generalist, train) -> None:
    import numpy as np

    if generalist.labels != train.labels:
        raise AsrKdError(f"{args.ali}: its states are not those of {args.generalist}, or that net is a specialist")
    same_cmvn = not generalist.cmvn.fixed or np.array_equal(generalist.cmvn.mean, train.cmvn.mean)
    if generalist.front_end != train.front_end or not same_cmvn:
        raise AsrKdError(f"{args.feats}: {args.generalist} was trained on other features")


@command(
    "specialist-coverage",
    "accuracy by how many specialists have the state",
    path("--generalists", "folders of nets, one a seed", nargs="+", metavar="DIR"),
    path("--specialists", "folders made by asr-kd train-specialists, in the same order", nargs="+", metavar="DIR"),
    path("--feats", "features of the set"),
    path("--ali", "its states"),
    output("--out", "JSON of the rows"),
    DEVICE,
    config=["top_n", "precision"],
)
def specialist_coverage(args: argparse.Namespace) -> None:
    """Print what specialists change, by the number of them that have a frame's state among theirs, and write it.

    This is table 4 of Hinton, Vinyals & Dean 2015; states and frames are summed over seeds.
    """
    from asr_kd.commands.options import resolve_compute
    from asr_kd.distill.soft_targets import check_members
    from asr_kd.scoring.coverage import count_by_state, coverage_rows, coverage_table
    from asr_kd.scoring.decoding import load_nets
    from asr_kd.store.feats import FeatsReader
    from asr_kd.training.data import load_set

    if len(args.generalists) != len(args.specialists):
        raise AsrKdError("--generalists and --specialists: give one folder of specialists for every generalist")
    compute, seeds = resolve_compute(args), []
    for generalist, folder in zip(args.generalists, args.specialists, strict=True):
        num = len(_read_classes(folder))
        members = load_nets([generalist, *(folder / f"spec{number}" for number in range(1, num + 1))], compute.device)
        first = members[0]
        data = load_set(
            args.feats,
            args.ali,
            cmvn=first.cmvn,
            left_context=first.net.architecture.left_context,
            right_context=first.net.architecture.right_context,
            device=compute.device,
            dtype=compute.dtype,
        )
        check_members(members, FeatsReader(args.feats), data.labels["model_digest"], combination="specialists")
        seeds.append(count_by_state(members, data, args.values["top_n"], compute.dtype))
    rows = coverage_rows(seeds)
    write_json(args.out, rows)
    print(coverage_table(rows), end="")


def _read_classes(folder: Path) -> list[list[int]]:
    try:
        return parse_json((folder / SET_FILE).read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AsrKdError(f"{folder / SET_FILE}: cannot be read ({error}); run asr-kd train-specialists") from error
