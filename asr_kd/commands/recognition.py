"""`asr-kd export`, `asr-kd recognize`: nets for others to use, and words from a directory that holds all it takes."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from asr_kd.cli_common import log
from asr_kd.commands.command import command, option, optional, path
from asr_kd.commands.options import COUNTS, GRAPH, resolve_scales
from asr_kd.config import DecodeConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import file_digest, make

if TYPE_CHECKING:
    from asr_kd.corpus.datadir import Utterance


# What each format needs beside --nets and --out, and what it can take; --acwt may stand for --scales.
NEEDED = {"model-dir": ("hmm", "graph", "counts", "scales"), "onnx": (), "nnet1": ()}
CARD = ("results", "system", "name", "license", "trained_on")
TAKEN = {"model-dir": ("acwt", "insertion_penalty", *CARD), "onnx": (), "nnet1": ("hmm", "counts")}


@command(
    "export",
    "make a directory to recognise with, or a net for ONNX or Kaldi",
    option("--format", "of what is written (default model-dir)", choices=[*NEEDED], default="model-dir"),
    path("--nets", "folder of a net, or those of an ensemble's members", nargs="+", metavar="DIR"),
    path("--hmm", "folder made by asr-kd train-hmm", required=False),
    optional(GRAPH),
    optional(COUNTS),
    path("--scales", "scales.json of a system, made by asr-kd decode", required=False),
    option("--acwt", "acoustic scale, in place of --scales", type=float),
    option("--insertion-penalty", "cost of a word, beside --acwt (default 0)", type=float),
    path("--results", "results.json made by asr-kd report, for the model card", required=False),
    option("--system", "whose scores the card shows, with --results (default student)"),
    option("--name", "of the model, for the card (default: that of the folder)"),
    option("--license", "under which the model may be used, for the card"),
    option("--trained-on", "what speech it was trained on, in words, for the card"),
    path("--out", "the model directory, the ONNX file, or the folder of nnet1"),
    config=["combination", "beam", "min_active", "max_active", "prior_floor"],
)
def export(args: argparse.Namespace) -> None:
    """Make a net usable elsewhere.

    model-dir: net, front end, CMVN, priors, graph, words and scales in one directory; asr-kd recognize needs nothing
    else. It can be copied anywhere; its README.md is the model card. Needs --hmm, --graph, --counts, and --scales or
    --acwt.
    onnx: one file from windows of features to log posteriors, of a net or of an ensemble that answers together.
    nnet1: a folder with the net and its feature transform as text, for Kaldi's nnet-forward; with --hmm and --counts
    steps/nnet/decode.sh decodes with it.
    """
    _check_options(args)
    {"model-dir": _export_model_dir, "onnx": _export_onnx, "nnet1": _export_nnet1}[args.format](args)


def _check_options(args: argparse.Namespace) -> None:
    """Raise AsrKdError for an option that the format lacks, and for one that is not for it."""
    given = {key for key in ("hmm", "graph", "counts", "scales", *TAKEN["model-dir"]) if getattr(args, key) is not None}
    if {"scales", "acwt"} <= given:
        raise AsrKdError("give --scales or --acwt, not both")
    for key in NEEDED[args.format]:
        if key not in given and not (key == "scales" and "acwt" in given):
            also = " or --acwt" if key == "scales" else ""
            raise AsrKdError(f"--format {args.format} needs --{key}{also}")
    for key in sorted(given - {*NEEDED[args.format], *TAKEN[args.format]}):
        raise AsrKdError(f"--{key.replace('_', '-')} is not for --format {args.format}")


def _export_onnx(args: argparse.Namespace) -> None:
    from asr_kd.nnet.net_dir import load_net
    from asr_kd.nnet.onnx_graph import export_onnx

    def export() -> None:
        nets = [load_net(folder) for folder in args.nets]
        export_onnx(args.out, nets, args.values["combination"])
        if not nets[0].cmvn.fixed:
            log(f"{args.out}: takes features that are normalised already (cmvn {nets[0].cmvn.mode}), see apply_cmvn.py")

    make(
        args.out,
        export,
        command=args.command_line,
        inputs=file_digest(args.nets),
        combination=args.values["combination"],
        format=args.format,
    )


def _export_nnet1(args: argparse.Namespace) -> None:
    from asr_kd.nnet.net_dir import load_net
    from asr_kd.nnet1_dir import export_nnet1

    if len(args.nets) != 1:
        raise AsrKdError("nnet1 holds one net; distil the ensemble into one (asr-kd distill), and export that")
    make(
        args.out,
        lambda: export_nnet1(args.out, load_net(args.nets[0]), counts=args.counts, hmm=args.hmm, log=log),
        command=args.command_line,
        inputs=file_digest([*args.nets, *(each for each in (args.hmm, args.counts) if each is not None)]),
        format=args.format,
    )


def _export_model_dir(args: argparse.Namespace) -> None:
    from asr_kd.model_card import scores_of
    from asr_kd.model_dir import Scales, export_model

    decoding = resolve(DecodeConfig, args.values)
    acwt, insertion_penalty = resolve_scales(args)
    scales = Scales(
        acwt, insertion_penalty, decoding.beam, decoding.min_active, decoding.prior_floor, decoding.max_active
    )
    scores = scores_of(args.results, args.system or "student") if args.results else None
    about = {"name": args.name or "", "license": args.license or "", "trained_on": args.trained_on or ""}

    make(
        args.out,
        lambda: export_model(
            args.out,
            nets=args.nets,
            hmm=args.hmm,
            graph=args.graph,
            counts=args.counts,
            scales=scales,
            combination=args.values["combination"],
            **about,
            config=args.values,
            scores=scores,
        ),
        command=args.command_line,
        inputs=file_digest([*args.nets, args.hmm, args.graph, args.counts]),
        made=[dataclasses.asdict(scales), *about.values(), scores, args.values],
    )


@command(
    "recognize",
    "print the words of audio files",
    path("--model", "directory made by asr-kd export"),
    path("files", "audio files; the name without its ending becomes the utterance's id", nargs="*", metavar="FILE"),
    option(
        "--list", "file of lines `path` or `utt_id path` (a path with blanks needs an id); - is stdin", default=None
    ),
    path("--data", "Kaldi data directory (wav.scp, segments, utt2spk; no text is needed)", required=False),
    option("--resample", "bring audio of another rate to the model's", action="store_true"),
    option("--channel", "of files with several, from 0", type=int, default=None),
    option("--allow-pipes", "run the commands in the wav.scp of --data", action="store_true"),
    option("--ctm", "print `utt_id 1 start_s duration_s word` lines", action="store_true"),
    option("--device", "cpu (default), cuda or auto", default="cpu"),
)
def recognize(args: argparse.Namespace) -> None:
    """Print `utt_id words` for every file, as soon as it is recognised, from a model directory alone.

    A file that cannot be used is reported on stderr and the others go on; the exit code is then not zero.
    """
    from asr_kd.hmm.beam_search import NoPathError
    from asr_kd.recognizer import Recognizer
    from asr_kd.scoring.transcripts import CtmWord

    recognizer = Recognizer.load(args.model, args.device)
    total, failed = 0, 0
    results = recognizer.recognize_utterances(_utterances(args), resample=args.resample, allow_pipes=args.allow_pipes)
    for utterance, result in results:
        total += 1
        if isinstance(result, NoPathError):
            log(f"warning: {utterance.utt_id}: {result}; counted as no words")
            lines = [] if args.ctm else [utterance.utt_id]
        elif isinstance(result, AsrKdError):
            failed += 1
            log(f"error: {result}")
            continue
        elif args.ctm:
            lines = [str(CtmWord(utterance.utt_id, "1", t.start_s, t.duration_s, t.word)) for t in result.times]
        else:
            lines = [" ".join([utterance.utt_id, *result.words])]
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    if failed:
        raise AsrKdError(f"{failed} of {total} files could not be recognised, as said above")


def _utterances(args: argparse.Namespace) -> Iterable["Utterance"]:
    """What is to be recognised; raises AsrKdError unless exactly one of the three ways to say it is used."""
    from asr_kd.corpus.datadir import read_data_dir

    if sum([bool(args.files), args.list is not None, args.data is not None]) != 1:
        raise AsrKdError("give either audio files, or --list, or --data")
    if args.data is not None:
        return read_data_dir(args.data, need_text=False, allow_pipes=args.allow_pipes)
    if args.list == "-":
        return _named(_list_entries(sys.stdin, "stdin"), args.channel)
    if args.list is not None:
        try:
            lines = Path(args.list).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AsrKdError(f"{args.list}: cannot be read as a list of files ({error})") from error
        return _named(_list_entries(lines, args.list), args.channel)
    return _named(((None, file) for file in args.files), args.channel)


def _list_entries(lines: Iterable[str], source: str) -> Iterator[tuple[str | None, Path]]:
    """Lines `path` or `utt_id path` as (utt_id or None, path); raises AsrKdError where there is none, at the end."""
    number = 0
    for number, line in enumerate(lines, 1):
        fields = line.split(maxsplit=1)
        if not fields:
            raise AsrKdError(f"{source}:{number}: an empty line, where `path` or `utt_id path` was expected")
        yield (fields[0] if len(fields) == 2 else None), Path(fields[-1].rstrip())
    if not number:
        raise AsrKdError(f"{source}: names no file")


def _named(files: Iterable[tuple[str | None, Path]], channel: int | None) -> Iterator["Utterance"]:
    """Each file an utterance by a speaker of its own; raises AsrKdError where two have one id."""
    from asr_kd.corpus.datadir import Recording, Utterance

    file_of: dict[str, Path] = {}
    for utt_id, file in files:
        utt_id = utt_id or "_".join(file.stem.split())
        if file_of.setdefault(utt_id, file) != file:
            raise AsrKdError(f"{file_of[utt_id]} and {file} are both called {utt_id}; give --list `utt_id path` lines")
        yield Utterance(utt_id, utt_id, Recording(utt_id, str(file), channel))
