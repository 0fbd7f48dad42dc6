"""When the words of a decoded path were said: its phones, cut into the words' pronunciations.

The arcs that put words out cannot tell, since determinisation delays the words of homophones and shared beginnings; the
phones are exact. Kaldi's lattice-align-words-lexicon does the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.imported import ImportedHmm
from asr_kd.hmm.kaldi_lang import ImportedLang
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel


@dataclass(frozen=True)
class PhoneTable:
    """What transition-ids say about phones, without the model that they are of.

    t2phone: index into the Lang's phones; enters_phone: whether a phone begins; (num_transition_ids + 1,) each, with a
    dummy at 0. Raises AsrKdError where they do not fit each other or `num_phones`.
    """

    t2phone: np.ndarray
    enters_phone: np.ndarray
    num_phones: int

    def __post_init__(self) -> None:
        fits = self.t2phone.shape == self.enters_phone.shape and self.t2phone.ndim == 1 and len(self.t2phone) > 1
        if not fits or self.t2phone[1:].min() < 0 or self.t2phone.max() >= self.num_phones:
            raise AsrKdError("the table of transition-ids does not fit the phones")

    @classmethod
    def of_model(cls, model: HmmModel | ImportedHmm) -> "PhoneTable":
        """That of an HMM."""
        return cls(model.t2phone, model.enters_phone, len(model.phones))

    def to_json(self) -> dict[str, Any]:
        """As lists."""
        return {"t2phone": self.t2phone.tolist(), "enters_phone": self.enters_phone.astype(int).tolist()}

    def segments(self, transition_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Phones of a path (num_frames,): their indexes and their first frames, both (num_segments,) int64."""
        first = np.flatnonzero(self.enters_phone[transition_ids])
        return self.t2phone[transition_ids[first]], first


@dataclass(frozen=True)
class WordFrames:
    """A word and its frames, from `begin` up to but without `end`; silence around it is not part of it."""

    word: str
    begin: int
    end: int


def word_frames(
    words: Sequence[str],
    transition_ids: np.ndarray,
    lang: Lang | ImportedLang,
    table: PhoneTable,
    complete: bool = True,
) -> list[WordFrames]:
    """Frames of each of `words`, in order, on the path that they were decoded on.

    transition_ids: (num_frames,), from a graph made with reorder. complete: whether the path came to its end; if not,
    its last word may be cut off, and phones may follow of a word that was not yet put out.
    Raises AsrKdError if the phones of the path are not those of the words.
    """
    indexes, first = table.segments(transition_ids)
    phones = [lang.phones[index] for index in indexes]
    borders = [*first.tolist(), len(transition_ids)]
    # ends[i]: position behind word i → position of its first phone and position behind the word before it.
    ends: list[dict[int, tuple[int, int]]] = []
    behind = [0]
    for number, word in enumerate(words):
        may_be_cut = not complete and number == len(words) - 1
        found: dict[int, tuple[int, int]] = {}
        for before in behind:
            for start in _starts(lang, phones, before):
                for length in _matches(lang, word, phones[start:], may_be_cut):
                    found.setdefault(start + length, (start, before))
        ends.append(found)
        behind = sorted(found, reverse=True)
    last = [end for end in behind if not complete or len(phones) in _starts(lang, phones, end)]
    if not last:
        raise AsrKdError(f"the decoded words {' '.join(words)!r} are not those of the decoded phones")
    spans, end = [], last[0]
    for word, found in zip(reversed(words), reversed(ends), strict=True):
        start, before = found[end]
        spans.append(WordFrames(word, borders[start], borders[end]))
        end = before
    return spans[::-1]


def _starts(lang: Lang | ImportedLang, phones: Sequence[str], position: int) -> list[int]:
    """Where the next word can begin: here, or behind a silence."""
    at_silence = position < len(phones) and [phones[position]] == lang.silence_phones[:1]
    return [position, position + 1] if at_silence else [position]


def _matches(lang: Lang | ImportedLang, word: str, phones: Sequence[str], may_be_cut: bool) -> list[int]:
    """Numbers of phones by which `phones` begins with a pronunciation of `word`, or is the beginning of one."""
    lengths = []
    for pronunciation in lang.lexicon.entries[word]:
        wanted = list(lang.positioned(pronunciation))
        if phones[: len(wanted)] == wanted:
            lengths.append(len(wanted))
        elif may_be_cut and phones and wanted[: len(phones)] == phones:
            lengths.append(len(phones))
    return lengths
