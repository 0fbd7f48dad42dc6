"""What a line of each file of a Kaldi data directory may hold.

What Kaldi's utils/validate_data_dir.sh and validate_text.pl refuse is refused here, and so are empty values and
whatever is not UTF-8. Each check raises ValueError that says what is wrong; the caller knows the file and the line.
"""

import re
from collections.abc import Callable, Mapping

# Kaldi numbers the channels of a file A and B; it takes 1 for A, though it says that one should not write it.
CHANNELS = {"A": 0, "B": 1, "1": 0}
_NOT_WORDS = {"<s>", "</s>", "#0"}  # language models and decoding graphs give these a meaning of their own
_BLANKS = re.compile(r"[ \t]+")


def split_blanks(value: str) -> list[str]:
    """The fields of a value; blanks are space and tab and nothing else, as in Kaldi."""
    return _BLANKS.split(value)


def split_line(raw: bytes) -> tuple[str, str]:
    """The id and the value of a line; raises ValueError that says what is wrong with it."""
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("the line is not UTF-8") from error
    if not line.replace("\t", " ").isprintable():
        raise ValueError("the line has a control character or a blank other than space and tab")
    key, *rest = _BLANKS.split(line, maxsplit=1)
    if not key:
        raise ValueError("the line is empty or starts with a blank, an id was expected")
    value = rest[0].rstrip(" \t") if rest else ""
    if not value:
        raise ValueError(f"{key} has nothing after it")
    return key, value


def anything(_: str, __: str) -> None:
    """Any value will do."""


def _one_field(what: str) -> Callable[[str, str], None]:
    def check(key: str, value: str) -> None:
        if _BLANKS.search(value):
            raise ValueError(f"{key} has more than one {what} ({value})")

    return check


def _number(low: float, high: float, whole: bool = False) -> Callable[[str, str], None]:
    def check(key: str, value: str) -> None:
        try:
            fits = low < (int(value) if whole else float(value)) < high
        except ValueError:
            fits = False
        if not fits:
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{key} has {value}, but {kind} between {low:g} and {high:g} was expected")

    return check


def _check_words(key: str, value: str) -> None:
    for word in _BLANKS.split(value):
        if word in _NOT_WORDS:
            raise ValueError(f"the transcript of {key} holds {word}, which cannot be a word")


def _check_gender(key: str, value: str) -> None:
    if value not in ("m", "f"):
        raise ValueError(f"{key} has {value}, but m or f was expected")


def _check_source(key: str, value: str) -> None:
    if value.startswith("~"):
        raise ValueError(f"{key}: a tilde in a path is not expanded, write the path out")
    if value.startswith("|"):
        raise ValueError(f"{key}: a command that writes audio ends in a pipe, this one starts with it")


def _check_channel(key: str, value: str) -> None:
    fields = _BLANKS.split(value)
    if len(fields) != 2 or fields[1] not in CHANNELS:
        raise ValueError(f"{key} has “{value}”, but a file's name and its channel, A or B, were expected")


def parse_segment(key: str, value: str) -> tuple[str, float, float | None]:
    """The recording, start and end in seconds of a line of segments; an end of -1 is that of the recording (None).

    Kaldi's extract-segments takes -1, its validate_data_dir.sh does not. Raises ValueError that says what is wrong.
    """
    try:
        rec_id, start, end = _BLANKS.split(value)
        start_s, end_s = float(start), float(end)
    except ValueError as error:
        raise ValueError(f"{key} has “{value}”, not a recording, a start and an end in seconds") from error
    if not (0 <= start_s < end_s < float("inf") or (0 <= start_s < float("inf") and end_s == -1)):
        raise ValueError(f"{key} goes from {start} to {end} s, which is no part of a recording")
    return rec_id, start_s, None if end_s == -1 else end_s


VALUE_CHECKS: Mapping[str, Callable[[str, str], object]] = {
    "utt2spk": _one_field("speaker"),
    "utt2uniq": _one_field("original"),
    "text": _check_words,
    "segments": parse_segment,
    "wav.scp": _check_source,
    "reco2file_and_channel": _check_channel,
    "spk2gender": _check_gender,
    "utt2dur": _number(0, float("inf")),
    "reco2dur": _number(0, float("inf")),
    "utt2num_frames": _number(0, float("inf"), whole=True),
    "utt2warp": _number(0.5, 1.5),
    "spk2warp": _number(0.5, 1.5),
}
