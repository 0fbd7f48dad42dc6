"""A back-off n-gram model as sorted arrays, and the probability that it gives to any word after any history.

The n-grams of an order form a trie with the order below: each is the row of its first words there, and its last word.
So a million n-grams are looked up by a few binary searches over integers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
# SRILM's log10 of zero: what the begin of a sentence has, which is a history but never a word.
LOG_ZERO = -99.0


@dataclass(frozen=True)
class Level:
    """All n-grams of one order, in the order of (prefix, word), each once.

    prefix: row of the first n − 1 words in the level below (0 for unigrams, which are in the order of word ids); word:
    id of the last; log_prob, backoff: log10 of the word's probability, and of the factor for what is not listed after
    these n words. All (num_ngrams,).
    """

    prefix: np.ndarray
    word: np.ndarray
    log_prob: np.ndarray
    backoff: np.ndarray

    def __len__(self) -> int:
        return len(self.word)


@dataclass(frozen=True)
class NgramModel:
    """words: by id; levels: of orders 1, 2, …; the first lists every word once."""

    words: Sequence[str]
    levels: Sequence[Level]

    @classmethod
    def of(cls, words: Sequence[str], levels: Sequence[Level]) -> "NgramModel":
        """A model of `levels`, of which the highest may be empty: its order is that of the longest n-gram."""
        return cls(words, [level for level in levels if len(level)])

    @property
    def order(self) -> int:
        return len(self.levels)

    @cached_property
    def word_id(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def keys(self) -> list[np.ndarray]:
        """prefix · num_words + word of each level, sorted: what a lookup searches."""
        return [level.prefix * len(self.words) + level.word for level in self.levels]

    def find(self, ngrams: np.ndarray) -> np.ndarray:
        """Rows of ngrams (num, n ≥ 1) of word ids in their level, (num,) int64; −1 for one that is not listed."""
        rows = np.asarray(ngrams[:, 0], dtype=np.int64)
        for level, words in enumerate(ngrams[:, 1:].T, 1):
            rows = self._find_after(level, rows, words)
        return rows

    def _find_after(self, level: int, prefix: np.ndarray, word: np.ndarray) -> np.ndarray:
        if level >= self.order or not len(self.keys[level]):
            return np.full(len(prefix), -1, dtype=np.int64)
        keys, wanted = self.keys[level], prefix * len(self.words) + word
        rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((prefix >= 0) & (word >= 0) & (keys[rows] == wanted), rows, -1)

    def ngrams(self, order: int) -> np.ndarray:
        """Word ids of all n-grams of an order, (num_ngrams, order) int64, in the order of their level."""
        columns, rows = [], np.arange(len(self.levels[order - 1]))
        for level in reversed(self.levels[:order]):
            columns.append(level.word[rows])
            rows = level.prefix[rows]
        return np.stack(columns[::-1], axis=1)

    def log_probs(self, ngrams: np.ndarray) -> np.ndarray:
        """log10 P(last word | words before it) of ngrams (num, n) of word ids, (num,) float64.

        The last word must be one of the model's; a history may begin with −1, which stands for no word that it knows.
        """
        result, width = np.zeros(len(ngrams)), ngrams.shape[1]
        unknown = np.arange(len(ngrams))
        for begin in range(max(0, width - self.order), width):
            length = width - begin
            rows = self.find(ngrams[unknown, begin:])
            listed = rows >= 0
            result[unknown[listed]] += self.levels[length - 1].log_prob[rows[listed]]
            unknown = unknown[~listed]
            if length > 1:
                history = self.find(ngrams[unknown, begin:-1])
                known = history >= 0
                result[unknown[known]] += self.levels[length - 2].backoff[history[known]]
        return result

    def log_probs_of_all(self, history: Sequence[int]) -> np.ndarray:
        """log10 P(word | history) of every word, (num_words,); that of the begin of a sentence is no probability."""
        everything = np.arange(len(self.words))
        columns = [np.full(len(everything), word, dtype=np.int64) for word in history]
        return self.log_probs(np.stack([*columns, everything], axis=1))
