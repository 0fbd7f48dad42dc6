#!/usr/bin/env python3
"""The share of an ensemble's gain that each arm keeps: Markdown printed, rows as JSON.

The baseline is the best arm without a teacher, the members themselves among them, by the dev set that the nets were
trained with, whatever set the table is of. Shares have Fieller's intervals, over utterances and seeds
(asr_kd/scoring/significance.py). Costs are in trainings of one member: a forward pass counts 1, a step of training 3,
for every frame and net, since all nets have one size; training the members is not counted. KL is the divergence of the
ensemble's answers, its arithmetic mean at T = 1, from those of a net, in nats a frame.
"""

import argparse
import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import numpy as np
import torch

from asr_kd.cli_common import Parser, run_main
from asr_kd.nnet.device import resolve_device
from asr_kd.nnet.net_dir import best_epoch, load_card
from asr_kd.scoring.decoding import load_nets
from asr_kd.scoring.estimates import FRAME_METRICS, Estimates
from asr_kd.scoring.frames import FrameLabels, FrameScorer, FrameScores
from asr_kd.scoring.labels import ali_labels
from asr_kd.scoring.set_posteriors import SetPosteriors
from asr_kd.scoring.significance import share_of_gain
from asr_kd.store.ali import AliReader, require_fit
from asr_kd.store.atomic import write_json
from asr_kd.store.feats import FeatsReader

ENSEMBLE, MEMBERS = "ensemble", "members"
# Systems of labels alone.
UNTAUGHT = re.compile(rf"{MEMBERS}$|(averaged-)?(start-)?(hard|smoothing)")
METRICS = {name: FRAME_METRICS[name] for name in ("frame_accuracy", "cross_entropy")}


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", required=True, help="names parted by blanks")
    parser.add_argument("--nets", type=Path, required=True, help="folder of NAME/seedN")
    parser.add_argument("--seeds", required=True, help="numbers parted by blanks")
    parser.add_argument("--members", type=Path, nargs="+", required=True, help="nets of the ensemble")
    parser.add_argument("--feats", type=Path, required=True, help="features of the set")
    parser.add_argument("--ali", type=Path, required=True, help="its states")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the rows; a plot is drawn beside it, as SVG")
    return parser


def main(args: argparse.Namespace) -> None:
    """Score every arm, then compare."""
    torch.set_grad_enabled(False)
    reader, ali = FeatsReader(args.feats), AliReader(args.ali)
    require_fit(ali.layout, reader.layout, (str(args.ali), str(args.feats)))
    device, labels = resolve_device(args.device), ali_labels(ali)

    def answers_of(paths: list[Path]) -> SetPosteriors:
        return SetPosteriors(load_nets(paths, device), reader, "arithmetic", device)

    arms = {arm: [[args.nets / arm / f"seed{seed}"] for seed in args.seeds.split()] for arm in args.arms.split()}
    singles = {MEMBERS: [[net] for net in args.members], **arms}
    nets = [answers_of(paths) for paths in itertools.chain(*singles.values())]
    scored = iter(score_beside(answers_of(args.members), nets, labels))

    def next_system(name: str, num_seeds: int) -> FrameSystem:
        scores, divergences = zip(*itertools.islice(scored, num_seeds), strict=True)
        correct, xent_sum = (np.stack([getattr(each, key) for each in scores]) for key in ("correct", "xent_sum"))
        units = (reader.layout.utt_ids, reader.spk_ids, scores[0].num_frames)
        return FrameSystem(name, *units, correct, xent_sum, float(np.mean(divergences)))

    ensemble = next_system(ENSEMBLE, 1)
    systems = {MEMBERS: next_system(MEMBERS, len(args.members)), ENSEMBLE: ensemble}
    systems |= {arm: next_system(arm, len(paths)) for arm, paths in arms.items()}
    costs = {arm: cost_of(arm, paths, args.members) for arm, paths in arms.items()}
    untaught = {name: dev_accuracy(paths) for name, paths in singles.items() if UNTAUGHT.match(name)}
    rows = rows_of(systems, costs, untaught)
    write_json(args.out, rows)
    draw(rows, args.out.with_suffix(".svg"))
    print_table(rows)


@dataclass(frozen=True)
class FrameSystem:
    """What Estimates asks of a system whose frames alone are scored; S seeds, U utterances."""

    name: str
    utt_ids: Sequence[str]
    spk_ids: Sequence[str]
    num_frames: np.ndarray  # (U,)
    correct: np.ndarray  # (S, U)
    xent_sum: np.ndarray  # (S, U), nats
    divergence: float  # of the ensemble's answers from its own, nats a frame, mean over seeds


