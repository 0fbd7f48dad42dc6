"""Pronunciation lexicons in Kaldi's lexicon.txt form."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_text

SILENCE_PHONE = "SIL"
_RESERVED = re.compile(r"<eps>|#\d+|<s>|</s>")


@dataclass
class Lexicon:
    """Words and their pronunciations; silence between words is the language's affair and has no entry here.

    entries: word → its pronunciations, each a non-empty tuple of phones.
    """

    entries: dict[str, list[tuple[str, ...]]]

    @cached_property
    def phones(self) -> list[str]:
        """All phones except silence, sorted."""
        return sorted({phone for pronunciations in self.entries.values() for p in pronunciations for phone in p})

    @property
    def words(self) -> list[str]:
        """All words, sorted."""
        return sorted(self.entries)

    def require_words(self, utterances: Iterable[tuple[str, Iterable[str]]], source: str) -> None:
        """Check that every word of `utterances`, pairs (utt_id, words), can be pronounced.

        Raises AsrKdError that names the first utterance and word that cannot; `source` says where they come from.
        """
        for utt_id, words in utterances:
            for word in words:
                if word not in self.entries:
                    raise AsrKdError(f"{source}: utterance {utt_id!r} has the word {word!r}, which the lexicon lacks")


def read_lexicon(path: str | Path) -> Lexicon:
    """Read a lexicon.txt: one pronunciation a line, `word phone phone …`; a word may have several lines.

    Raises AsrKdError, naming file and line, for an empty or repeated pronunciation, a reserved symbol,
    text that is not UTF-8, an unreadable file, or a lexicon without a word.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: cannot be read as a lexicon ({error})") from error
    entries: dict[str, list[tuple[str, ...]]] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            raise AsrKdError(f"{path}:{number}: an empty line, where `word phone phone …` was expected")
        word, pronunciation = fields[0], tuple(fields[1:])
        if not pronunciation:
            raise AsrKdError(f"{path}:{number}: the word {word!r} has an empty pronunciation")
        for symbol in fields:
            if _RESERVED.fullmatch(symbol):
                raise AsrKdError(f"{path}:{number}: {symbol!r} is reserved and cannot be a word or phone")
        if SILENCE_PHONE in pronunciation:
            raise AsrKdError(f"{path}:{number}: the silence phone {SILENCE_PHONE} may not occur in a word ({word!r})")
        if pronunciation in entries.setdefault(word, []):
            raise AsrKdError(f"{path}:{number}: the pronunciation of {word!r} is given twice")
        entries[word].append(pronunciation)
    if not entries:
        raise AsrKdError(f"{path}: has no word")
    return Lexicon(entries)


def write_lexicon(path: str | Path, lexicon: Lexicon) -> None:
    """Write lexicon.txt, words sorted, pronunciations of a word in their order; atomic."""
    lines = [f"{word} {' '.join(p)}\n" for word in lexicon.words for p in lexicon.entries[word]]
    write_text(path, "".join(lines))
