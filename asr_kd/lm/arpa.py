"""ARPA files, also gzipped, of anybody's tools: read strictly, written as SRILM does."""

import gzip
import itertools
import re
import zlib
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from asr_kd.corpus.lexicon import UNKNOWN_WORDS
from asr_kd.errors import AsrKdError
from asr_kd.lm.kneser_ney import MAX_ORDER
from asr_kd.lm.ngram import BOS, EOS, Level, NgramModel
from asr_kd.store.atomic import atomic_path

MAX_LINE = 1 << 16
MAX_SKIPPED = 10_000  # lines: what is unpacked from a small file may be endless
# Beyond these no log10 of a probability or of a ratio of two lies; rounding may leave a probability a little above one.
SMALLEST, LARGEST_PROB, LARGEST_BACKOFF = -1000.0, 1e-3, 1000.0
_COUNT = re.compile(rb"ngram (\d{1,2}) ?= ?(\d{1,18})")


def open_lines(path: str | Path) -> Iterator[bytes]:
    """Lines of a file, without their ends and a byte order mark before the first; gunzipped where it is named *.gz.

    Raises AsrKdError where it cannot be read or has a line longer than MAX_LINE.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE and not line.endswith(b"\n"):
                    raise AsrKdError(f"{path}:{number}: a line of more than {MAX_LINE} bytes")
                yield (line.removeprefix(BOM_UTF8) if number == 1 else line).rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise AsrKdError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


class _Section:
    """The n-grams of one order as they stand in the file."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.words, self.lines = array("q"), array("q")
        self.log_prob, self.backoff = array("d"), array("d")

    def __len__(self) -> int:
        return len(self.lines)


