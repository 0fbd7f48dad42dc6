"""Files of words: Kaldi's text, NIST's transcripts (trn), words with times (CTM) and segments with times (STM).

The NIST formats are those of sctk's doc/infmts.htm. Of CTM's extensions, alternatives (`<ALT_BEGIN>`) are refused.
Text must be UTF-8 with Unix line ends, as everywhere in this project; what breaks a rule is named with file and line.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.scoring.alignment import Alternatives, Optional, Token

_BLANKS = re.compile(r"[ \t]+")
_COMMENT = ";;"
_ODD_CHARACTERS = re.compile(r"[^\S \t]|[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_IGNORED = {"ignore_time_segment_in_scoring", "ignoretimesegmentinscoring"}


class Transcripts(dict[str, list]):
    """utt_id → words, with the file they come from and the line of each utterance, for messages."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.line_of: dict[str, int] = {}

    def add(self, line: int, utt_id: str, words: list) -> None:
        """Raises AsrKdError where the utterance is there already."""
        if utt_id in self:
            raise AsrKdError(f"{self.path}:{line}: {utt_id} is there twice (first in line {self.line_of[utt_id]})")
        self[utt_id] = words
        self.line_of[utt_id] = line


def read_transcripts(path: str | Path) -> Transcripts:
    """Read Kaldi's text: `utt_id word word …` a line, {utt_id: list of words} in the order of the file.

    An id alone is an utterance without words. Raises AsrKdError, naming file and line, for an empty file, an empty
    line, a duplicate id, CR LF, a byte order mark, or what is not UTF-8.
    """
    texts = Transcripts(Path(path))
    for line, content in _lines(texts.path):
        utt_id, *words = _BLANKS.split(content.rstrip(" \t"))
        if not utt_id:
            raise AsrKdError(f"{path}:{line}: the line is empty or starts with a blank, an utterance id was expected")
        texts.add(line, utt_id, words)
    return texts


def read_trn(path: str | Path, reference: bool = True) -> Transcripts:
    """Read sclite's trn: `word word … (utt_id)` a line; `;;` comments and empty lines are skipped.

    In a reference, `(word)` may be left out and `{ a / b c / @ }` gives alternatives; a hypothesis has plain words.
    Raises AsrKdError, naming file and line, where a line has no id at its end or its marks do not match.
    """
    texts = Transcripts(Path(path))
    for line, content in _records(texts.path):
        match = re.fullmatch(r"(.*)\(([^()\s]+)\)", content)
        if not match:
            raise AsrKdError(f"{path}:{line}: no (utterance_id) at the end of the line, as the trn format asks")
        words = match[1].split()
        where = f"{path}:{line}"
        texts.add(line, match[2], parse_reference(words, where) if reference else _plain(words, where))
    return texts


@dataclass(frozen=True)
class CtmWord:
    """One recognised word; times in seconds from the start of the recording. `line` is 0 for words not from a file."""

    rec_id: str
    channel: str
    start_s: float
    duration_s: float
    word: str
    confidence: float | None = None
    line: int = 0

    def __str__(self) -> str:
        """As a line of a CTM, times to a millisecond; sclite wants lines sorted by recording, channel and start."""
        confidence = "" if self.confidence is None else f" {self.confidence:.4f}"
        return f"{self.rec_id} {self.channel} {self.start_s:.3f} {self.duration_s:.3f} {self.word}{confidence}"


def read_ctm(path: str | Path) -> list[CtmWord]:
    """Read a CTM: `recording channel start duration word [confidence]`, sorted by recording, channel and start.

    Raises AsrKdError, naming file and line, for another number of fields, times that are no finite numbers or negative,
    and for alternatives.
    """
    words = []
    for line, content in _records(Path(path)):
        where, fields = f"{path}:{line}", content.split()
        if len(fields) > 4 and fields[4].upper().startswith("<ALT"):
            raise AsrKdError(f"{where}: alternatives ({fields[4]}) in a CTM are not supported, keep one of them")
        if len(fields) not in (5, 6):
            raise AsrKdError(f"{where}: {len(fields)} fields instead of `recording channel start duration word [conf]`")
        start, duration = _seconds(fields[2], "start", where), _seconds(fields[3], "duration", where)
        confidence = _number(fields[5], "confidence", where) if len(fields) == 6 else None
        words.append(CtmWord(fields[0], fields[1], start, duration, fields[4], confidence, line))
    return sorted(words, key=lambda word: (word.rec_id, word.channel, word.start_s))


@dataclass(frozen=True)
class StmSegment:
    """One segment of a reference; times in seconds. `words` is None where the segment is not to be scored."""

    rec_id: str
    channel: str
    spk_id: str
    start_s: float
    end_s: float
    labels: tuple[str, ...]
    words: list[Token] | None
    line: int

    @property
    def utt_id(self) -> str:
        return f"{self.rec_id}_{self.channel}_{self.start_s:.2f}_{self.end_s:.2f}"


