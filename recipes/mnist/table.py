#!/usr/bin/env python3
"""The table of recipes/mnist: errors of every kind of net beside those of Hinton, Vinyals & Dean 2015, section 3.

Writes OUT/results.json and OUT/table.md, and prints the latter.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from asr_kd.cli_common import Parser, run_main
from asr_kd.nnet.net_dir import load_card
from asr_kd.runinfo import run_info
from asr_kd.store.atomic import write_json, write_text

# Folder below --nets: what it is, errors in the paper, and those on 3s where it tells them.
PUBLISHED = {
    "teacher": ("dropout, max-norm, jitter", 67, None),
    "plain": ("labels alone, no regulariser", 146, None),
    "plain-shifted": ("labels alone, on shifted images", None, None),
    "plain-deformed": ("labels alone, on deformed images", None, None),
    "distilled": ("distilled", 74, None),
    "distilled-shifted": ("distilled, on shifted images", None, None),
    "distilled-deformed": ("distilled from all of these, on deformed images", None, None),
    "distilled-of-deformed": ("distilled from all of these, on images as they are", None, None),
    "without3": ("distilled without the digit 3", 206, 133),
    "without3-corrected": ("its bias from unlabelled images", None, None),
    "without3-test-tuned": ("its bias chosen on test, as published", 109, 14),
    "only78": ("distilled from 7s and 8s only", 4730, None),
    "only78-corrected": ("their biases from unlabelled images", None, None),
    "only78-test-tuned": ("their bias chosen on test, as published", 1320, None),
}


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", type=Path, required=True, help="folder of dev.json and test.json of count-errors")
    parser.add_argument("--nets", type=Path, required=True, help="folder that all of their nets lie below")
    parser.add_argument("--preset", required=True, help="for the record")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table")
    return parser


def main(args: argparse.Namespace) -> None:
    """Average over seeds, kind by kind."""
    counted = {name: json.loads((args.errors / f"{name}.json").read_text()) for name in ("dev", "test")}
    kinds: dict[tuple[str, ...], list[dict]] = {}
    for dev, test in zip(counted["dev"], counted["test"], strict=True):
        parts = Path(test["net"]).relative_to(args.nets).parts
        kind = tuple(part for part in parts if not part.startswith("seed"))
        kinds.setdefault(kind, []).append({"dev": dev, "test": test, "card": load_card(test["net"])})
    rows = [row_of(kind, nets) for kind, nets in kinds.items()]
    header = {"preset": args.preset, "run": run_info(" ".join(sys.argv))}
    write_json(args.out / "results.json", {"recipe": "mnist", **header, "rows": rows})
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in [HEADER, ["---"] * len(HEADER), *map(cells_of, rows)])
    write_text(args.out / "table.md", table)
    print(table, end="")


def row_of(kind: tuple[str, ...], nets: list[dict]) -> dict:
    """A row for programs; nets: one a seed."""
    card = nets[0]["card"]
    what, errors, errors_on_3 = PUBLISHED.get(kind[0], ("distilled", None, None))
    correction = [net["card"]["training"].get("bias_correction", {}).get("biases") for net in nets]
    shape = card["architecture"]
    return {
        "name": "/".join(kind),
        "what": what,
        "shape": f"{shape['num_hidden_layers']}×{shape['hidden_dim']}",
        "num_parameters": card["num_parameters"],
        "temperature": card["training"]["loss"].get("temperature"),
        "seeds": [net["test"]["seed"] for net in nets],
        "test_images": nets[0]["test"]["num_frames"],
        "test_errors": summary([net["test"]["errors"] for net in nets]),
        "test_errors_on_3": summary([net["test"]["errors_by_pdf"][3] for net in nets]),
        "dev_images": nets[0]["dev"]["num_frames"],
        "dev_errors": summary([net["dev"]["errors"] for net in nets]),
        "test_xent": summary([net["test"]["xent"] for net in nets]),
        "biases": correction if correction[0] else None,
        "published": {"errors": errors, "errors_on_3": errors_on_3},
        "train_seconds": [round(net["card"]["training"]["train_seconds"], 1) for net in nets],
    }


def summary(values: list[float]) -> dict:
    """Mean and standard deviation over seeds, null for a single one."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": deviation, "per_seed": values}


HEADER = ["net", "training", "T", "biases", "seeds", "test errors", "paper", "of them on 3s", "paper", "dev errors"]


def cells_of(row: dict) -> list[str]:
    """A row for people."""
    biases = row["biases"] and [statistics.mean(each) for each in zip(*row["biases"], strict=True)]
    return [
        row["shape"],
        row["what"],
        "" if row["temperature"] is None else f"{row['temperature']:g}",
        ", ".join(f"{bias:+.1f}" for bias in biases or []),
        str(len(row["seeds"])),
        shown(row["test_errors"]),
        str(row["published"]["errors"] or ""),
        shown(row["test_errors_on_3"]) if row["name"].startswith("without3") else "",
        str(row["published"]["errors_on_3"] or ""),
        f"{shown(row['dev_errors'])} of {row['dev_images']}",
    ]


def shown(value: dict) -> str:
    """`mean ± standard deviation`."""
    return f"{value['mean']:.1f} ± {value['sd']:.1f}" if value["sd"] is not None else f"{value['mean']:g}"


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
