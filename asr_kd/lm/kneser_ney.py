"""Interpolated modified Kneser-Ney n-grams (Chen & Goodman 1998, "An empirical study of smoothing techniques").

Sentences begin with one <s>, which is a history and never a word, and end with </s>, as in lmplz and SRILM. Orders
below the highest count the words that precede an n-gram, not its occurrences; n-grams that begin with <s>, which
nothing can precede, keep their occurrences. Unigrams are interpolated with a uniform distribution over all words, </s>
and <unk> included: what lmplz does by default.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asr_kd.corpus.lexicon import UNKNOWN_WORDS
from asr_kd.errors import AsrKdError
from asr_kd.lm.ngram import BOS, EOS, LOG_ZERO, UNK, Level, NgramModel

# What lmplz --discount_fallback takes where counts of counts say nothing.
FALLBACK = (0.5, 1.0, 1.5)
MAX_ORDER = 10


@dataclass(frozen=True)
class Counts:
    """The n-grams of one order in a text.

    prefix, word: as in Level; suffix: row of the last n − 1 words in the level below; first: id of the first word;
    count: occurrences. All (num_ngrams,) int64.
    """

    prefix: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    first: np.ndarray
    count: np.ndarray


def encode(
    sentences: Iterable[Sequence[str]], vocabulary: Iterable[str] | None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(words, tokens, place): the words by id, all sentences in a row with <s> and </s>, and the place of each token in
    its sentence, from 0; both (num_tokens,) int64.

    vocabulary: the words that there are; every other becomes the first of UNKNOWN_WORDS that it has, or <unk>.
    Raises AsrKdError where there is no sentence.
    """
    ids = {UNK: 0, BOS: 1, EOS: 2}
    if vocabulary is not None:
        for word in sorted(set(vocabulary) - ids.keys()):
            ids[word] = len(ids)
        unknown = next((ids[word] for word in UNKNOWN_WORDS if word in ids and word != UNK), ids[UNK])
    tokens: list[int] = []
    lengths: list[int] = []
    for words in sentences:
        tokens.append(ids[BOS])
        if vocabulary is None:
            tokens += [ids.setdefault(word, len(ids)) for word in words]
        else:
            tokens += [ids.get(word, unknown) for word in words]
        tokens.append(ids[EOS])
        lengths.append(len(words) + 2)
    if not lengths:
        raise AsrKdError("a language model needs at least one sentence")
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    return list(ids), np.array(tokens, dtype=np.int64), np.arange(len(tokens)) - starts


def count_ngrams(tokens: np.ndarray, place: np.ndarray, num_words: int, order: int) -> list[Counts]:
    """Counts of orders 1 to `order` of what `encode` gives; no n-gram reaches over the end of a sentence."""
    everything = np.arange(num_words)
    occurrences = np.bincount(tokens[place > 0], minlength=num_words)
    levels = [Counts(np.zeros(num_words, np.int64), everything, np.zeros(num_words, np.int64), everything, occurrences)]
    rows = tokens  # of the n-gram that ends at each token
    for n in range(2, order + 1):
        ends = np.flatnonzero(place >= n - 1)
        keys = rows[ends - 1] * num_words + tokens[ends]
        unique, at, inverse, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        prefix, word = np.divmod(unique, num_words)
        levels.append(Counts(prefix, word, rows[ends[at]], levels[-1].first[prefix], count))
        rows = np.full(len(tokens), -1, dtype=np.int64)
        rows[ends] = inverse
    return levels


def adjusted_counts(levels: Sequence[Counts], bos: int) -> list[np.ndarray]:
    """Kneser-Ney's counts of every order: the different words before an n-gram, below the highest order."""
    adjusted = [
        np.where(here.first == bos, here.count, np.bincount(above.suffix, minlength=len(here.count)))
        for here, above in itertools.pairwise(levels)
    ]
    return [*adjusted, levels[-1].count]


def discounts(counts: np.ndarray) -> np.ndarray | None:
    """D of counts 0, 1, 2 and 3 or more, (4,), by equation 26 of Chen & Goodman; None where the counts of counts allow
    none: no n-gram of count 1, 2 or 3, or a discount that is not above zero and at most its count.
    """
    num_with = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if not num_with[1:4].all():
        return None
    y = num_with[1] / (num_with[1] + 2 * num_with[2])
    k = np.arange(1, 4)
    found = k - (k + 1) * y * num_with[2:5] / num_with[1:4]
    return np.array([0.0, *found]) if ((found > 0) & (found <= k)).all() else None


def estimate(
    sentences: Iterable[Sequence[str]],
    order: int,
    vocabulary: Iterable[str] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> NgramModel:
    """The model of some sentences, each a sequence of words without <s> and </s>.

    vocabulary: its words, those included that the text lacks; None: those of the text. Where counts of counts give an
    order no discounts, as in small texts, it takes FALLBACK, and `log` gets a line.
    Raises AsrKdError for an order outside 1 … MAX_ORDER, and where there is no sentence.
    """
    if not 1 <= order <= MAX_ORDER:
        raise AsrKdError(f"an n-gram order of {order} is not between 1 and {MAX_ORDER}")
    words, tokens, place = encode(sentences, vocabulary)
    bos = words.index(BOS)
    levels = count_ngrams(tokens, place, len(words), order)
    estimated: list[Level] = []
    lower = np.array([1.0 / (len(words) - 1)])  # of all words but <s>
    for n, (here, counts) in enumerate(zip(levels, adjusted_counts(levels, bos), strict=True), 1):
        found = discounts(counts)
        if found is None:
            log(f"{n}-grams: too few counts to estimate discounts, {', '.join(map(str, FALLBACK))} are taken instead")
            found = np.array([0.0, *FALLBACK])
        discount = np.minimum(found[np.minimum(counts, 3)], counts)
        num_histories = len(estimated[-1]) if estimated else 1
        total = np.maximum(np.bincount(here.prefix, counts, minlength=num_histories), 1)
        gamma = np.bincount(here.prefix, discount, minlength=num_histories) / total
        probs = (counts - discount) / total[here.prefix] + gamma[here.prefix] * lower[here.suffix]
        if estimated:
            estimated[-1].backoff[gamma > 0] = np.log10(gamma[gamma > 0])
        estimated.append(Level(here.prefix, here.word, np.log10(probs), np.zeros(len(probs))))
        lower = probs
    estimated[0].log_prob[bos] = LOG_ZERO
    return NgramModel.of(words, estimated)
