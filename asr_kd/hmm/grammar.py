"""Grammars G: which words may follow each other, and at what cost. A loop of words, or any back-off n-gram.

An n-gram becomes what Kaldi's arpa2fst --disambig-symbol=#0 makes of it: a state for every history, a final cost for
the end of a sentence, and back-off arcs that read #0, so that L∘G can be determinised.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.lang import Lang
from asr_kd.lm.ngram import BOS, EOS, UNK, NgramModel

LN10 = math.log(10)
ROOT = 0


def word_loop(lang: Lang, transcripts: Iterable[Sequence[str]] | None) -> tuple[dict[str, float], float]:
    """Costs (−log probability) of each word, and of the end.

    From `transcripts`: relative frequencies with one added to each word, the end counted once an utterance.
    Without: words uniform and the end free. Raises AsrKdError for a word that the lexicon lacks.
    """
    if transcripts is None:
        return {word: math.log(len(lang.words)) for word in lang.words}, 0.0
    counts: Counter = Counter(lang.words)
    ends = 1
    for index, words in enumerate(transcripts):
        lang.word_ids(words, f"transcript {index + 1}")
        counts.update(words)
        ends += 1
    total = sum(counts.values()) + ends
    return {word: -math.log(counts[word] / total) for word in lang.words}, -math.log(ends / total)


def loop_arcs(lang: Lang, costs: dict[str, float], end: float) -> GraphArcs:
    """G of one state, from what word_loop gives."""
    labels = np.array([lang.word_id[word] for word in costs])
    zeros = np.zeros(len(labels), dtype=np.int64)
    return GraphArcs(ROOT, zeros, zeros, labels, labels, np.array(list(costs.values())), np.array([end]))


def ngram_arcs(lang: Lang, model: NgramModel, log: Callable[[str], None] = lambda line: None) -> GraphArcs:
    """G of a back-off model, over the words of the lexicon; #0 is lang.backoff_word.

    Its <unk> is the lexicon's unknown word, where the lexicon has one and the model has not. Words that the lexicon
    lacks are left out with all their n-grams; `log` gets their number. A history after which nothing is listed has no
    state: its back-off weight stands on the arcs that lead there. Raises AsrKdError where no word is left.
    """
    return _Builder(lang, model, log).arcs()


@dataclass
class _Builder:
    """Levels count from 0, and all lists have one array for each level below the highest, whose n-grams are histories.

    own: rows of those that have a state. states, costs: where a path goes that has just read an n-gram: to the state of
    the longest history that has one, at the log10 of the back-off weights on the way.
    """

    lang: Lang
    model: NgramModel
    log: Callable[[str], None]
    own: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    costs: list[np.ndarray] = field(default_factory=list)

    def arcs(self) -> GraphArcs:
        labels = self._labels()
        bos, eos = self.model.word_id[BOS], self.model.word_id[EOS]
        possible = self._possible(labels, bos, eos)
        final = np.full(self._number_states(possible, bos), np.inf)
        columns = [self._backoff_arcs(level) for level in range(len(self.states))]
        for level, here in enumerate(self.model.levels):
            rows = np.flatnonzero(possible[level] & (here.word != bos))
            source = self.states[level - 1][here.prefix[rows]] if level else np.full(len(rows), ROOT)
            ends = here.word[rows] == eos
            final[source[ends]] = -LN10 * here.log_prob[rows[ends]]
            rows, source = rows[~ends], source[~ends]
            target, cost = self._after(level, rows)
            words = labels[here.word[rows]]
            columns.append((source, target, words, words, here.log_prob[rows] + cost))
        source, target, ilabel, olabel, log_prob = (np.concatenate(c) for c in zip(*columns, strict=True))
        order = np.lexsort((ilabel, source))
        columns = (column[order] for column in (source, target, ilabel, olabel, -LN10 * log_prob))
        return GraphArcs(int(self.states[0][bos]) if self.states else ROOT, *columns, final)

    def _backoff_arcs(self, level: int) -> tuple[np.ndarray, ...]:
        """Source, target, ilabel, olabel and log10 of the arcs out of the histories that a level's n-grams are."""
        own = self.own[level]
        target, cost = self._shorter(level + 1, own)
        mark, nothing = np.full(len(own), self.lang.backoff_word), np.zeros(len(own), dtype=np.int64)
        return self.states[level][own], target, mark, nothing, self.model.levels[level].backoff[own] + cost

    def _labels(self) -> np.ndarray:
        """Word ids of the lexicon by those of the model, 0 where it lacks a word."""
        words, known = self.model.words, self.lang.word_id
        unknown = self.lang.lexicon.unknown_word
        labels = np.array([known.get(word, 0) for word in words])
        if UNK in self.model.word_id and unknown is not None and unknown not in self.model.word_id:
            labels[self.model.word_id[UNK]] = known[unknown]
        if not labels.any():
            raise AsrKdError("the language model and the lexicon have no word in common")
        missing = [word for word, label in zip(words, labels, strict=True) if not label and word not in (BOS, EOS, UNK)]
        if missing:
            some = ", ".join(missing[:5])
            self.log(f"{len(missing)} of {len(words)} words of the language model are not in the lexicon ({some} …)")
        if absent := len(self.lang.words) - len(np.unique(labels[labels > 0])):
            self.log(f"{absent} of {len(self.lang.words)} words of the lexicon are not in the language model")
        return labels

    def _possible(self, labels: np.ndarray, bos: int, eos: int) -> list[np.ndarray]:
        """Which n-grams of each level have only words that can be said."""
        may_end = labels > 0
        may_end[eos] = True
        first = may_end.copy()
        first[bos] = True
        possible = [first]
        for here in self.model.levels[1:]:
            possible.append(possible[-1][here.prefix] & may_end[here.word])
        return possible

    def _number_states(self, possible: list[np.ndarray], bos: int) -> int:
        num_states = 1
        for level, here in enumerate(self.model.levels[:-1]):
            continued = np.zeros(len(here), dtype=bool)
            continued[self.model.levels[level + 1].prefix[possible[level + 1]]] = True
            if level == 0:
                continued[bos] = True
            states, costs = np.zeros(len(here), np.int64), np.zeros(len(here))
            others = np.flatnonzero(~continued)
            states[others], costs[others] = self._shorter(level + 1, others)
            costs[others] += here.backoff[others]
            self.own.append(np.flatnonzero(continued))
            states[self.own[-1]] = num_states + np.arange(len(self.own[-1]))
            num_states += len(self.own[-1])
            self.states.append(states)
            self.costs.append(costs)
        return num_states

    def _after(self, level: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State and log10 after having read n-grams of a level."""
        if level < len(self.states):
            return self.states[level][rows], self.costs[level][rows]
        return self._shorter(level + 1, rows)

    def _shorter(self, order: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State and log10 after the longest listed history that n-grams of an order, given by rows, end in."""
        states, costs = np.full(len(rows), ROOT), np.zeros(len(rows))
        pending, ngrams = np.arange(len(rows)), self.model.ngrams(order)[rows]
        for begin in range(1, order):
            found = self.model.find(ngrams[pending, begin:])
            hit, level = found >= 0, order - begin - 1
            states[pending[hit]] = self.states[level][found[hit]]
            costs[pending[hit]] = self.costs[level][found[hit]]
            pending = pending[~hit]
        return states, costs
