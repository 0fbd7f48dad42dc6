"""The files of a Kaldi data directory as tables: which there are, what a line may hold, reading and writing them.

Every line starts with an id and a blank; ids are unique and in C-locale order (`LC_ALL=C sort`), which for UTF-8 is
the order of Python's strings. What Kaldi's utils/validate_data_dir.sh and validate_text.pl refuse in a line is
refused here, and so are byte order marks, empty values and whatever is not UTF-8.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

BY_UTTERANCE = (
    *("utt2spk", "segments", "text", "utt2uniq", "utt2lang", "utt2dur"),
    *("utt2num_frames", "utt2warp", "feats.scp", "vad.scp"),
)
BY_SPEAKER = ("spk2utt", "spk2gender", "spk2warp", "cmvn.scp")
BY_RECORDING = ("wav.scp", "reco2file_and_channel", "reco2dur")
FILES = (*BY_UTTERANCE, *BY_SPEAKER, *BY_RECORDING)

# Kaldi numbers the channels of a file A and B; it takes 1 for A, though it says that one should not write it.
CHANNELS = {"A": 0, "B": 1, "1": 0}
_NOT_WORDS = {"<s>", "</s>", "#0"}  # language models and decoding graphs give these a meaning of their own
_BLANKS = re.compile(r"[ \t]+")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a data directory; `mendable` if nothing needs to be dropped to mend it."""

    path: Path
    line: int | None
    what: str
    mendable: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}" if self.line else f"{self.path}: {self.what}"


@dataclass
class Table:
    """A file of a data directory: the value of each id, and the line it is in, for messages."""

    path: Path
    rows: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def problem(self, key: str, what: str) -> Problem:
        """A problem with the line of an id."""
        return Problem(self.path, self.lines.get(key), what)

    def keep(self, keys: Iterable[str]) -> "Table":
        """The table of these ids, in C-locale order; ids that are not there are left out."""
        return Table(self.path, {key: self.rows[key] for key in sorted(keys) if key in self.rows}, self.lines)


@dataclass
class DataDir:
    """The tables of a data directory, by file name."""

    path: Path
    tables: dict[str, Table]

    def rows(self, name: str) -> dict[str, str]:
        """The values of a file by id; empty where the file is not there."""
        return self.tables[name].rows if name in self.tables else {}

    def recording_of(self) -> dict[str, str]:
        """The recording of each utterance."""
        if "segments" in self.tables:
            return {utt_id: value.split()[0] for utt_id, value in self.rows("segments").items()}
        return {rec_id: rec_id for rec_id in self.rows("wav.scp")}

    def utterances_of(self) -> dict[str, list[str]]:
        """The utterances of each speaker, both in C-locale order."""
        speakers: dict[str, list[str]] = {}
        for utt_id, spk_id in sorted(self.rows("utt2spk").items()):
            speakers.setdefault(spk_id, []).append(utt_id)
        return dict(sorted(speakers.items()))


def split_blanks(value: str) -> list[str]:
    """The fields of a value; blanks are space and tab and nothing else, as in Kaldi."""
    return _BLANKS.split(value)


def load(path: Path) -> tuple[DataDir, list[Problem]]:
    """Read the files that are there; lines with a problem that cannot be mended are left out.

    Raises AsrKdError if there is no such directory or a file cannot be read.
    """
    if not path.is_dir():
        raise AsrKdError(f"{path}: there is no such data directory")
    tables, problems = {}, []
    for name in FILES:
        if (path / name).exists():
            tables[name], found = read_table(path / name)
            problems += found
    return DataDir(path, tables), problems


