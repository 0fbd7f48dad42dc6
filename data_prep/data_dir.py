#!/usr/bin/env python3
"""Kaldi data directories: validate, fix, subset, split, combine, perturb-speed.

The rules are Kaldi's own (utils/validate_data_dir.sh and its siblings); each failure exits with status 1 and names
file and line. Sound is named by wav.scp; commands in it (pipes) are run only with --allow-pipes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from asr_kd.cli_common import Parser, at_least_one, log, run_main, seed_number, share
from asr_kd.corpus import subsets
from asr_kd.corpus.datadir import check_disjoint, find_problems, load_data_dir, read_data_dir, to_utterances
from asr_kd.corpus.fix import fix_data_dir
from asr_kd.corpus.lexicon import known_transcripts, read_lexicon
from asr_kd.corpus.tables import DataDir
from asr_kd.errors import AsrKdError
from asr_kd.features.audio import duration_s
from asr_kd.features.speed import perturb_speed
from asr_kd.runinfo import claimed

# Of the problems that validate finds; what is wrong with every line of a file is known after some.
MAX_SHOWN = 50


def _factors(text: str) -> list[float]:
    try:
        return [float(factor) for factor in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0.9,1,1.1") from error


def build_parser() -> argparse.ArgumentParser:
    """The subcommands and their options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="data_dir.py", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, add_options in (
        ("validate", validate, _add_validate),
        ("fix", fix, _add_fix),
        ("subset", subset, _add_subset),
        ("split", split, _add_split),
        ("combine", combine, _add_combine),
        ("perturb-speed", perturb, _add_perturb),
    ):
        text = function.__doc__
        command = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=raw)
        command.set_defaults(function=function)
        add_options(command)
    return parser


def _add_validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="data directories (wav.scp, utt2spk, …)")
    parser.add_argument("--no-text", action="store_true", help="do without transcripts")
    parser.add_argument("--allow-pipes", action="store_true", help="commands in wav.scp are no error")
    parser.add_argument("--lexicon", type=Path, help="check that this lexicon.txt has every word")
    parser.add_argument("--by-speaker", action="store_true", help="the directories must not share a speaker either")


def validate(args: argparse.Namespace) -> None:
    """Check directories by Kaldi's rules, and that several share no utterance and no recording.

    Shows every problem up to fifty, not just the first. Perturbed copies count as their originals.
    """
    lexicon = read_lexicon(args.lexicon) if args.lexicon else None
    if len({path.resolve() for path in args.dirs}) < len(args.dirs):
        raise AsrKdError(f"{', '.join(map(str, args.dirs))}: a directory is given twice, it shares all with itself")
    problems = [
        str(problem)
        for path in args.dirs
        for problem in find_problems(path, need_text=not args.no_text, allow_pipes=args.allow_pipes)[1]
    ]
    if len(problems) > MAX_SHOWN:
        problems[MAX_SHOWN:] = [f"and {len(problems) - MAX_SHOWN} more"]
    if problems:
        for problem in problems[:-1]:
            log(f"error: {problem}")
        raise AsrKdError(problems[-1])
    dirs = {}
    for path in args.dirs:
        dirs[str(path)] = utterances = read_data_dir(path, need_text=not args.no_text)
        if lexicon is not None:
            spoken = [(utt.utt_id, utt.words or ()) for utt in utterances]
            known_transcripts(lexicon, spoken, path / "text", max_oov_share=0.0, log=log)
        print(f"{path}: {len(utterances)} utterances by {len({utt.spk_id for utt in utterances})} speakers")
    check_disjoint(dirs, by_speaker=args.by_speaker)


def _add_fix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="data directory, changed in place")


def fix(args: argparse.Namespace) -> None:
    """Sort a directory, bring its files to what all of them have, and tell what was dropped.

    What the files were before is kept in DIR/.backup. Fails, and changes nothing, if the result would not be valid.
    """
    for message in fix_data_dir(args.dir):
        print(message)
    _report(args.dir)


def _add_subset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="data directory")
    parser.add_argument("out", type=Path, metavar="OUT", help="data directory to write")
    choice = parser.add_mutually_exclusive_group(required=True)
    for name, text in (
        ("--first", "the first N utterances"),
        ("--last", "the last N utterances"),
        ("--shortest", "the shortest N utterances (by utt2dur, segments or the recordings' headers)"),
        ("--random", "N utterances at random"),
        ("--speakers", "whole speakers at random, until there are N utterances"),
        ("--per-speaker", "at most N utterances of each speaker, spread over what there is"),
    ):
        choice.add_argument(name, type=at_least_one, metavar="N", help=text)
    choice.add_argument("--utt-list", type=Path, metavar="FILE", help="the utterances whose ids start FILE's lines")
    choice.add_argument("--spk-list", type=Path, metavar="FILE", help="the speakers whose ids start FILE's lines")
    parser.add_argument("--seed", type=seed_number, default=0, help="of --random and --speakers; default: 0")
    parser.add_argument("--allow-pipes", action="store_true", help="run commands in wav.scp to find the --shortest")


