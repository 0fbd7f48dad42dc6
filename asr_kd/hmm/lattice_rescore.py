"""Another language model on a lattice: composition, with the old model's share taken off where it is known.

What Kaldi's lattice-lmrescore does twice, with the old model at scale −1 and the new one at 1, is done here at once.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lattice import Lattice

MAX_ARCS = 5_000_000  # of a composed lattice


class LanguageModel(Protocol):
    """Costs (−ln probability) of words one after the other; states are told apart by equality."""

    @property
    def start(self) -> Hashable:
        """Before the first word."""

    def score(self, state: Any, word: str) -> tuple[float, Hashable]:
        """Cost of a word and the state behind it; infinite for a word that cannot be said."""

    def final(self, state: Any) -> float:
        """Cost of ending here."""


class NoModel:
    """Nothing: costs 0 everywhere."""

    start = None

    def score(self, state: None, word: str) -> tuple[float, None]:
        return 0.0, None

    def final(self, state: None) -> float:
        return 0.0


@dataclass(frozen=True)
class WordLoop:
    """The word loop that a graph was made with; probs: of each word, the rest being that of the end.

    Where they leave nothing, the end is free, as in the uniform loop.
    """

    probs: dict[str, float]

    start = None

    @classmethod
    def of_graph(cls, graph: Graph) -> "WordLoop":
        """Raises AsrKdError for a graph over something else."""
        if not graph.unigram:
            raise AsrKdError("the graph is over no loop of words: name the language model that it was made with")
        return cls(graph.unigram)

    def score(self, state: None, word: str) -> tuple[float, None]:
        prob = self.probs.get(word, 0.0)
        return (-math.log(prob) if prob > 0 else math.inf), None

    def final(self, state: None) -> float:
        return self._end

    @cached_property
    def _end(self) -> float:
        rest = 1.0 - math.fsum(self.probs.values())
        return -math.log(rest) if rest > 1e-9 else 0.0


class BackoffModel:
    """An asr_kd.lm.ngram.NgramModel word by word; a state is the longest history that the model knows, as word ids."""

    def __init__(self, model: Any) -> None:
        from asr_kd.lm.ngram import BOS, EOS, UNK

        self._model, self._eos = model, model.word_id[EOS]
        self._unknown = model.word_id.get(UNK)
        self._forbidden = {BOS, EOS}
        self.start = self._known((model.word_id[BOS],))
        self._scores: dict[tuple, tuple[float, tuple]] = {}

    def __contains__(self, word: str) -> bool:
        """Whether the model has the word itself, not only an <unk> for it."""
        return word not in self._forbidden and word in self._model.word_id

    def score(self, state: tuple[int, ...], word: str) -> tuple[float, tuple[int, ...]]:
        word_id = None if word in self._forbidden else self._model.word_id.get(word, self._unknown)
        if word_id is None:
            return math.inf, ()
        return self._after(state, word_id)

    def final(self, state: tuple[int, ...]) -> float:
        return self._after(state, self._eos)[0]

    def _after(self, state: tuple[int, ...], word_id: int) -> tuple[float, tuple[int, ...]]:
        key = (state, word_id)
        if key not in self._scores:
            ngram = (*state, word_id)
            log_prob = float(self._model.log_probs(np.array([ngram]))[0])
            self._scores[key] = (-math.log(10) * log_prob, self._known(ngram))
        return self._scores[key]

    def _known(self, history: tuple[int, ...]) -> tuple[int, ...]:
        """The longest end of `history` that n-grams can go on from."""
        history = history[max(0, len(history) - self._model.order + 1) :]
        while history and self._model.find(np.array([history]))[0] < 0:
            history = history[1:]
        return history


def rescore(
    lattice: Lattice, words: Sequence[str], new: LanguageModel, old: LanguageModel | None = None, scale: float = 1.0
) -> Lattice:
    """The lattice with scale · (cost under `new` − cost under `old`) added to its graph costs.

    words: names by word id − 1. States are split by what the models remember, so that every path gets exactly its
    words' cost; a determinised lattice stays so. Word sequences that `new` cannot say are left out.
    Raises AsrKdError where none is left, for a word that `old` cannot say, and where the lattice grows beyond MAX_ARCS.
    """
    old = old or NoModel()
    end = lattice.num_states - 1
    numbers = {(0, new.start, old.start): 1}
    waiting = [(0, new.start, old.start)]
    rows: list[tuple[int, int, int, float, float, bytes]] = []
    first_arc, targets, labels = lattice.first_arc.tolist(), lattice.target.tolist(), lattice.word.tolist()
    while waiting:
        key = waiting.pop()
        state, of_new, of_old = key
        for arc in range(first_arc[state], first_arc[state + 1]):
            target, word, name = targets[arc], labels[arc], ""
            if word:
                name = _name(words, word)
                cost, next_new = new.score(of_new, name)
                taken, next_old = old.score(of_old, name)
            elif target == end:
                cost, taken = new.final(of_new), old.final(of_old)
            else:
                cost, next_new, taken, next_old = 0.0, of_new, 0.0, of_old
            if math.isinf(taken):
                raise AsrKdError(f"the old language model cannot say {name or 'the end'} after these words")
            if math.isinf(cost):
                continue
            number = 0
            if target != end:
                following = (target, next_new, next_old)
                if following not in numbers:
                    numbers[following] = len(numbers) + 1
                    waiting.append(following)
                number = numbers[following]
            graph = float(lattice.graph[arc]) + scale * (cost - taken)
            rows.append((numbers[key], number, word, graph, float(lattice.acoustic[arc]), lattice.tids[arc]))
        if len(rows) > MAX_ARCS:
            raise AsrKdError(f"the lattice grows beyond {MAX_ARCS} arcs with this language model; prune it first")
    if not any(target == 0 for _, target, *_ in rows):
        raise AsrKdError("the language model can say none of the lattice's word sequences")
    return Lattice.from_arcs(1, 0, *zip(*rows, strict=True))


def _name(words: Sequence[str], word: int) -> str:
    if not 0 < word <= len(words):
        raise AsrKdError(
            f"the lattice has a word {word}, but the graph only {len(words)} words; is it of another graph?"
        )
    return words[word - 1]
