"""Options that several subcommands share, and what they mean."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asr_kd.cli_common import MAX_SEED, at_least_one
from asr_kd.commands.command import Option, one_of, option, path
from asr_kd.errors import AsrKdError
from asr_kd.store.parsing import parse_json

if TYPE_CHECKING:
    import torch

DEVICE = option("--device", "auto, cpu or cuda (default auto: CUDA where there is a GPU)", default="auto")
SEEDS = option("--seeds", "like 1-3 or 1,2,5 (default 1)", default="1")
SYSTEMS = path("--systems", "systems.yaml: nets by systems, as asr_kd/scoring/system_list.py describes")
GRAPH = path("--graph", "folder made by asr-kd make-graph")
NJ = option("--nj", "processes (default 1)", type=at_least_one, default=1)
COUNTS = path("--counts", "ali_train_pdf.counts made by asr-kd align")
TEACHERS = path("--teachers", "folders of the members", nargs="+", metavar="DIR")
SCALES = (
    one_of(
        path("--scales", "scales.json of a system, made by asr-kd decode"),
        option("--acwt", "acoustic scale", type=float),
    ),
    option("--insertion-penalty", "cost of a word, beside --acwt (default 0)", type=float),
)
# Keys of conf/decode.yaml that bound a search in a graph that is made already.
SEARCH = ("beam", "min_active", "max_active", "prior_floor")
TRAINING_SETS = (
    path("--feats", "the training set's features"),
    path("--ali", "the training set's states"),
    path("--dev-feats", "the set that the best epoch is chosen on"),
    path("--dev-ali", "its states"),
)


def parse_seeds(text: str) -> list[int]:
    """`1-3` or `1,2,5` → numbers; raises AsrKdError for anything else."""
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if not all(parts) or not all(ranges) or max(each[-1] for each in ranges) > MAX_SEED:
        raise AsrKdError(f"--seeds {text}: expected whole numbers like 1-3 or 1,2,5, each once, at most {MAX_SEED}")
    seeds = [seed for each in ranges for seed in each]
    if len(set(seeds)) != len(seeds):
        raise AsrKdError(f"--seeds {text}: expected each number once")
    return seeds


def refuse_label_smoothing(args: argparse.Namespace) -> None:
    """Of an option alone: a recipe's configuration has it for the members. Raises AsrKdError."""
    if "label_smoothing" in vars(args):
        raise AsrKdError("--label-smoothing: is of the labels that members learn from; give it to train-ensemble")


def resolve_scales(args: argparse.Namespace) -> tuple[float, float]:
    """Acoustic scale and insertion penalty of SCALES; raises AsrKdError for a file that asr-kd decode did not write."""
    if not args.scales:
        return args.acwt, args.insertion_penalty or 0.0
    if args.insertion_penalty is not None:
        raise AsrKdError("--insertion-penalty goes with --acwt; --scales holds one already")
    try:
        contents = parse_json(args.scales.read_text(encoding="utf-8"))
        return float(contents["acwt"]), float(contents["insertion_penalty"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AsrKdError(f"{args.scales}: not a scales.json made by asr-kd decode ({error!r})") from error


@dataclass(frozen=True)
class Compute:
    """Where nets run, and in which precision their matrices are multiplied."""

    device: "torch.device"
    dtype: "torch.dtype"


def resolve_compute(args: argparse.Namespace) -> Compute:
    """What --device and the key `precision` ask for; raises AsrKdError for a device that is not there."""
    from asr_kd.nnet.device import resolve_device, resolve_precision

    device = resolve_device(args.device, args.world)
    return Compute(device, resolve_precision(args.values["precision"], device))


def all_of(*groups: Option | Iterable[Option]) -> list[Option]:
    """One list of single options and groups of them."""
    return [each for group in groups for each in ([group] if isinstance(group, Option) else group)]
