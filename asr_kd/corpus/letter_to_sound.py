"""Pronunciations from spelling, learned from a dictionary: for words that the dictionary lacks.

Letters are aligned with phones by EM, none to two phones a letter, all alignments of a word being equally likely at
first. Then each letter in a word takes the phones that were most frequent in the widest context that was seen: a
decision tree whose questions are always asked in the same order, the nearest neighbours first (IGTree; Daelemans & van
den Bosch, *Language-independent data-oriented grapheme-to-phoneme conversion*, 1997).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError

# The questions: a letter, then with it those at these places beside it, one more at a time.
PLACES = (0, 1, -1, 2, -2, 3, -3, 4, -4)
LONGEST = 30  # letters; what is longer is no word, and its probabilities would leave what float64 holds
EM_PASSES, EM_WORDS = 4, 20_000  # more of either align no better
_BITS = 6  # of a letter in the key of a context
Pronunciation = tuple[str, ...]


@dataclass(frozen=True)
class LetterToSound:
    """Phones of letters in context.

    letters: number of each letter, from 1 (0 is the edge of a word); chunks: what a letter can be, none to two phones;
    answers: for each of PLACES, the key of a context → index into chunks, where it differs from what the narrower
    contexts say.
    """

    letters: dict[str, int]
    chunks: list[Pronunciation]
    answers: list[dict[int, int]]

    def knows(self, word: str) -> bool:
        """Whether every letter of `word` was in the dictionary."""
        return set(word) <= self.letters.keys()

    def pronounce(self, word: str) -> Pronunciation:
        """The phones of a word; empty where no letter of it sounds. Raises AsrKdError for an unknown letter."""
        if not self.knows(word):
            raise AsrKdError(f"{word!r} cannot be pronounced: it has a character that is in no word of the dictionary")
        windows = _windows(np.array([[self.letters[letter] for letter in word]], dtype=np.int64))
        chosen = [self.answers[0][key] for key in windows[:, 0].tolist()]
        for answers, keys in zip(self.answers[1:], _keys(windows)[1:], strict=True):
            chosen = [answers.get(key, before) for key, before in zip(keys.tolist(), chosen, strict=True)]
        return tuple(phone for index in chosen for phone in self.chunks[index])


def learn(dictionary: Iterable[tuple[str, Sequence[str]]]) -> LetterToSound:
    """Learn from pairs (word, phones); deterministic.

    Words with more than two phones a letter (abbreviations) teach nothing. Raises AsrKdError where none is left.
    """
    pairs = [(word, tuple(p)) for word, p in dictionary if 0 < len(p) <= 2 * len(word) and len(word) <= LONGEST]
    if not pairs:
        raise AsrKdError("there is no word to learn pronunciations from")
    letters = {letter: number for number, letter in enumerate(sorted(set("".join(w for w, _ in pairs))), 1)}
    phones = sorted({phone for _, p in pairs for phone in p})
    number = {phone: index for index, phone in enumerate(phones, 1)}
    groups = list(_groups(pairs, letters, number))
    every = max(1, len(pairs) // EM_WORDS)
    base = len(phones) + 1  # a chunk is the number first · base + second, 0 for none
    prob = np.ones((len(letters) + 1, base * base))
    for _ in range(EM_PASSES):
        counts = np.zeros_like(prob)
        for spelling, sound in groups:
            _count(spelling[::every], sound[::every], base, prob, counts)
        # So that what the words of these passes lack is not impossible.
        prob = (counts + 1e-6) / (counts + 1e-6).sum(axis=1, keepdims=True)
    windows = np.concatenate([_windows(spelling) for spelling, _ in groups])
    found = np.concatenate([_best(spelling, sound, base, prob).ravel() for spelling, sound in groups])
    codes, chunk = np.unique(found, return_inverse=True)
    names = [tuple(phones[part - 1] for part in divmod(code, base) if part) for code in codes.tolist()]
    return LetterToSound(letters, names, _grow(windows, chunk))


def _groups(
    pairs: Sequence[tuple[str, Pronunciation]], letters: dict[str, int], number: dict[str, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Words of as many letters and phones, together: (num_words, num_letters) and (num_words, num_phones)."""
    shapes: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {}
    for word, phones in pairs:
        row = ([letters[letter] for letter in word], [number[phone] for phone in phones])
        shapes.setdefault((len(word), len(phones)), []).append(row)
    for _, rows in sorted(shapes.items()):
        yield tuple(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))


def _arcs(num_letters: int, num_phones: int) -> Iterator[tuple[int, int, int]]:
    """(letters before, phones before, phones of the next letter) of all steps of all alignments, in order."""
    for i in range(num_letters):
        rest = num_letters - i - 1
        for j in range(min(num_phones, 2 * i) + 1):
            for width in range(3):
                if j + width <= num_phones <= j + width + 2 * rest:
                    yield i, j, width