class _Parser:
    """One pass over the lines; every complaint names the line."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.number = Path(path), 0
        self.ids: dict[bytes, int] = {}
        self._lines = open_lines(path)

    def error(self, what: str, number: int | None = None) -> AsrKdError:
        return AsrKdError(f"{self.path}:{self.number if number is None else number}: {what}")

    def next(self) -> bytes:
        """The next line that is not empty."""
        for line in itertools.islice(self._lines, MAX_SKIPPED):
            self.number += 1
            if line.strip():
                return line
        if next(self._lines, None) is not None:
            raise self.error(f"the last {MAX_SKIPPED} lines are empty; is this an ARPA file?")
        raise AsrKdError(f"{self.path}: ends before \\end\\; it is cut off, or no ARPA file")

    def header(self) -> tuple[list[int], bytes]:
        """Numbers of n-grams by order, and the line after them."""
        while self.next().strip() != b"\\data\\":
            if self.number > MAX_SKIPPED:
                raise self.error("no \\data\\ up to here; is this an ARPA file?")
        declared: list[int] = []
        while match := _COUNT.fullmatch((line := self.next()).strip()):
            if int(match[1]) != len(declared) + 1 or len(declared) == MAX_ORDER:
                raise self.error(f"expected `ngram {len(declared) + 1}=…`, of orders up to {MAX_ORDER}")
            declared.append(int(match[2]))
        if not declared:
            raise self.error("expected `ngram 1=…`")
        return declared, line

    def section(self, order: int, declared: int, line: bytes) -> tuple[_Section, bytes]:
        """The n-grams of an order, whose heading is `line`, and the line after them."""
        if line.strip() != b"\\%d-grams:" % order:
            raise self.error(f"expected \\{order}-grams:")
        section = _Section(order)
        while not (line := self.next()).startswith(b"\\"):
            if len(section) == declared:
                raise self.error(f"more than the {declared} {order}-grams that the header declares")
            self._entry(section, line.split())
        if len(section) < declared:
            raise self.error(f"{len(section)} {order}-grams, where the header declares {declared}")
        return section, line

    def _entry(self, section: _Section, fields: list[bytes]) -> None:
        order = section.order
        if not order + 1 <= len(fields) <= order + 2:
            raise self.error(f"expected log10 probability, {order} words and maybe a back-off weight")
        try:
            section.log_prob.append(float(fields[0]))
            section.backoff.append(float(fields[order + 1]) if len(fields) > order + 1 else 0.0)
        except ValueError:
            raise self.error("a probability or back-off weight is no number") from None
        words = fields[1 : order + 1]
        if order == 1:
            if words[0] in self.ids:
                raise self.error(f"the word {words[0].decode(errors='replace')!r} is there twice")
            self.ids[words[0]] = len(self.ids)
        try:
            section.words.extend([self.ids[word] for word in words])
        except KeyError as error:
            raise self.error(f"the word {error.args[0].decode(errors='replace')!r} is not among the 1-grams") from None
        section.lines.append(self.number)

    def vocabulary(self) -> list[str]:
        """The words by id."""
        try:
            words = [word.decode() for word in self.ids]
        except UnicodeDecodeError as error:
            raise AsrKdError(f"{self.path}: the word {error.object!r} is not UTF-8") from error
        if missing := [word for word in (BOS, EOS) if word not in words]:
            raise AsrKdError(f"{self.path}: lacks {' and '.join(missing)} among its 1-grams")
        return words


def read_arpa(path: str | Path, log: Callable[[str], None] = lambda line: None) -> NgramModel:
    """Read an ARPA file, gunzipped where it is named *.gz.

    N-grams with <s> behind another word, or a word behind </s>, which some tools write, are left out; `log` gets their
    number. Raises AsrKdError, naming file and line, for what is no ARPA file or is cut off, for numbers that are no
    log10 of a probability, words that are not among the unigrams, n-grams that are there twice or whose first words are
    no n-gram of the order below.
    """
    parser = _Parser(path)
    declared, line = parser.header()
    levels: list[Level] = []
    words: list[str] = []
    dropped = 0
    for order, number in enumerate(declared, 1):
        section, line = parser.section(order, number, line)
        words = words or parser.vocabulary()
        level, num_dropped = _level(parser, section, NgramModel(words, levels))
        levels.append(level)
        dropped += num_dropped
    if line.strip() != b"\\end\\":
        raise parser.error("expected \\end\\")
    if dropped:
        log(f"{path}: left out {dropped} n-grams with {BOS} behind a word, or a word behind {EOS}")
    return NgramModel.of(words, levels)


def read_words(path: str | Path) -> list[str]:
    """The words of an ARPA file, without the marks of begin, end and unknown words; its n-grams are not read.

    Raises AsrKdError as read_arpa does.
    """
    parser = _Parser(path)
    declared, line = parser.header()
    parser.section(1, declared[0], line)
    return [word for word in parser.vocabulary() if word not in (BOS, EOS, *UNKNOWN_WORDS)]


def _level(parser: _Parser, section: _Section, below: NgramModel) -> tuple[Level, int]:
    """The section as a Level, and how many of its n-grams cannot be."""
    lines = np.frombuffer(section.lines, np.int64)
    log_prob, backoff = np.frombuffer(section.log_prob), np.frombuffer(section.backoff)
    # Written so that NaN fails too.
    in_range = (log_prob >= SMALLEST) & (log_prob <= LARGEST_PROB) & (np.abs(backoff) <= LARGEST_BACKOFF)
    if not in_range.all():
        row = int(in_range.argmin())
        what = f"{log_prob[row]:g} {backoff[row]:g} are no log10 of a probability and of a back-off weight"
        raise parser.error(what, lines[row])
    ngrams = np.frombuffer(section.words, np.int64).reshape(-1, section.order)
    bos, eos = below.word_id[BOS], below.word_id[EOS]
    possible = ~((ngrams[:, 1:] == bos).any(axis=1) | (ngrams[:, :-1] == eos).any(axis=1))
    prefix = np.zeros(len(ngrams), dtype=np.int64)
    if section.order > 1:
        prefix = below.find(ngrams[:, :-1])
        if (possible & (prefix < 0)).any():
            raise parser.error(
                "its first words are no n-gram of the order below", lines[(possible & (prefix < 0)).argmax()]
            )
    rows = np.flatnonzero(possible)
    rows = rows[np.lexsort((ngrams[rows, -1], prefix[rows]))]
    level = Level(prefix[rows], ngrams[rows, -1], np.minimum(log_prob[rows], 0.0), backoff[rows])
    twice = (level.prefix[1:] == level.prefix[:-1]) & (level.word[1:] == level.word[:-1])
    if twice.any():
        raise parser.error("an n-gram that is there twice", lines[rows[1:][twice]].min())
    return level, len(ngrams) - len(rows)


def write_arpa(path: str | Path, model: NgramModel) -> None:
    """Write a model, gzipped where `path` ends in .gz, atomically; the same model gives the same bytes.

    Raises AsrKdError where it cannot be written.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if Path(path).suffix != ".gz":
            _write(file, model)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
            _write(packed, model)


def _write(file: object, model: NgramModel) -> None:
    counts = [f"ngram {n}={len(level)}" for n, level in enumerate(model.levels, 1)]
    file.write(("\\data\\\n" + "\n".join(counts) + "\n").encode())
    texts = [""]
    for n, level in enumerate(model.levels, 1):
        file.write(f"\n\\{n}-grams:\n".encode())
        texts = [
            f"{texts[prefix]} {model.words[word]}"
            for prefix, word in zip(level.prefix.tolist(), level.word.tolist(), strict=True)
        ]
        lines = zip(level.log_prob.tolist(), texts, level.backoff.tolist(), strict=True)
        # A weight of 0 is what a missing one means.
        file.writelines(
            f"{prob:.8g}\t{text[1:]}{f'{chr(9)}{backoff:.8g}' if backoff else ''}\n".encode()
            for prob, text, backoff in lines
        )
    file.write(b"\n\\end\\\n")
