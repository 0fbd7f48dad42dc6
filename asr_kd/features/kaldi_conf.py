"""Kaldi's files of options: fbank.conf and mfcc.conf, and the cmvn_opts and delta_opts that its scripts leave."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.features.options import OPTIONS_OF_KIND, FrontEndOptions

# Words in quotes are taken apart in the square of their length.
MAX_LETTERS = 1 << 14
# Kaldi's defaults where ours differ.
_KALDI_DEFAULTS = {"fbank": {"num_mel_bins": 23}, "mfcc": {}}
# How Kaldi's programs take them (src/util/parse-options.cc).
_TRUE, _FALSE = ("true", "t", "1", ""), ("false", "f", "0")
# What does not change the features, or, dither, not beyond chance.
_IGNORED = {
    *("dither", "allow-downsample", "allow-upsample", "max-feature-vectors", "min-duration", "channel", "verbose"),
    *("output-format", "write-utt2dur", "config", "debug-mel", "utt2spk"),
}


def read_options(path: str | Path) -> dict[str, tuple[str, int]]:
    """The options of a file, --name=value or --name, several a line, # begins a comment: (value, line) by name.

    Raises AsrKdError, naming file and line, for anything else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read as options of Kaldi's ({error})") from error
    if len(text) > MAX_LETTERS:
        raise AsrKdError(f"{path}: has {len(text)} letters, and is no file of some options")
    found: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise AsrKdError(f"{path}:{number}: has quotes without an end ({error})") from error
        for word in words:
            name, equals, value = word.removeprefix("--").partition("=")
            if not word.startswith("--") or not name:
                raise AsrKdError(f"{path}:{number}: {word!r} is not of the form --name=value")
            found[name.replace("_", "-")] = (value if equals else "true", number)
    return found


def kind_of_conf(path: str | Path) -> str | None:
    """fbank or mfcc, as the name of the file says; None where it says neither."""
    return next((kind for kind in OPTIONS_OF_KIND if kind in Path(path).name), None)


def read_front_end(path: str | Path, kind: str) -> FrontEndOptions:
    """The front end of a fbank.conf or mfcc.conf, with Kaldi's defaults for what it leaves out, but without dither.

    Raises AsrKdError, naming file and line, for an option that we do not have and a value that does not fit.
    """
    if kind not in OPTIONS_OF_KIND:
        raise AsrKdError(
            f"{path}: features of kind {kind!r} have no options here, only {' and '.join(OPTIONS_OF_KIND)}"
        )
    options = OPTIONS_OF_KIND[kind]
    types = {field.name.replace("_", "-"): field.type for field in dataclasses.fields(options)}
    values = dict(_KALDI_DEFAULTS[kind])
    for name, (value, number) in read_options(path).items():
        if name in _IGNORED:
            continue
        if name not in types:
            raise AsrKdError(f"{path}:{number}: --{name} is no option of {kind} features that are made here")
        values[name.replace("-", "_")] = _value(types[name], value, f"{path}:{number}: --{name}")
    try:
        return options(**values)
    except AsrKdError as error:
        raise AsrKdError(f"{path}: {error}") from None


def _value(kind: type, text: str, where: str) -> object:
    if kind is bool:
        if (lower := text.lower()) not in (*_TRUE, *_FALSE):
            raise AsrKdError(f"{where} is {text!r}, neither true nor false")
        return lower in _TRUE
    try:
        return kind(text)
    except ValueError:
        raise AsrKdError(f"{where} is {text!r}, no value of type {kind.__name__}") from None


@dataclasses.dataclass(frozen=True)
class CmvnOptions:
    """Options of apply-cmvn; skip_dims: columns that stay as they are."""

    norm_means: bool = True
    norm_vars: bool = False
    skip_dims: tuple[int, ...] = ()


def read_cmvn_options(path: str | Path | None) -> CmvnOptions:
    """Those of a cmvn_opts; Kaldi's defaults for None. Raises AsrKdError for options that apply-cmvn lacks."""
    if path is None:
        return CmvnOptions()
    found = read_options(path)
    values = _values(path, found, {"norm-means": bool, "norm-vars": bool, "skip-dims": str})
    try:
        skipped = tuple(int(dim) for dim in values.pop("skip_dims", "").split(":") if dim)
        if min(skipped, default=0) < 0:
            raise ValueError(f"{min(skipped)} is no column")
    except ValueError as error:
        raise AsrKdError(f"{path}: --skip-dims is not a list such as 13:14:15 ({error})") from error
    options = CmvnOptions(**values, skip_dims=skipped)
    if options.norm_vars and not options.norm_means:
        raise AsrKdError(f"{path}: asks for --norm-vars=true without --norm-means=true, which apply-cmvn refuses")
    return options


def read_delta_options(path: str | Path | None) -> tuple[int, int]:
    """Order and window of a delta_opts; Kaldi's defaults, 2 and 2, for what it leaves out, or for None.

    Raises AsrKdError for options that add-deltas lacks, and values that it refuses.
    """
    if path is None:
        return 2, 2
    values = _values(path, read_options(path), {"delta-order": int, "delta-window": int})
    order, window = values.get("delta_order", 2), values.get("delta_window", 2)
    if order < 0 or window < 1:
        raise AsrKdError(f"{path}: asks for derivatives up to order {order} over a window of {window}, which are none")
    return order, window


def _values(path: str | Path, found: Mapping[str, tuple[str, int]], types: Mapping[str, type]) -> dict:
    values = {}
    for name, (value, number) in found.items():
        if name not in types:
            raise AsrKdError(f"{path}:{number}: --{name} is not one of --{', --'.join(types)}")
        values[name.replace("-", "_")] = _value(types[name], value, f"{path}:{number}: --{name}")
    return values
