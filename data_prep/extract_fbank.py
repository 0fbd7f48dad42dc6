#!/usr/bin/env python3
"""Extract filterbanks (or MFCC) of recordings into one HDF5 file or a Kaldi archive, equal to Kaldi's own.

The recordings are those of a Kaldi data directory, audio files, or a list of them. Options of the front end have the
names and, unless said otherwise, the defaults of compute-fbank-feats and compute-mfcc-feats. Dither is 0 where Kaldi's
default is 1, so that the same audio always gives the same features. An HDF5 file is made anew only if its recordings
or options changed; a run that was cut off is continued by the same command. Started by torchrun, each process makes its
share of an HDF5 file.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from asr_kd.choices import FeatsDtype, words
from asr_kd.cli_common import Parser, at_least_one, boolean, run_main, share
from asr_kd.corpus.datadir import Utterance, read_data_dir
from asr_kd.errors import AsrKdError
from asr_kd.features.extract import extract, extract_to_archive
from asr_kd.features.options import OPTIONS_OF_KIND, FrontEndOptions
from asr_kd.features.wav_list import read_wav_list, utterances_of_files
from asr_kd.runinfo import claimed
from asr_kd.store.kaldi_compression import COMPRESSION_METHODS
from asr_kd.store.table_names import is_table, parse_wspecifier

HELP = {
    "sample_frequency": "sample rate in Hz; recordings of another rate are refused unless --resample is given",
    "frame_length": "length of a window in ms",
    "frame_shift": "time between two frames in ms",
    "snip_edges": "true: only whole windows; false: one frame a shift, the signal mirrored at its ends",
    "remove_dc_offset": "subtract the mean from each window",
    "preemphasis_coefficient": "weight of the preceding sample",
    "window_type": "povey, hamming, hanning, sine, rectangular or blackman",
    "blackman_coeff": "of the Blackman window",
    "round_to_power_of_two": "pad the window with zeros to a power of two",
    "num_mel_bins": "mel filters",
    "low_freq": "lower edge of the filters in Hz",
    "high_freq": "upper edge of the filters in Hz; if not positive, counted down from the Nyquist frequency",
    "use_energy": "put the log energy before the filterbanks, or in the place of C0",
    "htk_compat": "put the energy or C0 last, as HTK does",
    "raw_energy": "take the energy before pre-emphasis and window",
    "energy_floor": "floor of the energy, absolute",
    "use_log_fbank": "logarithm of the filterbanks",
    "use_power": "power spectrum rather than magnitude",
    "num_ceps": "cepstra, C0 included",
    "cepstral_lifter": "scale of the higher cepstra; 0 for none",
    "vtln_warp": "warp factor of the frequency axis, of all recordings alike",
    "vtln_low": "lower knee of the warp in Hz",
    "vtln_high": "upper knee of the warp in Hz; if not positive, counted down from the Nyquist frequency",
    "subtract_mean": "subtract the mean of each utterance from its features",
    "delta_order": "derivatives to append, as add-deltas does; 2 with --add-deltas, 0 without",
    "delta_window": "frames on either side that a derivative is taken over",
}


def _zero(text: str) -> float:
    if float(text) != 0.0:
        raise argparse.ArgumentTypeError("only 0 is supported: features do not depend on chance here")
    return 0.0


def build_parser() -> argparse.ArgumentParser:
    """All options of the front end, each under Kaldi's name."""
    parser = Parser(
        prog="extract_fbank.py",
        description=__doc__,
        epilog="example: extract_fbank.py --data exp/fsdd/data/train --out exp/fsdd/feats/train.h5 "
        "--sample-frequency 8000 --nj 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(by_torchrun=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data", type=Path, nargs="+", metavar="DIR", help="Kaldi data directory, or several with an --out for each"
    )
    source.add_argument(
        "--wav",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="audio files; a file's name without its last suffix is its id",
    )
    source.add_argument(
        "--wav-list",
        metavar="FILE",
        help="list of audio files, a line each: ID PATH, or PATH alone, whose file name without its last suffix is the "
        "id; a line that names a file as a whole is a PATH, blanks and all; - is stdin",
    )
    parser.add_argument(
        "--out",
        required=True,
        nargs="+",
        help="feats.h5 to write, or a Kaldi table: FILE.ark, ark:FILE, ark,t:FILE (text) or ark,scp:ARK,SCP",
    )
    parser.add_argument("--kind", choices=sorted(OPTIONS_OF_KIND), default="fbank", help="default: fbank")
    parser.add_argument(
        "--dtype", choices=words(FeatsDtype), default="float32", help="of a stored value; default: float32"
    )
    parser.add_argument(
        "--nj",
        type=at_least_one,
        default=1,
        help="processes; their shards (OUT.shards) become one file at the end, but beyond 1 GiB they stay; default: 1",
    )
    parser.add_argument(
        "--max-bad-share",
        type=share,
        default=0.01,
        help="utterances that cannot be used are listed and skipped up to this share of all; default: 0.01",
    )
    parser.add_argument(
        "--append",
        action="store_true",
        help="add the recordings to those of OUT, which must have been made with the same options",
    )
    parser.add_argument("--resample", action="store_true", help="bring audio of another rate to --sample-frequency")
    parser.add_argument(
        "--channel", type=int, help="channel to take, from 0; default: the only one, or what the data directory says"
    )
    parser.add_argument("--allow-pipes", action="store_true", help="run the commands in wav.scp; trust them first")
    parser.add_argument(
        "--accept-truncated",
        action="store_true",
        help="use what is there of files that hold less audio than their headers declare",
    )
    parser.add_argument(
        "--compression-method",
        type=int,
        default=0,
        choices=(0, *COMPRESSION_METHODS),
        help="of a Kaldi table, as copy_feats.py --help tells; default: 0, not compressed",
    )
    front_end = parser.add_argument_group("front end, as in Kaldi")
    front_end.add_argument("--add-deltas", action="store_true", help="append first and second derivatives")
    front_end.add_argument("--dither", type=_zero, default=0.0, help="0 and nothing else (Kaldi's default is 1)")
    for name in HELP:
        _add_option(front_end, name)
    return parser


