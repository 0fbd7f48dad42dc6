"""Graphs over n-gram models: G against the model's own arithmetic, HCLG against enumeration and a plain composition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.corpus.lexicon import Lexicon
from asr_kd.errors import AsrKdError
from asr_kd.hmm import wheels
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.gaussians import Gmm
from asr_kd.hmm.grammar import ngram_arcs
from asr_kd.hmm.graph import Graph, make_graph
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.lang import Lang
from asr_kd.hmm.model import HmmModel
from asr_kd.hmm.topology import topology_text
from asr_kd.hmm.tree import ContextTree, Leaf, Split, phone_table
from asr_kd.hmm.viterbi import exact_best_path
from asr_kd.lm.arpa import read_arpa
from asr_kd.lm.kneser_ney import estimate
from asr_kd.lm.ngram import BOS, EOS, NgramModel
from asr_kd.lm.prune import prune

LN10 = math.log(10)
NUM_STATES = 3
# Minimisation rounds weights to 1/1024, on two dozen arcs.
ROUNDED = 2e-2


def _wheels_present() -> bool:
    try:
        return bool(wheels.kaldi())
    except AsrKdError:
        return False


needs_kaldi = pytest.mark.skipif(not _wheels_present(), reason="the Kaldi wheels (asr_kd[hmm]) are not installed")


def random_lm(rng: np.random.Generator, words: list[str], order: int, threshold: float) -> NgramModel:
    text = [rng.choice(words, rng.integers(0, 5)).tolist() for _ in range(15)]
    return prune(estimate(text, order, words), threshold)


# --- G


def follow(arcs: GraphArcs, mark: int, words: list[int]) -> float:
    """Cost of words and end along the listed n-grams, backing off only where a word is not listed."""
    state, cost = arcs.start, 0.0
    for label in [*words, 0]:
        while True:
            rows = np.flatnonzero(arcs.source == state)
            found = rows[arcs.ilabel[rows] == label] if label else rows[:0]
            if len(found) or (not label and np.isfinite(arcs.final[state])):
                break
            (found,) = rows[arcs.ilabel[rows] == mark]
            state, cost = arcs.target[found], cost + arcs.weight[found]
        if label:
            (row,) = found
            assert arcs.olabel[row] == label
            state, cost = arcs.target[row], cost + arcs.weight[row]
    return cost + arcs.final[state]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    order=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 1e-3, 3e-2]),
    strange=st.booleans(),
)
def test_g_gives_every_sentence_the_probability_of_the_model(seed, order, threshold, strange):
    rng = np.random.default_rng(seed)
    lang = Lang(Lexicon({word: [("A",)] for word in "abcd"}))
    model = random_lm(rng, list("abcd"), order, threshold)
    if strange:  # back-off weights where nothing is listed, as other tools write them
        for level in model.levels[:-1]:
            level.backoff[:] = rng.normal(0, 0.3, len(level))
    arcs = ngram_arcs(lang, model)
    assert (np.diff(arcs.source) >= 0).all()
    for _ in range(8):
        words = rng.choice(list("abcd"), rng.integers(0, 5)).tolist()
        ids = [model.word_id[word] for word in (BOS, *words, EOS)]
        expected = sum(model.log_probs(np.array([ids[: end + 1]]))[0] for end in range(1, len(ids)))
        cost = follow(arcs, lang.backoff_word, [lang.word_id[word] for word in words])
        assert cost == pytest.approx(-LN10 * expected)


def test_words_that_the_lexicon_lacks_are_left_out_and_told():
    lang = Lang(Lexicon({"a": [("A",)], "b": [("A", "B")], "<UNK>": [("SPN",)], "z": [("B",)]}))
    model = estimate([["a", "b", "c"], ["c", "a"], ["q", "a"]], 3, ["a", "b", "c"])
    lines: list[str] = []
    arcs = ngram_arcs(lang, model, lines.append)
    said = {lang.words[label - 1] for label in arcs.olabel[arcs.olabel > 0]}
    assert said == {"a", "b", "<UNK>"}, "its <unk> is the lexicon's"
    assert lines[0] == "1 of 6 words of the language model are not in the lexicon (c …)"
    assert lines[1] == "1 of 4 words of the lexicon are not in the language model"
    with pytest.raises(AsrKdError, match="no word in common"):
        ngram_arcs(Lang(Lexicon({"x": [("A",)]})), model)


# --- HCLG


def random_model(
    rng: np.random.Generator, lang: Lang, topology: str = "3state", silence_topology: str = "3state"
) -> HmmModel:
    """Triphones whose states ask a random question about each neighbour; silence has no context."""
    ids = list(lang.phone_id.values())
    fresh = itertools.count()

    def state(phone: int) -> object:
        if phone == lang.phone_id["SIL"]:
            return Leaf(next(fresh))
        left, right = (tuple(sorted(rng.choice([0, *ids], 2, replace=False).tolist())) for _ in range(2))
        return Split(0, left, Leaf(next(fresh)), Split(2, right, Leaf(next(fresh)), Leaf(next(fresh))))

    silence = [lang.phone_id[phone] for phone in lang.silence_phones]
    states = {phone: 5 if phone in silence and silence_topology == "5state" else NUM_STATES for phone in ids}
    tree = ContextTree(phone_table({phone: [state(phone) for _ in range(states[phone])] for phone in ids}))
    gmm = Gmm(np.ones(1), np.zeros((1, 1)), np.ones((1, 1)))
    return HmmModel.untrained(
        lang, topology_text(len(ids), topology, silence, silence_topology), tree.to_bytes(), gmm, {}
    )


def spoken(lang: Lang, most: int) -> list[tuple[list[str], list[str], float]]:
    """(words, phones, cost of pronunciations and silences) of everything with at most so many phones."""
    pauses = [([], -math.log(1 - lang.silence_prob)), (["SIL"], -math.log(lang.silence_prob))]
    said = [
        (word, list(lang.positioned(p)), -math.log(lang.lexicon.probs.get((word, p), 1.0)))
        for word in lang.words
        for p in lang.lexicon.entries[word]
    ]
    longer = [([], pause, cost) for pause, cost in pauses]
    everything = []
    while longer:
        everything += longer
        longer = [
            ([*words, word], [*phones, *more, *pause], cost + word_cost + pause_cost)
            for (words, phones, cost), (word, more, word_cost), (pause, pause_cost) in itertools.product(
                longer, said, pauses
            )
            if len(phones) + len(more) + len(pause) <= most
        ]
    return everything


def best_in_g(arcs: GraphArcs, mark: int, words: list[int]) -> float:
    """Least cost of words and end over all ways to back off, as a Viterbi search has it."""

    def closed(costs: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(arcs.ilabel == mark)
        for _ in range(10):
            np.minimum.at(costs, arcs.target[rows], costs[arcs.source[rows]] + arcs.weight[rows])
        return costs

    costs = np.full(arcs.num_states, np.inf)
    costs[arcs.start] = 0.0
    costs = closed(costs)
    for word in words:
        rows = np.flatnonzero(arcs.ilabel == word)
        after = np.full(arcs.num_states, np.inf)
        np.minimum.at(after, arcs.target[rows], costs[arcs.source[rows]] + arcs.weight[rows])
        costs = closed(after)
    return float((costs + arcs.final).min())


def best_in_time(model: HmmModel, phones: list[str], loglik: np.ndarray, self_loop_scale: float = 0.1) -> float:
    """Best score of the frames along these phones, whose states stay with 0.75."""
    ids = [0, *(model.lang.phone_id[p] for p in phones), 0]
    windows = np.repeat([ids[i : i + 3] for i in range(len(phones))], NUM_STATES, axis=0)
    pdfs = model.context_tree.pdfs(windows, np.tile(np.arange(NUM_STATES), len(phones)))
    stay, go = self_loop_scale * math.log(0.75), self_loop_scale * math.log(0.25)
    score = np.full(len(pdfs), -np.inf)
    score[0] = 0.0
    for frame, gains in enumerate(loglik.astype(np.float64)):
        entered = np.concatenate([[-np.inf], score[:-1]]) + go
        score = np.maximum(score + (stay if frame else 0.0), entered if frame else score) + gains[pdfs]
        if not frame:
            score[1:] = -np.inf
    return float(score[-1] + go)


def random_case(seed: int, **topology: str) -> tuple[np.random.Generator, Lang, HmmModel, NgramModel]:
    rng = np.random.default_rng(seed)
    pronunciations = [("K",), ("L",), ("K", "L"), ("L", "K"), ("K", "K")]
    entries = {
        word: [pronunciations[i] for i in rng.choice(5, rng.integers(1, 3), replace=False)]
        for word in "abc"[: rng.integers(1, 4)]
    }
    first = min(entries)
    lang = Lang(Lexicon(entries, {(first, entries[first][0]): 0.5}), 0.3, bool(rng.integers(2)))
    lm = random_lm(rng, list(entries), int(rng.integers(1, 4)), float(rng.choice([0.0, 1e-2])))
    return rng, lang, random_model(rng, lang, **topology), lm


@needs_kaldi
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_best_path_is_that_of_an_enumeration(seed):
    """Of all words, pronunciations and silences that fit into the frames, with costs computed by other code."""
    rng, lang, model, lm = random_case(seed)
    graph = make_graph(model, lang, None, lm=lm)
    grammar = ngram_arcs(lang, lm)
    loglik = rng.normal(0, 3, (int(rng.integers(3, 13)), model.num_pdfs)).astype(np.float32)
    scores = {}
    for words, phones, cost in spoken(lang, len(loglik) // NUM_STATES):
        if phones:
            cost += best_in_g(grammar, lang.backoff_word, [lang.word_id[word] for word in words])
            score = best_in_time(model, phones, loglik) - cost
            scores[tuple(words)] = max(score, scores.get(tuple(words), -math.inf))
    best = max(scores.values())
    score, words = exact_best_path(graph, loglik, 1.0)
    assert score == pytest.approx(best, abs=ROUNDED)
    assert scores[tuple(words)] == pytest.approx(best, abs=ROUNDED)
    assert Decoder(graph, beam=200.0, acwt=1.0).decode(loglik).score == pytest.approx(score, abs=ROUNDED)


def plainly_composed(model: HmmModel, lang: Lang, lm: NgramModel) -> Graph:
    """HCLG without determinisation and minimisation, and with what the wheels have for every step."""
    k = wheels.kaldi()
    grammar = ngram_arcs(lang, lm).to_fst()
    k.fst.arcsort(grammar, sort_type="ilabel")
    lexicon_grammar = k.fst.compose(lang.lexicon_fst(disambig=True, backoff=True), grammar)
    k.fst.arcsort(lexicon_grammar, sort_type="ilabel")
    context, windows = k.fst.compose_context(
        disambig_syms=lang.disambig_ids, context_width=3, central_position=1, ifst=lexicon_grammar
    )
    k.fst.arcsort(context, sort_type="ilabel")
    h, marks = k.khg.get_h_transducer(
        ilabel_info=windows, ctx_dep=model.ctx_dep, trans_model=model.transition_model, config=k.khg.HTransducerConfig()
    )
    k.fst.arcsort(h, sort_type="olabel")
    composed = GraphArcs.from_fst(k.fst.compose(h, context)).without_labels(marks).to_fst()
    with_loops = k.khg.add_self_loops(
        self_loop_scale=0.1, disambig_syms=[], reorder=True, trans_model=model.transition_model, ifst=composed
    )
    return Graph(GraphArcs.from_fst(with_loops), model.t2pdf, model.num_pdfs, lang.words, model.digest, {})


@needs_kaldi
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    topology=st.sampled_from(["3state", "bakis"]),
    silence_topology=st.sampled_from(["3state", "5state"]),
)
def test_the_best_path_is_that_of_the_plain_composition(seed, topology, silence_topology):
    rng, lang, model, lm = random_case(seed, topology=topology, silence_topology=silence_topology)
    graph, plain = make_graph(model, lang, None, lm=lm), plainly_composed(model, lang, lm)
    for _ in range(4):
        loglik = rng.normal(0, 3, (int(rng.integers(3, 30)), model.num_pdfs)).astype(np.float32)
        assert exact_best_path(graph, loglik, 1.0)[0] == pytest.approx(
            exact_best_path(plain, loglik, 1.0)[0], abs=ROUNDED
        )


@needs_kaldi
def test_a_unigram_model_is_the_loop_of_words_that_it_describes(tmp_path):
    rng, lang, model, _ = random_case(4)
    text = "".join(f"{-math.log10(len(lang.words))}\t{word}\n" for word in lang.words)
    header = f"\\data\\\nngram 1={len(lang.words) + 2}\n\n\\1-grams:\n"
    (tmp_path / "x.arpa").write_text(f"{header}{text}0\t</s>\n-99\t<s>\n\n\\end\\\n")
    graphs = [make_graph(model, lang, None, lm=read_arpa(tmp_path / "x.arpa")), make_graph(model, lang, None)]
    loglik = rng.normal(0, 3, (20, model.num_pdfs)).astype(np.float32)
    (score, words), (expected, said) = (exact_best_path(graph, loglik, 1.0) for graph in graphs)
    assert score == pytest.approx(expected, abs=1e-3)
    assert words == said
