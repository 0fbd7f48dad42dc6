#!/usr/bin/env python3
"""Normalise the mean (and variance) of features, as Kaldi's compute-cmvn-stats, apply-cmvn and apply-cmvn-sliding.

feats.h5 keeps what was extracted and its statistics beside it, and training normalises as it reads; this is for
whoever wants normalised features themselves. OUT is a file ending in .h5, or one of Kaldi's tables (ark:FILE,
ark,t:FILE, ark,scp:FILE.ark,FILE.scp). With --stats the statistics are those of another file: those of the training
set for a test set, say.
"""

import argparse
import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from asr_kd.cli_common import Parser, boolean, log, run_main
from asr_kd.errors import AsrKdError
from asr_kd.features import cmvn
from asr_kd.runinfo import claimed
from asr_kd.store.exchange import FeatureSource, source_of_feats, write_feats, write_table_of
from asr_kd.store.feats import FeatsReader
from asr_kd.store.kaldi_ark import read_matrices, write_matrices
from asr_kd.store.kaldi_compression import COMPRESSION_METHODS
from asr_kd.store.table_names import is_table, parse_wspecifier

GLOBAL = "global"
MODES = (GLOBAL, "speaker", "utterance", "sliding")


def build_parser() -> argparse.ArgumentParser:
    """Kaldi's options under Kaldi's names."""
    parser = Parser(
        prog="apply_cmvn.py",
        description=__doc__,
        epilog="example: apply_cmvn.py train.h5 train_norm.h5 --cmvn speaker --norm-vars true",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("feats", metavar="IN", help="feats.h5 (copy_feats.py makes it of an archive)")
    parser.add_argument("out", metavar="OUT", help="feats.h5, ark:FILE, ark,t:FILE or ark,scp:FILE.ark,FILE.scp")
    parser.add_argument("--cmvn", choices=MODES, default="utterance", help="over what; default: utterance")
    parser.add_argument("--norm-vars", type=boolean, default=False, help="divide by the deviation too; default: false")
    parser.add_argument(
        "--stats",
        metavar="FILE",
        help="take the statistics from this feats.h5, or from ark:FILE or scp:FILE with Kaldi's of each speaker or "
        f"utterance (for all utterances: one entry, of any name); default: from IN; not with {MODES[-1]}",
    )
    parser.add_argument("--write-stats", metavar="ark:FILE", help="write the statistics in Kaldi's form")
    parser.add_argument(
        "--compression-method", type=int, default=0, choices=(0, *COMPRESSION_METHODS), help="of an archive; default: 0"
    )
    sliding = parser.add_argument_group("sliding window")
    sliding.add_argument("--cmn-window", type=int, default=600, help="in frames; default: 600")
    sliding.add_argument("--min-cmn-window", type=int, default=100, help="in frames, at the start; default: 100")
    sliding.add_argument("--center", type=boolean, default=False, help="around the frame, not before; default: false")
    return parser


def _groups(reader: FeatsReader, mode: str) -> list[str]:
    """What each utterance shares its statistics with."""
    if mode == GLOBAL:
        return [GLOBAL] * reader.layout.num_utts
    return list(reader.spk_ids if mode == "speaker" else reader.layout.utt_ids)


def load_stats(stats: str, mode: str) -> dict[str, np.ndarray]:
    """Kaldi's statistics of each group, from feats.h5 or a table; raises AsrKdError for what holds none."""
    if not is_table(stats):
        reader = FeatsReader(stats)
        return cmvn.pool(reader.cmvn_stats, _groups(reader, mode))
    found = dict(read_matrices(stats, np.float64))
    if mode == GLOBAL and len(found) != 1:
        raise AsrKdError(f"{stats}: holds {len(found)} statistics, but those of the whole set are one")
    return {GLOBAL: next(iter(found.values()))} if mode == GLOBAL else found


def normalised(source: FeatureSource, stats_from: str, stats: dict[str, np.ndarray], args: argparse.Namespace):
    """The utterances of a source with mean, and perhaps variance, removed."""
    for utt_id, spk_id, feats in source.utts:
        group = {GLOBAL: GLOBAL, "speaker": spk_id, "utterance": utt_id}.get(args.cmvn)
        if args.cmvn == "sliding":
            feats = cmvn.sliding_window_cmvn(
                feats,
                cmn_window=args.cmn_window,
                min_cmn_window=args.min_cmn_window,
                center=args.center,
                norm_vars=args.norm_vars,
            )
        elif group not in stats:
            raise AsrKdError(f"{stats_from}: has no statistics of {args.cmvn} {group!r}")
        else:
            try:
                feats = cmvn.apply_cmvn(feats, stats[group], norm_vars=args.norm_vars)
            except AsrKdError as error:
                raise AsrKdError(f"{stats_from}: statistics of {group!r} do not fit {utt_id}: {error}") from error
        yield utt_id, spk_id, feats


def _settings(args: argparse.Namespace) -> dict:
    settings = {"over": args.cmvn, "norm_vars": args.norm_vars}
    if args.cmvn == "sliding":
        settings |= {"cmn_window": args.cmn_window, "min_cmn_window": args.min_cmn_window, "center": args.center}
    return settings


def _is_up_to_date(out: str, digest: str) -> bool:
    try:
        return not is_table(out) and FeatsReader(out).attrs["inputs_digest"] == digest
    except AsrKdError:
        return False


def _check_names(feats: str, out: str) -> None:
    if is_table(feats):
        raise AsrKdError(
            f"{feats}: does not say how its features were made, which is kept with what is normalised; "
            "make feats.h5 of it with copy_feats.py, and give that"
        )
    written = parse_wspecifier(out).files if is_table(out) else [Path(out)]
    if Path(feats).resolve() in [path.resolve() for path in written]:
        raise AsrKdError(f"{feats}: is IN and OUT at once, and would be lost; give OUT another name")


def main(args: argparse.Namespace) -> None:
    """Normalise; a feats.h5 that was made from the same features and statistics is left as it is."""
    if args.cmvn == "sliding" and (args.stats or args.write_stats):
        raise AsrKdError("a sliding window has no statistics to read (--stats) or to write (--write-stats)")
    _check_names(args.feats, args.out)
    written = [parse_wspecifier(each).files for each in (args.out, args.write_stats) if each and is_table(each)]
    with claimed(itertools.chain(*written), args.command_line):
        normalise(args)


def normalise(args: argparse.Namespace) -> None:
    reader = FeatsReader(args.feats)
    stats_from = args.stats or args.feats
    stats = {} if args.cmvn == "sliding" else load_stats(stats_from, args.cmvn)
    if args.write_stats:
        write_matrices(args.write_stats, sorted(stats.items()))
    hashed = hashlib.sha256(json.dumps([reader.content_digest, _settings(args)]).encode())
    for group in sorted(stats):
        hashed.update(group.encode() + stats[group].tobytes())
    if _is_up_to_date(args.out, hashed.hexdigest()):
        log(f"{args.out}: up to date")
        return
    source = source_of_feats(reader)
    result = FeatureSource(
        source.name,
        source.kind,
        source.options.with_processing("cmvn", _settings(args)),
        normalised(source, stats_from, stats, args),
        source.dtype,
    )
    if not is_table(args.out):
        num_utts = write_feats(args.out, result, inputs_digest=hashed.hexdigest(), log=log)
    else:
        num_utts = write_table_of(args.out, result, compression_method=args.compression_method, log=log)
    log(f"{args.out}: {num_utts} utterances")


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
