"""Perplexity of a text under a model, words that the model lacks counted apart, as SRILM's ngram -ppl does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.lm.ngram import BOS, EOS, UNK, NgramModel


@dataclass(frozen=True)
class Perplexity:
    """num_words: without the ends of sentences; num_oovs: of them, those that the model lacks, which have no
    probability but count in histories (as <unk> where there is one); log10_prob: of all others and the ends.
    """

    num_sentences: int
    num_words: int
    num_oovs: int
    log10_prob: float

    @property
    def perplexity(self) -> float:
        """Of words and ends of sentences."""
        return 10.0 ** (-self.log10_prob / (self.num_words - self.num_oovs + self.num_sentences))

    @property
    def per_word(self) -> float:
        """The same, shared out among words alone (SRILM's ppl1); infinite where there is none."""
        known = self.num_words - self.num_oovs
        return 10.0 ** (-self.log10_prob / known) if known else float("inf")


def measure(model: NgramModel, sentences: Iterable[Sequence[str]]) -> Perplexity:
    """Of sentences, each a sequence of words; raises AsrKdError where there is none, or one cannot be at all."""
    ids, bos, eos = model.word_id, model.word_id[BOS], model.word_id[EOS]
    unknown = ids.get(UNK, -1)
    tokens, known, lengths = [], [], []
    for words in sentences:
        found = [ids.get(word, unknown) for word in words]
        tokens += [bos, *found, eos]
        known += [False, *(index != unknown for index in found), True]
        lengths.append(len(found) + 2)
    if not lengths:
        raise AsrKdError("there is no sentence to measure")
    place = np.arange(len(tokens)) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    stream, counted = np.array(tokens, dtype=np.int64), np.flatnonzero(known)
    history = np.arange(model.order)[::-1]
    windows = np.where(history <= place[counted, None], stream[counted[:, None] - history], -1)
    total = float(model.log_probs(windows).sum())
    num_words = len(tokens) - 2 * len(lengths)
    return Perplexity(len(lengths), num_words, num_words + len(lengths) - len(counted), total)
