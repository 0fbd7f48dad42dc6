"""Kaldi data directories as utterances: reading them, writing them, and keeping sets of them apart."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asr_kd.corpus import tables
from asr_kd.corpus.consistency import cross_problems, source_problems
from asr_kd.corpus.line_rules import CHANNELS, parse_segment, split_blanks
from asr_kd.corpus.tables import DataDir, Problem, Table
from asr_kd.errors import AsrKdError


@dataclass(frozen=True)
class Recording:
    """Where audio comes from: `source` is a path, or a command that writes it to its stdout and ends in "|".

    `channel` counts from 0; None stands for the only one, and a recording of several is refused then.
    `may_be_separated`: the channel is that of a conversation (reco2file_and_channel), and where the audio has only one
    channel, it is that one already (sph2pipe -c 1).
    """

    rec_id: str
    source: str
    channel: int | None = None
    may_be_separated: bool = field(default=False, compare=False)

    @property
    def is_pipe(self) -> bool:
        """Whether the source is a command."""
        return tables.is_pipe(self.source)


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


def load_data_dir(path: str | Path, need_text: bool = True, allow_pipes: bool = True) -> DataDir:
    """Read and validate the files of a data directory; raises AsrKdError as `read_data_dir` does."""
    data, problems = find_problems(path, need_text, allow_pipes)
    if problems:
        raise AsrKdError(str(problems[0]))
    return data


def find_problems(path: str | Path, need_text: bool = True, allow_pipes: bool = True) -> tuple[DataDir, list[Problem]]:
    """A data directory's files and all that is wrong: in them, if nothing is then between them, and then with audio.

    Raises AsrKdError if there is no such directory or a file cannot be read.
    """
    data, problems = tables.load(Path(path))
    problems = problems or list(cross_problems(data, need_text))
    return data, problems or list(source_problems(data, allow_pipes))


def read_data_dir(path: str | Path, need_text: bool = True, allow_pipes: bool = True) -> list[Utterance]:
    """Read and validate a Kaldi data directory; the utterances come sorted by utt_id (C locale).

    A relative path in wav.scp is looked for from the data directory, which is how `write_data_dir` writes it, and
    then from the current directory, as Kaldi does. With `need_text` False a missing `text` gives
    `words=None`; a `text` that is there is validated all the same. Reading runs no command: `allow_pipes` False
    refuses those in wav.scp here already, with the line.

    Raises AsrKdError, naming file and line, for whatever `line_rules` and `consistency` call a problem.
    """
    return to_utterances(load_data_dir(path, need_text, allow_pipes))


def read_words(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Words of each utterance, by `text` alone: to be compared with, they need no audio, nor anything else beside it.

    Raises AsrKdError, naming file and line, where `text` is missing or breaks a rule of `line_rules`.
    """
    return {utt_id: tuple(split_blanks(value)) for utt_id, value in _read_rows(Path(path) / "text").items()}


def read_originals(path: str | Path) -> dict[str, str]:
    """The utterance that each perturbed copy is of, by utt2uniq alone; none where that is missing.

    Raises AsrKdError, naming file and line, where it breaks a rule of `line_rules`.
    """
    uniq = Path(path) / "utt2uniq"
    return _read_rows(uniq) if uniq.exists() else {}


def _read_rows(path: Path) -> dict[str, str]:
    table, problems = tables.read_table(path)
    if problems:
        raise AsrKdError(str(problems[0]))
    return table.rows


def to_utterances(data: DataDir) -> list[Utterance]:
    """The utterances of a valid data directory, in C-locale order."""
    channels = {rec_id: CHANNELS[value.split()[1]] for rec_id, value in data.rows("reco2file_and_channel").items()}
    recordings = {
        rec_id: Recording(rec_id, str(tables.find_source(data.path, value)), channels.get(rec_id), rec_id in channels)
        for rec_id, value in data.rows("wav.scp").items()
    }
    segments = data.rows("segments")
    text, uniq = data.rows("text"), data.rows("utt2uniq")
    utterances = []
    for utt_id, spk_id in data.rows("utt2spk").items():
        rec_id, start_s, end_s = utt_id, None, None
        if segments:
            rec_id, start_s, end_s = parse_segment(utt_id, segments[utt_id])
            if start_s == 0 and end_s is None:
                start_s = None
        words = tuple(split_blanks(text[utt_id])) if text else None
        recording = recordings[rec_id]
        utterances.append(Utterance(utt_id, spk_id, recording, start_s, end_s, words, uniq.get(utt_id, utt_id)))
    return utterances


