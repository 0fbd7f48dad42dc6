#!/usr/bin/env python3
"""What recipes/paper/compression.sh has trained: as systems to decode and score, then as a table of what they cost.

Nets lie in NETS/labels/KIND/seedN and NETS/distilled/KIND/seedN. With --systems, that file is written. With --scores
and --speed, a Markdown table is printed and its rows are written to --out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from asr_kd.cli_common import Parser, run_main
from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import WEIGHTS, load_card
from asr_kd.scoring.estimates import FRAME_METRICS, WORD_METRICS, Estimates
from asr_kd.scoring.systems import SystemScores
from asr_kd.store.atomic import write_json

TRAININGS = {"labels": "baseline", "distilled": "student"}


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True, help="folder of labels and distilled")
    parser.add_argument("--kinds", nargs="+", required=True, help="of compression")
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--teachers", nargs="+", default=[], help="the ensemble's nets")
    parser.add_argument("--systems", type=Path, help="systems.yaml to write")
    parser.add_argument("--scores", type=Path, help="made by asr-kd score")
    parser.add_argument("--speed", type=Path, help="made by benchmarks/compression.py, of the first seed's nets")
    parser.add_argument("--out", type=Path, help="JSON of the rows")
    return parser


def name_of(kind: str, training: str) -> str:
    """Of a system: `pruned80+int8` is no name for a file."""
    return f"{kind.replace('+', '-')}-{training}"


def folders_of(args: argparse.Namespace, kind: str, training: str) -> list[Path]:
    """One a seed."""
    return [args.nets / training / kind / f"seed{seed}" for seed in args.seeds]


def main(args: argparse.Namespace) -> None:
    """Write systems.yaml, or the table."""
    if args.systems:
        systems = [{"name": "ensemble", "role": "ensemble", "nets": [args.teachers], "combination": "arithmetic"}]
        for kind in args.kinds:
            for training, role in TRAININGS.items():
                nets = [[str(folder.resolve())] for folder in folders_of(args, kind, training)]
                systems.append({"name": name_of(kind, training), "role": role, "nets": nets})
        return write_json(args.systems, systems)  # JSON is YAML
    if not (args.scores and args.speed and args.out):
        raise AsrKdError("give --systems, or --scores, --speed and --out")
    names = ["ensemble", *(name_of(kind, training) for kind in args.kinds for training in TRAININGS)]
    scores = {name: SystemScores.load(args.scores / f"{name}.json") for name in names}
    estimates = Estimates(list(scores.values()), FRAME_METRICS | WORD_METRICS)
    measured_speed = json.loads(args.speed.read_text())
    speed = {Path(row["net"]).resolve(): row for row in measured_speed["nets"]}
    of_full = measured_speed["microseconds_of_full"]
    rows = []
    for kind in args.kinds:
        cost = cost_of(folders_of(args, kind, "labels"), speed)
        by_training = {training: scores[name_of(kind, training)] for training in TRAININGS}
        rows.append({"kind": kind, **cost, **measured(estimates, by_training)})
    ensemble = {metric: estimates.estimate(scores["ensemble"], metric)["value"] for metric in ("frame_accuracy", "wer")}
    write_json(args.out, {"ensemble": ensemble, "microseconds_of_full": of_full, "rows": rows})
    print_table(ensemble, of_full, rows, len(args.seeds), scores["ensemble"].split)


def cost_of(folders: list[Path], speed: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Parameters and bytes (means over seeds: what is left out may differ), and the first seed's time of a frame."""
    cards = [load_card(folder) for folder in folders]
    sparsity = cards[0]["training"].get("compress", {}).get("sparsity", 0.0)
    return {
        "num_parameters": cards[0]["num_parameters"],
        "sparsity": sparsity,
        "bytes": sum((folder / WEIGHTS).stat().st_size for folder in folders) / len(folders),
        "time_of_full": speed[folders[0].resolve()]["time_of_full"],
    }


def measured(estimates: Estimates, systems: dict[str, SystemScores]) -> dict[str, Any]:
    """Both metrics of both trainings, and what distillation changes, with its paired interval."""
    found: dict[str, Any] = {}
    for metric in ("frame_accuracy", "wer"):
        for training, system in systems.items():
            found[f"{metric}_{training}"] = estimates.estimate(system, metric)
        found[f"{metric}_difference"] = estimates.compare(systems["distilled"], systems["labels"], metric)
    return found


def print_table(
    ensemble: dict[str, float], of_full: dict[str, float], rows: list[dict[str, Any]], num_seeds: int, split: str | None
) -> None:
    """For people; of_full: microseconds that the full net takes for a frame, by batch size."""
    header = ["net", "parameters", "weights ≠ 0", "bytes", *(f"μs a frame, batch {batch}" for batch in of_full)]
    header += ["frame accuracy, labels", "distilled", "difference", "95 % interval", "WER, labels", "distilled"]
    header += ["difference", "95 % interval"]
    print(
        f"On {split}; means of {num_seeds} seeds; time on one core, and as a share of the full net's. The ensemble: "
        f"{ensemble['frame_accuracy']:.2f} % frame accuracy, {ensemble['wer']:.2f} % WER.\n"
    )
    for cells in (header, ["---", *["---:"] * (len(header) - 1)], *(cells_of(row, of_full) for row in rows)):
        print(f"| {' | '.join(cells)} |")


def cells_of(row: dict[str, Any], of_full: dict[str, float]) -> list[str]:
    cells = [row["kind"], f"{row['num_parameters']:,}", f"{100 * (1 - row['sparsity']):.0f} %", f"{row['bytes']:,.0f}"]
    cells += [f"{share * of_full[batch]:.1f} ({share:.2f})" for batch, share in row["time_of_full"].items()]
    for metric in ("frame_accuracy", "wer"):
        test = row[f"{metric}_difference"]
        cells += [f"{row[f'{metric}_{training}']['value']:.2f} %" for training in TRAININGS]
        cells += [f"{test['difference']:+.2f}", f"{test['ci95'][0]:+.2f} to {test['ci95'][1]:+.2f}"]
    return cells


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