def read_table(path: Path) -> tuple[Table, list[Problem]]:
    """Read one file, in the order of its lines, and what is wrong with it on its own.

    Raises AsrKdError if it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AsrKdError(f"{path}: could not be read ({error.strerror})") from error
    table, problems = Table(path), []
    if not content.strip():
        return table, [Problem(path, 1, "the file is empty")]
    if content.startswith(b"\xef\xbb\xbf"):
        problems.append(Problem(path, 1, "the file starts with a byte order mark, save it as UTF-8 without one", True))
        content = content[3:]
    lines = content.split(b"\n")
    if lines[-1]:
        problems.append(Problem(path, len(lines), "the last line has no newline, the file may be cut off", True))
    else:
        lines.pop()
    check, previous = _VALUE_CHECKS.get(path.name, _anything), ""
    has_crlf: list[int] = []
    unsorted: list[Problem] = []
    for number, raw in enumerate(lines, start=1):
        if raw.endswith(b"\r"):
            has_crlf.append(number)
            raw = raw.rstrip(b"\r")
        try:
            key, value = _split_line(raw)
            if key in table.rows:
                raise ValueError(f"{key} is there twice (first in line {table.lines[key]})")
            check(key, value)
        except ValueError as error:
            problems.append(Problem(path, number, str(error)))
            continue
        if key < previous:
            what = f"{key} comes after {previous}, sort the file with LC_ALL=C sort"
            unsorted.append(Problem(path, number, what, True))
        table.rows[key], table.lines[key], previous = value, number, key
    # Once for a file: every line would be no news.
    if has_crlf:
        what = "the line ends in CR LF, convert the file to Unix line ends"
        problems.insert(0, Problem(path, has_crlf[0], what, True))
    problems += unsorted[:1]
    return table, problems


def _split_line(raw: bytes) -> tuple[str, str]:
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


def _anything(_: str, __: str) -> None:
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


_VALUE_CHECKS: Mapping[str, Callable[[str, str], object]] = {
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


def is_pipe(value: str) -> bool:
    """Whether a value of wav.scp is a command, whose output is the recording."""
    return value.endswith("|")


def find_source(data_dir: Path, value: str) -> str | None:
    """What a value of wav.scp stands for: a command as it is, or the path where there is such a file.

    A relative path is looked for from the data directory, which is how `portable_source` writes it, and then from
    the current directory, as Kaldi does: the other way round, ../wav could be found in a corpus that one is just in.
    """
    if is_pipe(value):
        return value
    # First as the directory is called here, then, where it is reached through a link, as it lies.
    for candidate in (os.path.normpath(data_dir / value), str(data_dir / value), value):
        if os.path.isfile(candidate):
            return candidate
    return None


def portable_source(data_dir: Path, source: str) -> str:
    """How wav.scp of `data_dir` names a source: relative if it is in or beside the directory, else absolute.

    So a corpus can be moved as a whole. Absolute is not resolved: one reached through a link keeps the link's name.
    """
    if is_pipe(source):
        return source
    absolute = Path(os.path.abspath(source))
    home = Path(os.path.abspath(data_dir))
    return os.path.relpath(absolute, home) if absolute.is_relative_to(home.parent) else str(absolute)


def to_text(rows: Mapping[str, str]) -> str:
    """The contents of a file of a data directory, its lines in C-locale order."""
    return "".join(f"{key} {value}\n" for key, value in sorted(rows.items()))


def write_tables(path: Path, tables: Mapping[str, Table]) -> None:
    """Write the files of a data directory in C-locale order, with spk2utt made from utt2spk; others of its go away.

    wav.scp goes away first and comes last, so that a killed writer leaves a directory that is refused, never a
    mixture. Raises AsrKdError where it cannot be written.
    """
    tables = {**tables, "spk2utt": spk2utt(DataDir(path, dict(tables)))}
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name in ("wav.scp", *FILES):
            if name == "wav.scp" or name not in tables:
                (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise AsrKdError(f"{path}: could not be written ({error.strerror})") from error
    for name in sorted(tables, key=lambda name: name == "wav.scp"):
        write_text(path / name, to_text(tables[name].rows))


def spk2utt(data: DataDir) -> Table:
    """spk2utt as it follows from utt2spk."""
    rows = {spk_id: " ".join(utt_ids) for spk_id, utt_ids in data.utterances_of().items()}
    return Table(data.path / "spk2utt", rows)
