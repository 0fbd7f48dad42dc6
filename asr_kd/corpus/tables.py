"""The files of a Kaldi data directory as tables: which there are, what a line may hold, reading and writing them.

Every line starts with an id and a blank; ids are unique and in C-locale order (`LC_ALL=C sort`), which for UTF-8 is
the order of Python's strings.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asr_kd.corpus.line_rules import VALUE_CHECKS, anything, split_line
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

BY_UTTERANCE = (
    *("utt2spk", "segments", "text", "utt2uniq", "utt2lang", "utt2dur"),
    *("utt2num_frames", "utt2warp", "feats.scp", "vad.scp"),
)
BY_SPEAKER = ("spk2utt", "spk2gender", "spk2warp", "cmvn.scp")
BY_RECORDING = ("wav.scp", "reco2file_and_channel", "reco2dur")
FILES = (*BY_UTTERANCE, *BY_SPEAKER, *BY_RECORDING)


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
    return table, problems + _fill(table, lines)


def _fill(table: Table, lines: list[bytes]) -> list[Problem]:
    """Put the lines in the table; those that break a rule on their own are left out."""
    problems: list[Problem] = []
    # Once for a file: every line would be no news.
    has_crlf = is_unsorted = False
    check, previous = VALUE_CHECKS.get(table.path.name, anything), ""
    for number, raw in enumerate(lines, start=1):
        if raw.endswith(b"\r"):
            if not has_crlf:
                what = "the line ends in CR LF, convert the file to Unix line ends"
                problems.append(Problem(table.path, number, what, True))
            has_crlf, raw = True, raw.rstrip(b"\r")
        try:
            key, value = split_line(raw)
            if key in table.rows:
                raise ValueError(f"{key} is there twice (first in line {table.lines[key]})")
            check(key, value)
        except ValueError as error:
            problems.append(Problem(table.path, number, str(error)))
            continue
        if key < previous and not is_unsorted:
            is_unsorted = True
            what = f"{key} comes after {previous}, sort the file with LC_ALL=C sort"
            problems.append(Problem(table.path, number, what, True))
        table.rows[key], table.lines[key], previous = value, number, key
    return problems


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


def select(data: DataDir, utt_ids: list[str]) -> dict[str, Table]:
    """The tables of these utterances, their recordings and their speakers, in C-locale order."""
    selected = {name: data.tables[name].keep(utt_ids) for name in BY_UTTERANCE if name in data.tables}
    spk_ids = set(selected["utt2spk"].rows.values())
    recording_of = data.recording_of()
    rec_ids = {recording_of[utt_id] for utt_id in utt_ids}
    selected |= {name: data.tables[name].keep(spk_ids) for name in BY_SPEAKER if name in data.tables}
    selected |= {name: data.tables[name].keep(rec_ids) for name in BY_RECORDING if name in data.tables}
    selected["spk2utt"] = spk2utt(DataDir(data.path, selected))
    return selected
