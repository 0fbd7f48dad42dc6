"""From espeak's events to words with phones and times.

espeak's en-us phonemes are folded into phones with ARPAbet-like names: stress and length marks go, reduced and full
variants of a vowel are one phone. What lasts less than a three-state HMM takes at a 10 ms shift does not become a
phone of its own: the palatal mark (0 ms) goes; "d r" after n (17 ms of d, in "hundred") is one affricate, DR; a
linking r (15 ms) is the end of its vowel; "e l" before v (marked as one, in "twelve" alone) stays one, EH, since a
phone of its own would have next to no data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asr_kd.corpus.espeak import Speech
from asr_kd.corpus.lexicon import SILENCE_PHONE
from asr_kd.errors import AsrKdError

_PHONES = {
    **{
        "a": "AE",
        "V": "AH",
        "@": "AX",
        "E": "EH",
        "3:": "ER",
        "I": "IH",
        "I#": "IH",
        "I2": "IH",
        "i": "IY",
        "i:": "IY",
    },
    **{"aU": "AW", "aI": "AY", "eI": "EY", "i@": "IR", "o@": "OR", "O@": "OR", "O:": "AO", "oU": "OW", "u:": "UW"},
    **{"d": "D", "t#": "DX", "f": "F", "h": "HH", "k": "K", "l": "L", "m": "M", "n": "N", "r": "R", "s": "S"},
    **{"t": "T", "T": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z"},
}
_JOINED = {("D", "R"): "DR", ("EH", "L"): "EH"}
_NO_PHONE = ";"
_SILENCE_AMPLITUDE = 8  # int16: espeak's pauses and closures are 0, or the last few samples of a filter's decay
_SHORTEST_SILENCE_S = 0.03


@dataclass
class Segment:
    """A phone from sample `start` up to `end`; `word` is an index into the utterance's words, −1 in silence."""

    start: int
    end: int
    phone: str
    word: int


def label_speech(
    speech: Speech, words: Sequence[str], offsets: Sequence[int], sample_rate: int
) -> list[Segment] | None:
    """The phones of `words`, whose first characters lie at `offsets` of the text spoken; contiguous from 0 to the end.

    A pause that a phone needs before it (closure of a stop, 13 ms before a fricative) is its own, as far as it is
    silent; longer pauses that espeak marks are SIL. None where espeak joined or split words, or paused inside one.

    Raises AsrKdError for a phoneme that has no phone.
    """
    if [position for _, position in speech.words] != list(offsets):
        return None
    segments: list[Segment] = []
    for word, start, name in speech.phonemes:
        phone = _fold(name)
        if phone is None:
            continue
        if phone == SILENCE_PHONE:
            word = -1
        elif word >= 0 and (not segments or segments[-1].word != word):
            # A word's mark comes before what its first phoneme needs before it.
            start = speech.words[word][0] if not segments or segments[-1].word < 0 else start
        if segments and word >= 0 and segments[-1].word >= 0:
            start = _before_silence(speech.samples, start, segments[-1].start)
        if segments:
            segments[-1].end = start
        segments.append(Segment(start, len(speech.samples), phone, word))
    if not segments:
        return None
    segments[0].start = 0
    segments = _merge(segments, round(_SHORTEST_SILENCE_S * sample_rate))
    order = [segment.word for segment in segments if segment.word >= 0]
    pauses_inside = any(
        a.word == c.word >= 0 > b.word for a, b, c in zip(segments, segments[1:], segments[2:], strict=False)
    )
    if pauses_inside or sorted(set(order)) != list(range(len(words))) or order != sorted(order):
        return None
    return segments


def pronunciations(segments: Sequence[Segment], num_words: int) -> list[tuple[str, ...]]:
    """The phones of each of the `num_words` words."""
    phones: list[list[str]] = [[] for _ in range(num_words)]
    for segment in segments:
        if segment.word >= 0:
            phones[segment.word].append(segment.phone)
    return [tuple(word) for word in phones]


def _fold(name: str) -> str | None:
    if name.startswith("_"):
        return SILENCE_PHONE
    base = name.lstrip("',%=")
    if base == _NO_PHONE:
        return None
    if base not in _PHONES:
        raise AsrKdError(f"espeak-ng's phoneme {name} has no phone in the mini corpus, install espeakng-loader 0.2.4")
    return _PHONES[base]


def _before_silence(samples: np.ndarray, start: int, earliest: int) -> int:
    loud = np.flatnonzero(np.abs(samples[earliest:start].astype(np.int32)) > _SILENCE_AMPLITUDE)
    return earliest + int(loud[-1]) + 1 if len(loud) else start


def _merge(segments: list[Segment], shortest_silence: int) -> list[Segment]:
    merged: list[Segment] = []
    for index, segment in enumerate(segments):
        last = merged[-1] if merged else None
        ends_word = index + 1 == len(segments) or segments[index + 1].word != segment.word
        same_word = last is not None and last.word == segment.word
        if same_word and (segment.phone == SILENCE_PHONE or (segment.phone == "R" and ends_word)):
            last.end = segment.end
        elif same_word and (last.phone, segment.phone) in _JOINED and not ends_word:
            last.phone, last.end = _JOINED[last.phone, segment.phone], segment.end
        elif last and last.phone == SILENCE_PHONE and last.end - last.start < shortest_silence:
            segment.start = last.start
            merged[-1] = segment
        else:
            merged.append(segment)
    return [segment for segment in merged if segment.end > segment.start]
