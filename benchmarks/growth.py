#!/usr/bin/env python3
"""How the cost of every stage grows with the speech: 1, 4 and 16 times --num-utts utterances, on one core.

--exp is what a recipe left that ran its stages 1 to 4 (recipes/mini/run.sh --stop-stage 4). Its training set, as much
of it as is asked for, passes through the commands: filterbanks, MFCCs, flat start, alignment, an epoch of training,
soft targets of two nets, decoding with one. Each is a process of its own, forked from one that has imported them all.

Growth is the processor time of a frame that came in the second step (4 to 16 times) over that in the first (1 to 4
times): 1 is linear, and what every process begins with does not count. Memory is the largest resident set; bytes a
frame are its growth in the second step. Medians over --rounds.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from asr_kd.runtime import prepare_runtime

prepare_runtime()  # as asr-kd does

import torch

from asr_kd import cli
from asr_kd.cli_common import log, run_main
from asr_kd.commands import distillation, hmm, scoring, training  # noqa: F401 - each process would import them itself
from asr_kd.corpus.datadir import load_data_dir, read_data_dir
from asr_kd.corpus.subsets import spread, write_selection
from asr_kd.errors import AsrKdError
from asr_kd.features.extract import extract
from asr_kd.features.options import FbankOptions, FrontEndOptions, MfccOptions
from asr_kd.scoring import decoding  # noqa: F401
from asr_kd.store.feats import FeatsReader

FACTORS = (1, 4, 16)


def measured(work: Callable[[], object], log_path: Path) -> tuple[float, int]:
    """Seconds of processor time and bytes of resident memory, at most, of a process that does `work` and no more.

    Raises AsrKdError where it fails.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        with log_path.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
            try:
                status = int(work() or 0)
            except BaseException:
                traceback.print_exc()
        os._exit(status)
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        raise AsrKdError(f"a stage failed: {log_path.read_text().strip().splitlines()[-1]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def make_features(data: Path, out: Path, options: FrontEndOptions) -> None:
    """feats.h5 of a data directory."""
    extract(read_data_dir(data), out, options)


def asr_kd(*words: object) -> Callable[[], int]:
    """An asr-kd command."""
    return lambda: cli.main([str(word) for word in words])


class Part:
    """A part of a recipe's training set: the commands that its stages are, and where they leave their files."""

    def __init__(self, exp: Path, folder: Path, num_utts: int):
        self.exp, self.folder = exp, folder
        self.data = folder / "data"
        self.clean = folder / "clean" if (exp / "data/train_clean").is_dir() else self.data
        for source, out in (("train", self.data), ("train_clean", self.clean)):
            if not out.exists():
                data = load_data_dir(exp / "data" / source)
                write_selection(data, spread(list(data.rows("utt2spk")), num_utts), out)
        with FeatsReader(exp / "feats/dev.fbank.h5") as reader:
            self.rate = float(reader.attrs["sample_rate"])
        # The first two nets of the ensemble, or whatever there is.
        self.nets = sorted(path.parent.resolve() for path in (exp / "nnet/member").glob("seed*/net.json"))[:2]
        if not self.nets:
            raise AsrKdError(f"{exp}: has no nets; run its recipe to stage 4 first")
        (folder / "systems.yaml").write_text(f"- {{name: net, role: member, nets: [['{self.nets[0]}']]}}\n")

    @property
    def num_frames(self) -> int:
        """As the filterbanks have them."""
        return FeatsReader(self.folder / "fbank.h5").layout.num_frames

    def stages(self) -> dict[str, Callable[[], object]]:
        """What each stage does, by name, in order."""
        exp, here = self.exp, self.folder
        fbank, mfcc, ali = here / "fbank.h5", here / "mfcc.h5", here / "ali.h5"
        config, on_cpu = ("--config", exp / "config.yaml"), ("--device", "cpu")
        counts = ("--counts", here / "counts")
        aligned = ("--feats", mfcc, "--data", self.clean, *config)
        dev_feats = ("--dev-feats", exp / "feats/dev.fbank.h5")
        labelled = ("--feats", fbank, "--ali", ali, *dev_feats, "--dev-ali", exp / "ali/dev.h5")
        decoded = (*dev_feats, "--dev-data", exp / "data/dev", "--test-feats", fbank, "--test-data", self.data)
        decoded += ("--acwts", 0.1, "--insertion-penalties", 0, "--tuning-utts", 8)
        flat_start = (*aligned, "--lexicon", exp / "data/lexicon.txt", "--gmm-max-train-utts", 0)
        labels = ("--teachers", *self.nets, "--feats", fbank)
        decoder = ("--systems", here / "systems.yaml", "--graph", exp / "graph", *counts)
        return {
            "filterbanks": lambda: make_features(self.data, fbank, FbankOptions(sample_frequency=self.rate)),
            "MFCCs": lambda: make_features(self.clean, mfcc, MfccOptions(sample_frequency=self.rate)),
            "flat start": asr_kd("train-hmm", *flat_start, "--out", here / "hmm"),
            "alignment": asr_kd("align", *aligned, "--hmm", exp / "hmm", "--out", ali, *counts),
            "training": asr_kd("train", *labelled, *config, *on_cpu, "--num-epochs", 1, "--out", here / "net"),
            "soft targets": asr_kd("soft-targets", *labels, *config, *on_cpu, "--out", here / "targets.h5"),
            "decoding": asr_kd("decode", *decoder, *decoded, *config, *on_cpu, "--nj", 1, "--out", here / "decode"),
        }


def measure(args: argparse.Namespace, folder: Path, sizes: list[int]) -> dict[str, list[tuple[int, float, int]]]:
    """(frames, seconds, bytes) of every stage for so many utterances, all made anew in `folder`."""
    parts = []
    for num_utts in sizes:
        here = folder / str(num_utts)
        here.mkdir(parents=True)
        parts.append(Part(args.exp.resolve(), here, num_utts))
    found: dict[str, list[tuple[int, float, int]]] = {}
    for name in parts[0].stages():
        if name == "flat start" and args.without_flat_start:
            continue
        for num_utts, part in zip(sizes, parts, strict=True):
            seconds, memory = measured(part.stages()[name], folder / "log")
            found.setdefault(name, []).append((part.num_frames, seconds, memory))
            log(f"{name} of {num_utts} utterances: {part.num_frames:,} frames, {seconds:.2f} s, {memory >> 20} MiB")
    return found


def print_table(rounds: list[dict[str, list[tuple[int, float, int]]]]) -> None:
    """A row for each stage."""
    print("| stage | frames | seconds | growth | MiB | bytes a frame |")
    print("|---|---|---|---:|---|---:|")
    for name in rounds[0]:
        frames = [size for size, _, _ in rounds[0][name]]
        seconds, memory = ([statistics.median(r[name][i][what] for r in rounds) for i in range(3)] for what in (1, 2))
        growth = _slope(frames[1:], seconds[1:]) / _slope(frames[:2], seconds[:2])
        print(
            f"| {name} | {', '.join(f'{size:,}' for size in frames)} | {', '.join(f'{s:.2f}' for s in seconds)} | "
            f"{growth:.2f} | {', '.join(f'{int(m) >> 20}' for m in memory)} | {_slope(frames[1:], memory[1:]):,.0f} |"
        )


def _slope(x: list[int], y: list[float]) -> float:
    return (y[1] - y[0]) / (x[1] - x[0])


def main(args: argparse.Namespace) -> None:
    """Print one table."""
    torch.set_num_threads(1)
    for needed in ("config.yaml", "data/train", "data/lexicon.txt", "hmm", "graph", "ali/dev.h5", "feats/dev.fbank.h5"):
        if not (args.exp / needed).exists():
            raise AsrKdError(f"{args.exp / needed} is missing; run the recipe to stage 4 first (--stop-stage 4)")
    sizes = [factor * args.num_utts for factor in FACTORS]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(args, Path(folder) / "first", [2])  # numba compiles the search once, and keeps it
        print_table([measure(args, Path(folder) / str(number), sizes) for number in range(args.rounds)])


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, default=Path("exp/mini"), help="a recipe's folder (default exp/mini)")
    parser.add_argument("--num-utts", type=int, default=32, help="utterances of the smallest part (default 32)")
    parser.add_argument("--without-flat-start", action="store_true", help="leave out what takes longest")
    parser.add_argument("--rounds", type=int, default=1, help="(default 1)")
    parser.add_argument("--folder", type=Path, help="for what the stages write (default: the temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
