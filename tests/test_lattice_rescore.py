"""Another language model on a lattice, against the sum over the words of every path."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_lattices import all_paths, best_by_words, lattices, word_graph

from asr_kd.errors import AsrKdError
from asr_kd.hmm.lattice_rescore import BackoffModel, WordLoop, rescore
from asr_kd.lm.arpa import read_arpa

WORDS = ["a", "b", "c"]


class Bigram:
    """Costs by the word before; a word that is missing cannot be said."""

    start = "<s>"

    def __init__(self, costs: dict[tuple[str, str], float]) -> None:
        self.costs = costs

    def score(self, state: str, word: str) -> tuple[float, str]:
        return self.costs.get((state, word), math.inf), word

    def final(self, state: str) -> float:
        return self.costs.get((state, "</s>"), math.inf)

    def total(self, words) -> float:
        names = ["<s>", *(WORDS[word - 1] for word in words), "</s>"]
        return sum(self.costs.get(pair, math.inf) for pair in itertools.pairwise(names))


PAIRS = [(before, word) for before in ["<s>", *WORDS] for word in [*WORDS, "</s>"]]
BIGRAMS = st.dictionaries(st.sampled_from(PAIRS), st.integers(0, 20).map(lambda n: n / 4), min_size=10)
WHOLE = st.lists(st.integers(0, 20), min_size=len(PAIRS), max_size=len(PAIRS)).map(
    lambda costs: {pair: cost / 4 for pair, cost in zip(PAIRS, costs, strict=True)}
)


@settings(max_examples=60, deadline=None)
@given(lattices(), BIGRAMS, WHOLE, st.sampled_from([1.0, 0.5]))
def test_every_word_sequence_changes_by_its_own_cost(lattice, new, old, scale):
    new, old = Bigram(new), Bigram(old)
    expected = {
        words: cost + scale * (new.total(words) - old.total(words))
        for words, cost in best_by_words(lattice, 1.0, 0.0).items()
        if math.isfinite(new.total(words))
    }
    if not expected:
        with pytest.raises(AsrKdError, match=r"no path|none of"):
            rescore(lattice, WORDS, new, old, scale)
        return
    changed = rescore(lattice, WORDS, new, old, scale)
    assert best_by_words(changed, 1.0, 0.0) == pytest.approx(expected)
    assert changed.num_frames == lattice.num_frames


@settings(max_examples=20, deadline=None)
@given(lattices(), WHOLE)
def test_the_same_model_in_the_place_of_itself_changes_nothing(lattice, costs):
    changed = rescore(lattice, WORDS, Bigram(costs), Bigram(costs))
    assert best_by_words(changed, 1.0, 0.0) == pytest.approx(best_by_words(lattice, 1.0, 0.0))
    assert len(all_paths(changed)) == len(all_paths(lattice))


ARPA = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-0.5\ta\t-0.25
-0.7\tb
-2.0\t<unk>

\\2-grams:
-0.1\t<s> a
-0.2\ta b
-0.9\tb </s>
-0.4\ta a

\\end\\
"""


def test_a_backoff_model_word_by_word(tmp_path):
    (tmp_path / "lm.arpa").write_text(ARPA)
    ngrams = read_arpa(tmp_path / "lm.arpa")
    model, ids = BackoffModel(ngrams), ngrams.word_id
    for words, expected in (
        (["a", "b"], -0.1 - 0.2 - 0.9),
        (["a", "a", "b"], -0.1 - 0.4 - 0.2 - 0.9),
        (["b"], -0.5 - 0.7 - 0.9),
        (["a", "zebra", "b"], -0.1 + (-0.25 - 2.0) - 0.7 - 0.9),
        ([], -0.5 - 1.0),
    ):
        state, cost = model.start, 0.0
        for word in words:
            more, state = model.score(state, word)
            cost += more
        cost += model.final(state)
        assert cost == pytest.approx(-math.log(10) * expected)
        row = [ids["<s>"], *(ids.get(word, ids["<unk>"]) for word in words), ids["</s>"]]
        by_rows = sum(float(ngrams.log_probs(np.array([row[: n + 1]]))[0]) for n in range(1, len(row)))
        assert by_rows == pytest.approx(expected)
    assert model.score(model.start, "</s>")[0] == math.inf


def test_the_word_loop_of_a_graph_and_words_that_are_not_known():
    loop = WordLoop.of_graph(word_graph())
    assert loop.score(None, "a") == (pytest.approx(-math.log(0.5)), None)
    assert loop.final(None) == pytest.approx(-math.log(0.1))
    assert WordLoop({"a": 0.5, "b": 0.5}).final(None) == 0.0
    assert loop.score(None, "zebra")[0] == math.inf
    with pytest.raises(AsrKdError, match="no loop of words"):
        WordLoop.of_graph(type("Graph", (), {"unigram": {}})())
