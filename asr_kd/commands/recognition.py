"""`asr-kd export`, `asr-kd recognize`: a directory that holds all it takes, and words from it."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from asr_kd.cli_common import log
from asr_kd.commands.command import command, one_of, option, path
from asr_kd.commands.options import COUNTS, GRAPH
from asr_kd.config import DecodeConfig, resolve
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import file_digest, make
from asr_kd.store.parsing import parse_json

if TYPE_CHECKING:
    from asr_kd.corpus.datadir import Utterance


@command(
    "export",
    "make a directory to recognise with",
    option("--format", "of what is written (default model-dir)", choices=["model-dir"], default="model-dir"),
    path("--nets", "folder of a net, or those of an ensemble's members", nargs="+", metavar="DIR"),
    path("--hmm", "folder made by asr-kd train-hmm"),
    GRAPH,
    COUNTS,
    one_of(
        path("--scales", "scales.json of a system, made by asr-kd decode"),
        option("--acwt", "acoustic scale", type=float),
    ),
    option("--insertion-penalty", "cost of a word, beside --acwt (default 0)", type=float),
    path("--results", "results.json made by asr-kd report, for the model card", required=False),
    option("--system", "whose scores the card shows, with --results (default student)", default="student"),
    option("--name", "of the model, for the card (default: that of the folder)", default=""),
    option("--license", "under which the model may be used, for the card", default=""),
    option("--trained-on", "what speech it was trained on, in words, for the card", default=""),
    path("--out", "the model directory"),
    config=["combination", "beam", "min_active", "prior_floor"],
)
def export(args: argparse.Namespace) -> None:
    """Collect net, front end, CMVN, priors, graph, words and scales in one directory.

    asr-kd recognize needs nothing else. The directory can be copied anywhere; its README.md is the model card.
    """
    from asr_kd.model_card import scores_of
    from asr_kd.model_dir import Scales, export_model

    decoding = resolve(DecodeConfig, args.values)
    if args.scales:
        if args.insertion_penalty is not None:
            raise AsrKdError("--insertion-penalty goes with --acwt; --scales holds one already")
        acwt, insertion_penalty = _read_scales(args.scales)
    else:
        acwt, insertion_penalty = args.acwt, args.insertion_penalty or 0.0
    scales = Scales(acwt, insertion_penalty, decoding.beam, decoding.min_active, decoding.prior_floor)
    scores = scores_of(args.results, args.system) if args.results else None

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
            name=args.name,
            license=args.license,
            trained_on=args.trained_on,
            config=args.values,
            scores=scores,
        ),
        command=args.command_line,
        inputs=file_digest([*args.nets, args.hmm, args.graph, args.counts]),
        made=[dataclasses.asdict(scales), args.name, args.license, args.trained_on, scores, args.values],
    )


def _read_scales(file: Path) -> tuple[float, float]:
    """Acoustic scale and insertion penalty; raises AsrKdError for what asr-kd decode did not write."""
    try:
        contents = parse_json(file.read_text(encoding="utf-8"))
        return float(contents["acwt"]), float(contents["insertion_penalty"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AsrKdError(f"{file}: not a scales.json made by asr-kd decode ({error!r})") from error


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
    from asr_kd.hmm.decode import NoPathError
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
    """Lines `path` or `utt_id path` as (utt_id or None, path)."""
    for number, line in enumerate(lines, 1):
        fields = line.split(maxsplit=1)
        if not fields:
            raise AsrKdError(f"{source}:{number}: an empty line, where `path` or `utt_id path` was expected")
        yield (fields[0] if len(fields) == 2 else None), Path(fields[-1].rstrip())


def _named(files: Iterable[tuple[str | None, Path]], channel: int | None) -> Iterator["Utterance"]:
    """Each file an utterance by a speaker of its own; raises AsrKdError where two have one id."""
    from asr_kd.corpus.datadir import Recording, Utterance

    file_of: dict[str, Path] = {}
    for utt_id, file in files:
        utt_id = utt_id or "_".join(file.stem.split())
        if file_of.setdefault(utt_id, file) != file:
            raise AsrKdError(f"{file_of[utt_id]} and {file} are both called {utt_id}; give --list `utt_id path` lines")
        yield Utterance(utt_id, utt_id, Recording(utt_id, str(file), channel))
