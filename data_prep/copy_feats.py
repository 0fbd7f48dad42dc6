#!/usr/bin/env python3
"""Copy features between feats.h5 and Kaldi's archives, as copy-feats does.

IN and OUT are each a file ending in .h5, or one of Kaldi's tables: ark:FILE, scp:FILE (offsets and ranges of rows
are understood, commands in pipes are not run), ark,t:FILE for text, ark,scp:FILE.ark,FILE.scp; FILE may be - for
standard input or output, and archives may end in .gz. An archive does not say how its features were made, so
--kind and --sample-frequency must; feats.h5 marks them as foreign.
"""

import argparse
import sys
from pathlib import Path

from asr_kd.choices import FeatsDtype, words
from asr_kd.cli_common import Parser, boolean, log, run_main, share
from asr_kd.corpus.tables import to_text
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import claimed
from asr_kd.store.atomic import write_text
from asr_kd.store.exchange import (
    FeatureSource,
    ForeignFrontEnd,
    source_of_feats,
    source_of_table,
    write_feats,
    write_table_of,
)
from asr_kd.store.feats import FeatsReader
from asr_kd.store.kaldi_compression import COMPRESSION_METHODS
from asr_kd.store.table_names import is_table, parse_wspecifier


def build_parser() -> argparse.ArgumentParser:
    """Kaldi's options under Kaldi's names."""
    parser = Parser(
        prog="copy_feats.py",
        description=__doc__,
        epilog="example: copy_feats.py scp:data/train/feats.scp train.h5 --kind mfcc --sample-frequency 16000 "
        "--utt2spk data/train/utt2spk",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="feats.h5, ark:FILE or scp:FILE")
    parser.add_argument("out", metavar="OUT", help="feats.h5, ark:FILE, ark,t:FILE or ark,scp:FILE.ark,FILE.scp")
    methods = "; ".join(f"{number} {meaning}" for number, meaning in COMPRESSION_METHODS.items())
    parser.add_argument(
        "--compression-method",
        type=int,
        default=0,
        choices=(0, *COMPRESSION_METHODS),
        help=f"of an archive: 0 none; {methods}; default: 0",
    )
    parser.add_argument(
        "--dtype", choices=words(FeatsDtype), help="of the values in feats.h5; default: as in IN, or float32"
    )
    parser.add_argument("--write-utt2spk", type=Path, metavar="FILE", help="write the speakers of the utterances too")
    parser.add_argument(
        "--max-bad-share",
        type=share,
        default=0.0,
        help="share of utterances that may be left out of feats.h5 since they are empty or not finite; default: 0",
    )
    foreign = parser.add_argument_group("what an archive does not say")
    foreign.add_argument("--kind", help="fbank, mfcc or another name; needed from an archive to feats.h5")
    foreign.add_argument("--sample-frequency", type=float, help="in Hz; needed from an archive to feats.h5")
    foreign.add_argument("--frame-length", type=float, default=25.0, help="in ms; default: 25")
    foreign.add_argument("--frame-shift", type=float, default=10.0, help="in ms; default: 10")
    foreign.add_argument("--snip-edges", type=boolean, default=True, help="whole windows only; default: true")
    foreign.add_argument("--utt2spk", type=Path, help="speakers; default: every utterance is a speaker")
    return parser


def open_source(args: argparse.Namespace) -> FeatureSource:
    """Where the features come from; raises AsrKdError if an archive's front end is not given."""
    if not is_table(args.source):
        return source_of_feats(FeatsReader(args.source))
    if not is_table(args.out) and (args.kind is None or args.sample_frequency is None):
        raise AsrKdError(f"{args.source} does not say how its features were made: give --kind and --sample-frequency")
    front_end = ForeignFrontEnd(
        args.kind or "unknown", args.sample_frequency or 1, args.frame_length, args.frame_shift, args.snip_edges
    )
    return source_of_table(args.source, front_end, args.utt2spk)


def main(args: argparse.Namespace) -> None:
    """Copy, and say how many utterances there were."""
    outputs = parse_wspecifier(args.out).files if is_table(args.out) else []
    if args.write_utt2spk:
        outputs.append(args.write_utt2spk)
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise AsrKdError(f"{args.write_utt2spk}: is OUT, too; write the speakers to another file")
    with claimed(outputs, args.command_line):
        copy(args)


def copy(args: argparse.Namespace) -> None:
    source, speakers = open_source(args), {}

    def noting_speakers():
        for utt_id, spk_id, feats in source.utts:
            speakers[utt_id] = spk_id
            yield utt_id, spk_id, feats

    noted = FeatureSource(source.name, source.kind, source.options, noting_speakers(), source.dtype)
    if not is_table(args.out):
        if args.compression_method:
            raise AsrKdError("--compression-method is for archives; feats.h5 is stored as float32 or float16 (--dtype)")
        num_utts = write_feats(args.out, noted, dtype=args.dtype, max_bad_share=args.max_bad_share, log=log)
    else:
        num_utts = write_table_of(args.out, noted, compression_method=args.compression_method, log=log)
    if args.write_utt2spk:
        write_text(args.write_utt2spk, to_text(speakers))
    log(f"{args.out}: {num_utts} utterances")


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