def _add_option(group: argparse._ArgumentGroup, name: str) -> None:
    """One option of the front end; left out, it is None, so that the kind of features decides its default."""
    fields = {
        kind: field
        for kind, options in OPTIONS_OF_KIND.items()
        for field in dataclasses.fields(options)
        if field.name == name
    }
    field = next(iter(fields.values()))
    defaults = {kind: str(field.default).lower() for kind, field in fields.items()}
    if len(set(defaults.values())) == 1 and len(defaults) == len(OPTIONS_OF_KIND):
        default = defaults.popitem()[1]
    else:
        default = ", ".join(f"{value} for {kind}" for kind, value in defaults.items())
    group.add_argument(
        "--" + name.replace("_", "-"),
        type=boolean if field.type is bool else field.type,
        metavar="true|false" if field.type is bool else field.type.__name__.upper(),
        help=f"{HELP[name]}; default: {default}",
    )


def front_end_options(args: argparse.Namespace) -> FrontEndOptions:
    """Options of the chosen kind; raises AsrKdError for one that belongs to the other kind."""
    options_type = OPTIONS_OF_KIND[args.kind]
    known = {field.name for field in dataclasses.fields(options_type)}
    given = {name: getattr(args, name) for name in HELP if getattr(args, name) is not None}
    if args.add_deltas:
        given.setdefault("delta_order", 2)
    if foreign := sorted(set(given) - known):
        raise AsrKdError(f"--{foreign[0].replace('_', '-')} is not an option of {args.kind}")
    return options_type(**given)


def utterances_of(args: argparse.Namespace, data: Path | None) -> list[Utterance]:
    """What to extract, of one of --data; raises AsrKdError for a data directory or list that cannot be used."""
    if data is not None:
        utterances = read_data_dir(data, need_text=False, allow_pipes=args.allow_pipes)
    elif args.wav is not None:
        utterances = utterances_of_files(args.wav)
    else:
        utterances = read_wav_list(args.wav_list, allow_pipes=args.allow_pipes)
    if args.channel is None:
        return utterances
    return [
        dataclasses.replace(
            utt, recording=dataclasses.replace(utt.recording, channel=args.channel, may_be_separated=False)
        )
        for utt in utterances
    ]


def main(args: argparse.Namespace) -> None:
    """Read what to extract, extract what is not up to date."""
    folders = args.data or [None]
    if len(folders) != len(args.out) or len({os.path.abspath(out) for out in args.out}) < len(args.out):
        raise AsrKdError(f"--out {' '.join(args.out)}: for {len(folders)} inputs; name one for each")
    options = front_end_options(args)
    for data, out in zip(folders, args.out, strict=True):
        _extract_one(args, data, out, options)


def _extract_one(args: argparse.Namespace, data: Path | None, out: str, options: FrontEndOptions) -> None:
    how = {"dtype": args.dtype, "nj": args.nj, "max_bad_share": args.max_bad_share}
    how |= {"resample": args.resample, "allow_pipes": args.allow_pipes}
    how |= {"accept_truncated": args.accept_truncated, "log": args.world.log}
    to_archive = is_table(out)
    utterances = utterances_of(args, data)
    if to_archive:
        if args.world.size > 1:
            raise AsrKdError(f"{out}: torchrun's processes share the work of HDF5 files, not of Kaldi archives")
        if args.append:
            raise AsrKdError("--append is for HDF5 files; Kaldi archives are concatenated with cat")
        with claimed(parse_wspecifier(out).files, args.command_line):
            extract_to_archive(utterances, out, options, compression_method=args.compression_method, **how)
    elif args.compression_method:
        raise AsrKdError("--compression-method is for Kaldi archives; for HDF5 take --dtype float16")
    else:
        extract(utterances, out, options, append=args.append, world=args.world, **how)


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