def read_stm(path: str | Path) -> list[StmSegment]:
    """Read an STM: `recording channel speaker start end [<label,…>] words …`, sorted by recording, channel and start.

    `IGNORE_TIME_SEGMENT_IN_SCORING` in place of the words takes the segment out of scoring; words may be optional or
    alternatives as in `read_trn`. Raises AsrKdError, naming file and line, for fewer than five fields, times that are
    no finite numbers or out of order, marks that do not match, and a segment given twice.
    """
    segments = []
    for line, content in _records(Path(path)):
        where, fields = f"{path}:{line}", content.split()
        if len(fields) < 5:
            raise AsrKdError(f"{where}: `recording channel speaker start end [<labels>] words` was expected")
        start, end = _seconds(fields[3], "start", where), _seconds(fields[4], "end", where)
        if end < start:
            raise AsrKdError(f"{where}: the segment ends at {end:g} s, before its start at {start:g} s")
        labels: tuple[str, ...] = ()
        words = fields[5:]
        if words and words[0].startswith("<") and words[0].endswith(">"):
            labels = tuple(words.pop(0)[1:-1].split(","))
        ignored = any(word.lower() in _IGNORED for word in words)
        ref = None if ignored else parse_reference(words, where)
        segments.append(StmSegment(*fields[:3], start, end, labels, ref, line))
    first_line: dict[str, int] = {}
    for segment in segments:
        if first_line.setdefault(segment.utt_id, segment.line) != segment.line:
            raise AsrKdError(
                f"{path}:{segment.line}: this segment is there twice (first in line {first_line[segment.utt_id]})"
            )
    return sorted(segments, key=lambda segment: (segment.rec_id, segment.channel, segment.start_s))


def segment_words(words: Sequence[CtmWord], segments: Sequence[StmSegment]) -> list[list[CtmWord]]:
    """The words of one channel that belong to each of its segments, both in order of time.

    As sclite does it (segment_hyp_for_utt in stm2ctm.c): a word belongs to the first segment that ends after the
    word's middle, so one between two segments goes to the later; what follows the last segment goes to that one.
    Ends of segments are single precision there, which decides where a middle falls on one.
    """
    cut: list[list[CtmWord]] = [[] for _ in segments]
    current = 0
    for word in words:
        middle = word.start_s + word.duration_s / 2
        while current < len(segments) - 1 and middle >= np.float32(segments[current].end_s).item():
            current += 1
        cut[current].append(word)
    return cut


def parse_reference(words: Sequence[str], where: str) -> list[Token]:
    """Words with NIST's marks as a reference: `(word)` is optional, `{ a / b c / @ }` any of its alternatives.

    Alternatives may be nested, and their marks stand as words of their own. Raises AsrKdError, beginning with `where`,
    for marks that do not match.
    """
    stack: list[list[list[Token]]] = []  # of each open brace: its alternatives so far
    current: list[Token] = []
    for word in words:
        if word == "{":
            stack.append([current])
            current = []
        elif word in ("/", "}") and stack:
            stack[-1].append(current)
            current = []
            if word == "}":
                outer, *options = stack.pop()
                if len(options) < 2:
                    raise AsrKdError(f"{where}: {{ … }} has only one alternative")
                current = [*outer, Alternatives(tuple(map(tuple, options)))]
        elif word == "}":
            raise AsrKdError(f"{where}: a closing brace without an opening one")
        elif word != "@":
            optional = len(word) > 2 and word[0] == "(" and word[-1] == ")"
            current.append(Optional(word[1:-1]) if optional else word)
    if stack:
        raise AsrKdError(f"{where}: an opening brace without a closing one")
    return current


def _plain(words: list[str], where: str) -> list[str]:
    if "{" in words or "}" in words:
        raise AsrKdError(f"{where}: alternatives in a hypothesis are not supported, keep one of them")
    return words


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise AsrKdError(f"{where}: the {name} is {text}, not a finite number")
    return value


def _seconds(text: str, name: str, where: str) -> float:
    value = _number(text, name, where)
    if value < 0:
        raise AsrKdError(f"{where}: the {name} is {text}, which is negative")
    return value


def _records(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a NIST format: without comments and empty lines, and without blanks at the ends."""
    for line, content in _lines(path):
        stripped = content.strip(" \t")
        if stripped and not stripped.startswith(_COMMENT):
            yield line, stripped


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AsrKdError(f"{path}: cannot be read ({error.strerror})") from error
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
        if _ODD_CHARACTERS.search(decoded):
            raise AsrKdError(f"{path}:{line}: the line has a control character or a blank other than space and tab")
        yield line, decoded