def score_beside(
    ensemble: SetPosteriors, nets: Sequence[SetPosteriors], labels: FrameLabels
) -> list[tuple[FrameScores, float]]:
    """Scores of the ensemble and of every net, and the divergence of its answers from theirs: one pass over the set."""
    scorers, divergences = [FrameScorer(labels) for _ in (ensemble, *nets)], np.zeros(1 + len(nets))
    start = 0
    # All blocks are cut alike, since all nets name the same states.
    for theirs, *answers in zip(ensemble.blocks(), *(net.blocks() for net in nets), strict=True):
        posteriors = np.exp(theirs)
        for number, own in enumerate([theirs, *answers]):
            scorers[number].add(start, own)
            divergences[number] += (posteriors * (theirs - own)).sum(dtype=np.float64)
        start += len(theirs)
    return [(scorer.result(), float(each) / start) for scorer, each in zip(scorers, divergences, strict=True)]


def cost_of(arm: str, nets: list[list[Path]], members: list[Path]) -> float:
    """Of one seed, in trainings of a member: what was passed through the net, and through its teachers."""
    training, member = load_card(nets[0][0])["training"], load_card(members[0])["training"]
    seen, own = (sum(row["num_frames"] for row in each["history"]) for each in (training, member))
    loss = training["loss"]
    num_teachers = min(len(loss.get("members", [])), loss.get("online_members", math.inf))
    labelled = seen if loss.get("values") == "online" else training["num_train_frames"]
    return (3 * seen + num_teachers * labelled) / (3 * own)


def dev_accuracy(nets: list[list[Path]]) -> float:
    """Of nets at their best epochs, on the dev set that they were trained with: the mean over seeds, in percent."""
    return float(np.mean([best_epoch(paths[0])["dev_frame_acc"] for paths in nets]))


def rows_of(systems: dict[str, FrameSystem], costs: dict[str, float], untaught: dict[str, float]) -> list[dict]:
    """A row for every system, the share where it has a teacher; `untaught`: dev accuracy of those that have none."""
    estimates = Estimates(list(systems.values()), METRICS)
    values = {name: estimates.estimate(system, "frame_accuracy") for name, system in systems.items()}
    baseline = max(untaught, key=untaught.__getitem__)
    rows = []
    for name, system in systems.items():
        row = {
            "arm": name,
            "baseline": name == baseline,
            "cost": costs.get(name),
            "frame_accuracy": values[name]["value"],
            "per_seed": values[name]["per_seed"],
            "cross_entropy": estimates.estimate(system, "cross_entropy")["value"],
            "kl": system.divergence,
        }
        if name != ENSEMBLE:
            row["minus_ensemble"] = estimates.compare(system, systems[ENSEMBLE], "frame_accuracy")
        if name not in (ENSEMBLE, *untaught):
            trio = [systems[baseline], systems[ENSEMBLE], system]
            per_seed = [estimates.metrics["frame_accuracy"].per_seed(each) for each in trio]
            share = share_of_gain(*per_seed, estimates.covariance(trio, "frame_accuracy"), estimates.num_units)
            row["share"] = {"value": share.value, "ci95": share.ci95, "p_at_least_086": share.p_at_least}
            row["share"]["reason"] = share.reason
        rows.append(row)
    return rows


def print_table(rows: list[dict]) -> None:
    """For people."""
    print("| arm | cost | frame accuracy | cross-entropy | KL | minus the ensemble | share kept | p of ≥ 0.86 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        share, difference = row.get("share"), row.get("minus_ensemble")
        kept = ("–", "–")
        if share and share["value"] is not None:
            low, high = share["ci95"]
            kept = (f"{share['value']:.2f} [{low:.2f}, {high:.2f}]", f"{share['p_at_least_086']:.3f}")
        cells = [
            row["arm"] + " (baseline)" * row["baseline"],
            "–" if row["cost"] is None else f"{row['cost']:.1f}",
            f"{row['frame_accuracy']:.2f}",
            f"{row['cross_entropy']:.3f}",
            f"{row['kl']:.3f}",
            "–" if difference is None else f"{difference['difference']:+.2f}",
            *kept,
        ]
        print(f"| {' | '.join(cells)} |")


def draw(rows: list[dict], path: Path) -> None:
    """Share kept over cost; arms that differ in their epochs alone (NAME, NAME-xN) are joined."""
    from matplotlib.figure import Figure

    from asr_kd.store.atomic import atomic_path

    families: dict[str, list[dict]] = {}
    for row in rows:
        if row.get("share") and row["share"]["value"] is not None:
            families.setdefault(re.sub(r"-x\d+$", "", row["arm"]), []).append(row)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, family) in enumerate(families.items()):
        family.sort(key=lambda row: row["cost"])
        aside = 1.02 ** (number - (len(families) - 1) / 2)  # intervals of arms of one cost beside each other
        cost = np.array([row["cost"] for row in family])
        share = np.array([row["share"]["value"] for row in family])
        bounds = np.array([row["share"]["ci95"] for row in family]).T
        axes.errorbar(cost * aside, share, yerr=np.abs(bounds - share), marker="o", capsize=3, label=name)
    for level in (0.86, 1.0):
        axes.axhline(level, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="cost, in trainings of one member", ylabel="share of the gain kept")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter("{x:g}")
    if families:
        figure.legend(loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