def write_data_dir(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write wav.scp, utt2spk, spk2utt and what else is needed: text, segments, utt2uniq, reco2file_and_channel.

    A recording in or beside the data directory is written as a path relative to the directory, so that the corpus
    can be moved as a whole; any other is written as an absolute path. `text` is written when every utterance has
    words, and none may have if one has not; `segments` when an utterance is part of a recording or has another id
    than it. A killed writer leaves a directory that `read_data_dir` refuses, never a mixture.

    Raises AsrKdError for duplicates, ids that break Kaldi's rules, and a disk that cannot be written.
    """
    path = Path(path)
    utts = sorted(utterances, key=lambda utt: utt.utt_id)
    _check_writable(path, utts)
    tables.write_tables(path, _to_tables(path, utts))


def _to_tables(path: Path, utts: list[Utterance]) -> dict[str, Table]:
    recordings = {utt.recording.rec_id: utt.recording for utt in utts}
    contents = {
        "utt2spk": {utt.utt_id: utt.spk_id for utt in utts},
        "wav.scp": {rec_id: tables.portable_source(path, rec.source) for rec_id, rec in recordings.items()},
    }
    if utts[0].words is not None:
        contents["text"] = {utt.utt_id: " ".join(utt.words or ()) for utt in utts}
    if any(utt.uniq_id != utt.utt_id for utt in utts):
        contents["utt2uniq"] = {utt.utt_id: utt.uniq_id for utt in utts}
    if any(utt.recording.rec_id != utt.utt_id or utt.start_s is not None or utt.end_s is not None for utt in utts):
        contents["segments"] = {
            utt.utt_id: f"{utt.recording.rec_id} {utt.start_s or 0} {-1 if utt.end_s is None else utt.end_s}"
            for utt in utts
        }
    if any(recording.channel is not None for recording in recordings.values()):
        contents["reco2file_and_channel"] = {
            rec_id: f"{rec_id} {'AB'[recording.channel or 0]}" for rec_id, recording in recordings.items()
        }
    return {name: Table(path / name, rows) for name, rows in contents.items()}


def _check_writable(path: Path, utts: list[Utterance]) -> None:
    if not utts:
        raise AsrKdError(f"{path}: there is no utterance to write")
    with_words = utts[0].words is not None
    recordings: dict[str, Recording] = {}
    for previous, utt in zip([None, *utts], utts, strict=False):
        if previous is not None and previous.utt_id == utt.utt_id:
            raise AsrKdError(f"{path}: the utterance {utt.utt_id} is there twice")
        if (utt.words is not None) != with_words or (with_words and not utt.words):
            raise AsrKdError(f"{path}: the utterance {utt.utt_id} has no words though another has")
        for token in (utt.utt_id, utt.spk_id, utt.uniq_id, utt.recording.rec_id, *(utt.words or ())):
            if not token or not token.isprintable() or " " in token:
                raise AsrKdError(f"{path}: {token!r} of the utterance {utt.utt_id} cannot be an id or a word")
        recording = recordings.setdefault(utt.recording.rec_id, utt.recording)
        if recording != utt.recording:
            raise AsrKdError(f"{path}: {recording.source} and {utt.recording.source} are both {recording.rec_id}")
        if utt.recording.channel not in (None, 0, 1):
            raise AsrKdError(f"{path}: reco2file_and_channel knows channels 0 (A) and 1 (B), not {recording.channel}")
    content = _to_tables(path, utts)
    content["spk2utt"] = tables.spk2utt(DataDir(path, content))
    for problem in cross_problems(DataDir(path, content), need_text=with_words):
        raise AsrKdError(str(problem))


def check_disjoint(dirs: Mapping[str, list[Utterance]], by_speaker: bool) -> None:
    """Check that the named sets (train, dev, test) share no utterance and no recording (and no speaker).

    A perturbed copy counts as its original: its utterance is `uniq_id`, and what its id has before that (sp0.9-) is
    taken from the ids of its recording and speaker too. So it cannot stand in another set than its original, nor
    than other parts of the same recording.

    Raises AsrKdError that names both sets and the first thing they share.
    """
    keys: dict[str, Callable[[Utterance], str]] = {
        "utterance": lambda utt: utt.uniq_id,
        "recording": lambda utt: original_id(utt, utt.recording.rec_id),
        "file": lambda utt: utt.recording.source if utt.recording.is_pipe else os.path.realpath(utt.recording.source),
    }
    if by_speaker:
        keys["speaker"] = lambda utt: original_id(utt, utt.spk_id)
    for kind, key in keys.items():
        owner: dict[str, str] = {}
        for name, utts in dirs.items():
            for value in sorted({key(utt) for utt in utts}):
                if value in owner:
                    raise AsrKdError(f"the {kind} {value} is in both {owner[value]} and {name}, which must be disjoint")
                owner[value] = name


def original_id(utterance: Utterance, other_id: str) -> str:
    """The id of a recording or speaker without the prefix that the utterance has as a perturbed copy (sp0.9-)."""
    prefix = utterance.utt_id.removesuffix(utterance.uniq_id)
    return other_id.removeprefix(prefix) if prefix != utterance.utt_id else other_id