def _chunk(sound: np.ndarray, j: int, width: int, base: int) -> np.ndarray:
    """(num_words,) numbers of the chunks of `width` phones that begin at phone j."""
    if width == 0:
        return np.zeros(len(sound), dtype=np.int64)
    return sound[:, j] * base + (sound[:, j + 1] if width == 2 else 0)


def _count(spelling: np.ndarray, sound: np.ndarray, base: int, prob: np.ndarray, counts: np.ndarray) -> None:
    """Add the expected counts of letters and chunks in these words (forward and backward sums) to `counts`."""
    num_words, num_letters = spelling.shape
    num_phones = sound.shape[1]
    arcs = [(i, j, w, _chunk(sound, j, w, base)) for i, j, w in _arcs(num_letters, num_phones)]
    forward, backward = (np.zeros((num_letters + 1, num_phones + 1, num_words)) for _ in range(2))
    forward[0, 0] = backward[num_letters, num_phones] = 1.0
    for i, j, width, chunk in arcs:
        forward[i + 1, j + width] += forward[i, j] * prob[spelling[:, i], chunk]
    for i, j, width, chunk in reversed(arcs):
        backward[i, j] += backward[i + 1, j + width] * prob[spelling[:, i], chunk]
    total = np.maximum(backward[0, 0], 1e-300)
    for i, j, width, chunk in arcs:
        share = forward[i, j] * prob[spelling[:, i], chunk] * backward[i + 1, j + width] / total
        np.add.at(counts, (spelling[:, i], chunk), share)


def _best(spelling: np.ndarray, sound: np.ndarray, base: int, prob: np.ndarray) -> np.ndarray:
    """(num_words, num_letters) chunks of the most likely alignment of each word."""
    num_words, num_letters = spelling.shape
    num_phones = sound.shape[1]
    score = np.full((num_letters + 1, num_phones + 1, num_words), -np.inf)
    width_to = np.zeros((num_letters + 1, num_phones + 1, num_words), dtype=np.int64)
    score[0, 0] = 0.0
    with np.errstate(divide="ignore"):
        log_prob = np.log(prob)
    for i, j, width in _arcs(num_letters, num_phones):
        new = score[i, j] + log_prob[spelling[:, i], _chunk(sound, j, width, base)]
        better = new > score[i + 1, j + width]
        score[i + 1, j + width][better] = new[better]
        width_to[i + 1, j + width][better] = width
    chunks = np.zeros((num_words, num_letters), dtype=np.int64)
    words, at = np.arange(num_words), np.full(num_words, num_phones)
    padded = np.pad(sound, ((0, 0), (0, 2)))
    for i in reversed(range(num_letters)):
        width = width_to[i + 1, at, words]
        at = at - width
        first, second = padded[words, at], padded[words, at + 1]
        chunks[:, i] = np.where(width == 0, 0, first * base + np.where(width == 2, second, 0))
    return chunks


def _windows(spelling: np.ndarray) -> np.ndarray:
    """(num_words · num_letters, len(PLACES)) letters around each letter; 0 beyond the word."""
    margin = max(map(abs, PLACES))
    padded = np.pad(spelling, ((0, 0), (margin, margin)))
    columns = [padded[:, margin + place : margin + place + spelling.shape[1]] for place in PLACES]
    return np.stack(columns, axis=-1).reshape(-1, len(PLACES))


def _keys(windows: np.ndarray) -> list[np.ndarray]:
    """For each of PLACES the number of the context that ends with it."""
    shifted = windows << (_BITS * np.arange(len(PLACES)))
    return list(np.cumsum(shifted, axis=1).T)


def _grow(windows: np.ndarray, chunk: np.ndarray) -> list[dict[int, int]]:
    """What wider contexts say where it differs; a context is widened while its letters are not all the same chunk."""
    answers = []
    num_chunks = int(chunk.max()) + 1
    says = np.full(len(chunk), -1)
    open_rows = np.arange(len(chunk))
    for keys in _keys(windows):
        contexts, context = np.unique(keys[open_rows], return_inverse=True)
        votes, count = np.unique(context * num_chunks + chunk[open_rows], return_counts=True)
        # The most frequent chunk of each context comes last, of equal ones that with the smallest number.
        order = np.lexsort((-votes, count, votes // num_chunks))
        last = np.flatnonzero(np.diff(votes[order] // num_chunks, append=len(contexts)))
        winner = votes[order][last] % num_chunks
        is_pure = np.bincount(votes // num_chunks, minlength=len(contexts)) == 1
        first_row = np.unique(context, return_index=True)[1]
        differs = winner != says[open_rows][first_row]
        answers.append(dict(zip(contexts[differs].tolist(), winner[differs].tolist(), strict=True)))
        says[open_rows] = winner[context]
        open_rows = open_rows[~is_pure[context]]
    return answers
