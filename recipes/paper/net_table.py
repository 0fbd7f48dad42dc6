#!/usr/bin/env python3
"""A table of kinds of nets, each averaged over its seeds, beside the paper's figures: Markdown printed, rows as JSON.

Every kind is a line of --kinds: what it is called, its folder (of seed1, seed2, …), and the paper's accuracy in percent
on its training and its test set, fields parted by tabs, `-` for what the paper does not tell.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from asr_kd.cli_common import Parser, run_main
from asr_kd.errors import AsrKdError
from asr_kd.nnet.net_dir import load_card
from asr_kd.store.atomic import write_json


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", type=Path, required=True, help="file of kinds of nets")
    parser.add_argument("--errors", type=Path, required=True, help="made by asr-kd count-errors, of all of their nets")
    parser.add_argument("--states", default="", help="also the accuracy on these states, like 12,13")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the rows")
    return parser


def main(args: argparse.Namespace) -> None:
    """Average over seeds, kind by kind."""
    counted = {Path(row["net"]).resolve(): row for row in json.loads(args.errors.read_text(encoding="utf-8"))}
    states = [int(state) for state in args.states.split(",") if state]
    rows = []
    for line in args.kinds.read_text(encoding="utf-8").splitlines():
        name, folder, *published = line.split("\t")
        nets = [net for net in counted if net.parent == Path(folder).resolve()]
        if not nets:
            raise AsrKdError(f"{args.errors}: no net of {folder} was counted")
        rows.append(row_of(name, [(load_card(net), counted[net]) for net in nets], states, published))
    write_json(args.out, rows)
    header = ["system", "seeds", "frames trained on", "steps", "train", "paper: train", "accuracy", "paper: test"]
    header += ["on these states"] * bool(states) + ["cross-entropy"]
    for cells in (header, ["---", *["---:"] * (len(header) - 1)], *(cells_of(row, bool(states)) for row in rows)):
        print(f"| {' | '.join(cells)} |")


def row_of(name: str, nets: list[tuple[dict, dict]], states: list[int], published: list[str]) -> dict:
    """nets: the card and the counts of every seed. Accuracies in percent, one a seed."""
    train, test = (None if text == "-" else float(text) for text in published)
    row = {
        "system": name,
        "num_train_frames": nets[0][0]["training"]["num_train_frames"],
        "num_steps": nets[0][0]["training"]["history"][-1]["step"],
        "num_parameters": nets[0][1]["num_parameters"],
        "train_accuracy": [card["training"].get("transfer_frame_acc") for card, _ in nets],
        "paper_train_accuracy": train,
        "accuracy": [100 - 100 * counts["errors"] / counts["num_frames"] for _, counts in nets],
        "paper_test_accuracy": test,
        "cross_entropy": [counts["xent"] for _, counts in nets],
    }
    if states:
        row["accuracy_on_states"] = [accuracy_on(counts, states) for _, counts in nets]
    return row


def accuracy_on(counts: dict, states: list[int]) -> float | None:
    """Of the frames that have these states, in percent."""
    errors, frames = (sum(counts[key][state] for state in states) for key in ("errors_by_pdf", "frames_by_pdf"))
    return 100 - 100 * errors / frames if frames else None


def cells_of(row: dict, with_states: bool) -> list[str]:
    """A row for people."""
    cells = [row["system"], str(len(row["accuracy"])), f"{row['num_train_frames']:,}", f"{row['num_steps']:,}"]
    cells += [mean_of(row["train_accuracy"], ".1f", " %"), published_of(row["paper_train_accuracy"])]
    cells += [mean_of(row["accuracy"], ".2f", " %"), published_of(row["paper_test_accuracy"])]
    if with_states:
        cells.append(mean_of(row["accuracy_on_states"], ".1f", " %"))
    return [*cells, mean_of(row["cross_entropy"], ".3f")]


def mean_of(values: list[float | None], form: str, unit: str = "") -> str:
    """Mean over seeds, and the standard deviation of a seed; a dash where a seed has no value."""
    if None in values:
        return "–"
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}{unit}"


def published_of(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