def subset(args: argparse.Namespace) -> None:
    """Write the data directory of some of the utterances."""
    data = load_data_dir(args.source, need_text=False)
    with claimed([args.out], args.command_line):
        subsets.write_selection(data, _choose(args, data), args.out)
    _report(args.out)


def _choose(args: argparse.Namespace, data: DataDir) -> list[str]:
    if args.utt_list or args.spk_list:
        return subsets.listed(data, args.utt_list or args.spk_list, by_speaker=args.spk_list is not None)
    if args.per_speaker:
        return subsets.per_speaker(data, args.per_speaker)
    utt_ids, rng = sorted(data.rows("utt2spk")), np.random.default_rng(args.seed)
    num = args.first or args.last or args.shortest or args.random or args.speakers
    if num > len(utt_ids):
        raise AsrKdError(f"{args.source}: {num} utterances were asked for, there are {len(utt_ids)}")
    if args.speakers:
        return subsets.whole_speakers(data, num, rng)
    if args.random:
        return sorted(str(utt_id) for utt_id in rng.choice(utt_ids, num, replace=False))
    if args.shortest:
        known = {utt_id: float(value) for utt_id, value in data.rows("utt2dur").items()}
        durations = known or {u.utt_id: duration_s(u, allow_pipes=args.allow_pipes) for u in to_utterances(data)}
        return sorted(utt_ids, key=lambda utt_id: (durations[utt_id], utt_id))[:num]
    return utt_ids[:num] if args.first else utt_ids[-num:]


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="DIR", help="data directory")
    parser.add_argument("--num", type=at_least_one, required=True, metavar="N", help="parts to make")
    parser.add_argument(
        "--by", choices=("speaker", "utterance"), default="speaker", help="what stays whole; default: speaker"
    )


def split(args: argparse.Namespace) -> None:
    """Write N parts of about the same number of utterances to DIR/split<N>/<i> (by utterance: DIR/split<N>utt/<i>).

    Perturbed copies go where their originals go.
    """
    data = load_data_dir(args.dir, need_text=False)
    by_utterance = args.by == "utterance"
    with claimed([subsets.folder_of_parts(data, args.num, by_utterance)], args.command_line):
        out = subsets.split(data, args.num, by_utterance)
    for i in range(1, args.num + 1):
        _report(out / str(i))


def _add_combine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="data directory to write")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="data directories")


def combine(args: argparse.Namespace) -> None:
    """Write one data directory of several; an utterance in two of them is an error."""
    with claimed([args.out], args.command_line):
        subsets.combine([load_data_dir(path, need_text=False) for path in args.sources], args.out)
    _report(args.out)


def _add_perturb(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="data directory")
    parser.add_argument("out", type=Path, metavar="OUT", help="data directory to write, with the recordings in OUT/wav")
    parser.add_argument(
        "--factors",
        type=_factors,
        default=[0.9, 1.0, 1.1],
        help="speeds, separated by commas; 1 stands for the originals; default: 0.9,1,1.1",
    )
    parser.add_argument("--nj", type=at_least_one, default=1, help="processes; default: 1")
    parser.add_argument("--allow-pipes", action="store_true", help="run commands in wav.scp")
    parser.add_argument(
        "--max-bad-share",
        type=share,
        default=0.01,
        help="recordings that cannot be read are listed and left out up to this share of all; default: 0.01",
    )


def perturb(args: argparse.Namespace) -> None:
    """Write copies at other speeds, named sp0.9-…, with utt2uniq telling their originals.

    The recordings are resampled and written as wav files, so that features are made of them without running
    commands. Started again after a kill, it goes on where it was.
    """
    data = load_data_dir(args.source, need_text=False)
    perturb_speed(
        data,
        args.out,
        args.factors,
        nj=args.nj,
        allow_pipes=args.allow_pipes,
        max_bad_share=args.max_bad_share,
        log=log,
    )
    _report(args.out)


def _report(path: Path) -> None:
    utterances = read_data_dir(path, need_text=False)
    print(f"{path}: {len(utterances)} utterances by {len({utt.spk_id for utt in utterances})} speakers")


def main(args: argparse.Namespace) -> None:
    """Run the subcommand."""
    args.function(args)


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
