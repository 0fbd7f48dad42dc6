"""Text that language models are made of and measured on: transcripts or plain files, as words or as letters."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from asr_kd.corpus.datadir import read_originals, read_words
from asr_kd.corpus.letters import letters_of
from asr_kd.errors import AsrKdError
from asr_kd.lm.arpa import open_lines
from asr_kd.lm.ngram import BOS, EOS

UNITS = ("word", "char")
# Stands for the blank between words among letters: a field of an ARPA file has none.
SPACE = "<space>"


def read_transcripts(data_dir: str | Path) -> list[tuple[str, ...]]:
    """Words of each utterance of a Kaldi data directory, in its order, by its `text` and utt2uniq alone.

    Perturbed copies (utt2uniq) count once: three times the same text has no n-gram that is seen once.
    """
    original_of = read_originals(data_dir)
    sentences: dict[str, tuple[str, ...]] = {}
    for utt_id, words in read_words(data_dir).items():
        sentences.setdefault(original_of.get(utt_id, utt_id), words)
    return _checked(list(sentences.values()), f"{data_dir}/text")


def read_text(path: str | Path) -> list[tuple[str, ...]]:
    """Words of each line of a UTF-8 file, gunzipped where it is named *.gz; lines without a word are passed over.

    Raises AsrKdError, naming file and line, for what is not UTF-8, and <s> or </s>, which are never words.
    """
    sentences = []
    for number, line in enumerate(open_lines(path), 1):
        try:
            words = tuple(word.decode() for word in line.split())
        except UnicodeDecodeError as error:
            raise AsrKdError(f"{path}:{number}: is not UTF-8 ({error.reason})") from error
        if BOS in words or EOS in words:
            raise AsrKdError(
                f"{path}:{number}: holds {BOS} or {EOS}, which are put around every line anyway; remove it"
            )
        if words:
            sentences.append(words)
    return _checked(sentences, path)


def _checked(sentences: list[tuple[str, ...]], source: object) -> list[tuple[str, ...]]:
    if not sentences:
        raise AsrKdError(f"{source}: has no sentence")
    return sentences


def read_vocabulary(path: str | Path) -> list[str]:
    """The words that begin the lines of a word list, a lexicon or Kaldi's words.txt, each once.

    <eps>, <s>, </s> and #0, #1, … of words.txt are left out. Raises AsrKdError where there is no word.
    """
    words = dict.fromkeys(line.split()[0] for line in open_lines(path) if line.strip())
    try:
        known = [word.decode() for word in words]
    except UnicodeDecodeError as error:
        raise AsrKdError(f"{path}: the word {error.object!r} is not UTF-8") from error
    known = [word for word in known if word not in ("<eps>", BOS, EOS) and not (word[0] == "#" and word[1:].isdigit())]
    if not known:
        raise AsrKdError(f"{path}: has no word")
    return known


def in_units(sentences: Iterable[Sequence[str]], unit: str) -> list[Sequence[str]]:
    """The sentences as they are (`word`), or as letters with SPACE between words (`char`).

    Raises AsrKdError for another unit.
    """
    if unit not in UNITS:
        raise AsrKdError(f"unit {unit!r}: choose {' or '.join(UNITS)}")
    if unit == "word":
        return list(sentences)
    return [letters(words) for words in sentences]


def letters(words: Sequence[str]) -> list[str]:
    """The letters of words in a row, with SPACE between words."""
    return [letter for index, word in enumerate(words) for letter in ([SPACE] if index else []) + [*letters_of(word)]]
