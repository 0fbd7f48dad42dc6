"""Kaldi data directories: wav.scp, text, utt2spk, spk2utt and, where copies are perturbed, utt2uniq.

The layout is the one that Kaldi's `utils/validate_data_dir.sh` checks: each line starts with an id, ids are unique and
in C-locale order (`LC_ALL=C sort`), and an utterance's id starts with its speaker's, so that both orders agree.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

_BLANKS = re.compile(r"[ \t]+")


@dataclass(frozen=True)
class Recording:
    """Where audio comes from: `source` is a path, or a command that writes it to its stdout and ends in "|".

    `channel` counts from 0; None stands for the only one, and a recording of several is refused then.
    """

    rec_id: str
    source: str
    channel: int | None = None

    @property
    def is_pipe(self) -> bool:
        """Whether the source is a command."""
        return self.source.endswith("|")


@dataclass(frozen=True)
class Utterance:
    """One utterance: a recording or a part of it, who speaks and, where there is a transcript, the words.

    `start_s` and `end_s` are seconds; None stands for the recording's own start or end. `uniq_id` is the utterance
    that this one is a perturbed copy of (Kaldi's utt2uniq); that of an original, or left empty, is its own id.
    """

    utt_id: str
    spk_id: str
    recording: Recording
    start_s: float | None = None
    end_s: float | None = None
    words: tuple[str, ...] | None = None
    uniq_id: str = ""

    def __post_init__(self) -> None:
        if not self.uniq_id:
            object.__setattr__(self, "uniq_id", self.utt_id)


def read_data_dir(path: str | Path, need_text: bool = True) -> list[Utterance]:
    """Read and validate a Kaldi data directory; the utterances come sorted by utt_id (C locale).

    A relative path in wav.scp is looked for from the current directory, as Kaldi does, and then from the data
    directory itself, which is how `write_data_dir` writes it. With `need_text` False a missing `text` gives
    `words=None`; a `text` that is there is validated all the same.

    Raises AsrKdError, naming file and line, for whatever Kaldi's own validation refuses, for commands (pipes) in
    wav.scp, for a `segments` file, and for recordings that are not there.
    """
    path = Path(path)
    if not path.is_dir():
        raise AsrKdError(f"{path}: there is no such data directory")
    if (path / "segments").exists():
        raise AsrKdError(f"{path / 'segments'}: segments are not supported, write one recording per utterance instead")
    scp = _read_table(path / "wav.scp", "a recording's path")
    utt2spk = _read_table(path / "utt2spk", "a speaker")
    _require_same_ids(path / "utt2spk", utt2spk, path / "wav.scp", scp)
    _check_speakers(path / "utt2spk", utt2spk)
    _check_spk2utt(path / "spk2utt", utt2spk)
    text = None
    if need_text or (path / "text").exists():
        text = _read_table(path / "text", "a transcript")
        _require_same_ids(path / "text", text, path / "wav.scp", scp)
    uniq = _read_table(path / "utt2uniq", "an utterance") if (path / "utt2uniq").exists() else None
    if uniq is not None:
        _require_same_ids(path / "utt2uniq", uniq, path / "wav.scp", scp)
    return [
        Utterance(
            utt_id=utt_id,
            spk_id=utt2spk[utt_id][1],
            recording=Recording(utt_id, str(_resolve_wav(path, line, value))),
            words=tuple(_BLANKS.split(text[utt_id][1])) if text is not None else None,
            uniq_id=uniq[utt_id][1] if uniq is not None else utt_id,
        )
        for utt_id, (line, value) in scp.items()
    ]


def write_data_dir(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write wav.scp, text, utt2spk and spk2utt (and utt2uniq where there are copies) in C-locale order.

    A recording in or beside the data directory is written as a path relative to the directory, so that the corpus
    can be moved as a whole; any other is written as an absolute path. `text` is written when every utterance has
    words, and none may have if one has not. wav.scp goes away first and comes last, so that a killed writer leaves
    a directory that `read_data_dir` refuses, never a mixture.

    Raises AsrKdError for duplicates, ids that break the rules above, and a disk that cannot be written.
    """
    path = Path(path)
    utts = sorted(utterances, key=lambda utt: utt.utt_id)
    _check_writable(path, utts)
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name in ("wav.scp", "text", "utt2uniq"):
            (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise AsrKdError(f"{path}: could not be written ({error.strerror})") from error
    spk2utt: dict[str, list[str]] = defaultdict(list)
    for utt in utts:
        spk2utt[utt.spk_id].append(utt.utt_id)
    _write_table(path / "utt2spk", ((utt.utt_id, utt.spk_id) for utt in utts))
    _write_table(path / "spk2utt", ((spk_id, " ".join(spk2utt[spk_id])) for spk_id in sorted(spk2utt)))
    if utts[0].words is not None:
        _write_table(path / "text", ((utt.utt_id, " ".join(utt.words or ())) for utt in utts))
    if any(utt.uniq_id != utt.utt_id for utt in utts):
        _write_table(path / "utt2uniq", ((utt.utt_id, utt.uniq_id) for utt in utts))
    _write_table(path / "wav.scp", ((utt.utt_id, _portable_path(path, Path(utt.recording.source))) for utt in utts))


def check_disjoint(dirs: Mapping[str, list[Utterance]], by_speaker: bool) -> None:
    """Check that the named sets (train, dev, test) share no utterance and no recording (and no speaker).

    A perturbed copy counts as its original (`uniq_id`), so that it cannot stand in another set than that one.

    Raises AsrKdError that names both sets and the first thing they share.
    """
    keys = {
        "utterance": lambda utt: utt.uniq_id,
        "recording": lambda utt: os.path.realpath(utt.recording.source),
    }
    if by_speaker:
        keys["speaker"] = lambda utt: utt.spk_id
    for kind, key in keys.items():
        owner: dict[str, str] = {}
        for name, utts in dirs.items():
            for value in sorted({key(utt) for utt in utts}):
                if value in owner:
                    raise AsrKdError(f"the {kind} {value} is in both {owner[value]} and {name}, which must be disjoint")
                owner[value] = name


def _read_table(path: Path, what: str) -> dict[str, tuple[int, str]]:
    """Read `id value` lines as {id: (line number, value)}; the order is that of the file, which is checked."""
    table: dict[str, tuple[int, str]] = {}
    previous = ""
    for line, content in _read_lines(path):
        key, *rest = _BLANKS.split(content, maxsplit=1)
        if not key:
            raise AsrKdError(f"{path}:{line}: the line is empty or starts with a blank, an id was expected")
        value = rest[0].rstrip(" \t") if rest else ""
        if not value:
            raise AsrKdError(f"{path}:{line}: {key} has nothing after it, {what} was expected")
        if key in table:
            raise AsrKdError(f"{path}:{line}: {key} is there twice (first in line {table[key][0]})")
        if key < previous:
            raise AsrKdError(f"{path}:{line}: {key} comes after {previous}, sort the file with LC_ALL=C sort")
        table[key] = (line, value)
        previous = key
    return table


def _read_lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise AsrKdError(f"{path}: this file of the data directory is missing") from error
    except OSError as error:
        raise AsrKdError(f"{path}: could not be read ({error.strerror})") from error
    if not content.strip():
        raise AsrKdError(f"{path}:1: the file is empty")
    if content.startswith(b"\xef\xbb\xbf"):
        raise AsrKdError(f"{path}:1: the file starts with a byte order mark, save it as UTF-8 without one")
    for line, raw in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        if raw.endswith(b"\r"):
            raise AsrKdError(f"{path}:{line}: the line ends in CR LF, convert the file to Unix line ends")
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise AsrKdError(f"{path}:{line}: the line is not UTF-8") from error
        if not decoded.replace("\t", " ").isprintable():
            raise AsrKdError(f"{path}:{line}: the line has a control character or a blank other than space and tab")
        yield line, decoded


def _require_same_ids(path: Path, table: Mapping[str, tuple[int, str]], scp_path: Path, scp: Mapping) -> None:
    for utt_id, (line, _) in table.items():
        if utt_id not in scp:
            raise AsrKdError(f"{path}:{line}: {utt_id} is not in {scp_path}")
    for utt_id, (line, _) in scp.items():
        if utt_id not in table:
            raise AsrKdError(f"{scp_path}:{line}: {utt_id} is not in {path}")


def _check_speakers(path: Path, utt2spk: Mapping[str, tuple[int, str]]) -> None:
    previous = ""
    for utt_id, (line, spk_id) in utt2spk.items():
        if _BLANKS.search(spk_id):
            raise AsrKdError(f"{path}:{line}: {utt_id} has more than one speaker ({spk_id})")
        if not utt_id.startswith(spk_id):
            raise AsrKdError(f"{path}:{line}: the id {utt_id} does not start with that of its speaker, {spk_id}")
        if spk_id < previous:
            raise AsrKdError(
                f"{path}:{line}: speaker {spk_id} comes after {previous}: in C-locale order of the utterances "
                "the speakers are not in order, end each speaker's id in the utterances' with the same character"
            )
        previous = spk_id


def _check_spk2utt(path: Path, utt2spk: Mapping[str, tuple[int, str]]) -> None:
    expected: dict[str, set[str]] = defaultdict(set)
    for utt_id, (_, spk_id) in utt2spk.items():
        expected[spk_id].add(utt_id)
    table = _read_table(path, "the speaker's utterances")
    for spk_id, (line, value) in table.items():
        if set(_BLANKS.split(value)) != expected.get(spk_id, set()):
            raise AsrKdError(f"{path}:{line}: the utterances of speaker {spk_id} are not those of utt2spk")
    missing = sorted(expected.keys() - table.keys())
    if missing:
        raise AsrKdError(f"{path}:{len(table)}: speaker {missing[0]} of utt2spk is missing")


def _resolve_wav(data_dir: Path, line: int, value: str) -> Path:
    where = f"{data_dir / 'wav.scp'}:{line}"
    if value.endswith("|") or value.startswith("|"):
        raise AsrKdError(f"{where}: commands (pipes) are not run, write the output of “{value}” to a wav file instead")
    for candidate in (Path(value), data_dir / value):
        if candidate.is_file():
            return candidate
    raise AsrKdError(f"{where}: there is no recording {value}")


def _check_writable(path: Path, utts: list[Utterance]) -> None:
    if not utts:
        raise AsrKdError(f"{path}: there is no utterance to write")
    with_words = utts[0].words is not None
    for previous, utt in zip([None, *utts], utts, strict=False):
        if previous is not None and previous.utt_id == utt.utt_id:
            raise AsrKdError(f"{path}: the utterance {utt.utt_id} is there twice")
        if (utt.words is not None) != with_words or (with_words and not utt.words):
            raise AsrKdError(f"{path}: the utterance {utt.utt_id} has no words though another has")
        for token in (utt.utt_id, utt.spk_id, utt.uniq_id, *(utt.words or ())):
            if not token or not token.isprintable() or " " in token:
                raise AsrKdError(f"{path}: {token!r} of the utterance {utt.utt_id} cannot be an id or a word")
    _check_speakers(path / "utt2spk", {utt.utt_id: (line, utt.spk_id) for line, utt in enumerate(utts, start=1)})


def _portable_path(data_dir: Path, wav: Path) -> str:
    # Absolute, not resolved: a corpus reached through a link keeps the link's name.
    absolute, beside = wav.absolute(), data_dir.absolute().parent
    if absolute.is_relative_to(beside):
        return Path(os.path.relpath(absolute, data_dir.absolute())).as_posix()
    return str(absolute)


def _write_table(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    write_text(path, "".join(f"{key} {value}\n" for key, value in rows))
