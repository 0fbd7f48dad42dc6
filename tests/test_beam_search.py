"""The compiled search: against an exact one, against Kaldi's, and lattices against an enumeration of all paths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_kd.errors import AsrKdError
from asr_kd.hmm import beam_search
from asr_kd.hmm.beam_search import BeamSearch, Limits
from asr_kd.hmm.decode import Decoder
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.lattice_decode import LatticeDecoder
from asr_kd.hmm.viterbi import ExactSearch
from asr_kd.hmm.word_search import nbest

WIDE = 1e4
NUM_PDFS = 4


def random_graph(seed: int, num_states: int, arcs_per_state: int = 3) -> Graph:
    """Of random arcs, some without input, which lead to later states; every state can be final, the last one is."""
    rng = np.random.default_rng(seed)
    rows = [(s, (s + 1) % num_states, int(rng.integers(1, 7)), 0, rng.random()) for s in range(num_states)]
    for _ in range(num_states * arcs_per_state):
        s, t = rng.integers(0, num_states, 2).tolist()
        label = int(rng.integers(0, 7)) if s < t else int(rng.integers(1, 7))
        rows.append((s, t, label, int(rng.integers(0, 4)), 3 * rng.random()))
    rows.sort()
    source, target, ilabel, olabel, weight = (np.array(column) for column in zip(*rows, strict=True))
    final = np.where(rng.random(num_states) < 0.3, rng.random(num_states), np.inf)
    final[-1] = 0.5
    t2pdf = np.array([-1, 0, 1, 2, 3, 0, 1])
    arcs = GraphArcs(0, source, target, ilabel, olabel, weight.astype(np.float64), final)
    return Graph(arcs, t2pdf, NUM_PDFS, ["a", "b", "c"], "made up", {})


def random_loglik(seed: int, num_frames: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, (num_frames, NUM_PDFS)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 20), st.sampled_from([0.0, 0.7, -0.3]))
def test_a_wide_search_is_exact(seed, num_states, num_frames, penalty):
    graph, loglik = random_graph(seed, num_states), random_loglik(seed, num_frames)
    score, words = ExactSearch(graph, 0.3, penalty).best_path(loglik)
    found = Decoder(graph, WIDE, acwt=0.3, insertion_penalty=penalty).decode(loglik)
    assert found.score == pytest.approx(score, abs=1e-4)
    assert len(found.pdfs) == num_frames
    assert found.words == words or found.complete  # of equally good paths either may be found


def test_long_speech_keeps_its_path_when_tokens_are_cleared_away():
    graph, loglik = random_graph(3, 40), random_loglik(4, 6000)
    assert 40 * len(loglik) > 2 * beam_search.FIRST_TOKENS
    found = Decoder(graph, WIDE, acwt=0.3).decode(loglik)
    assert found.score == pytest.approx(ExactSearch(graph, 0.3).best_path(loglik)[0], abs=1e-2)
    assert len(found.transition_ids) == len(loglik)
    # Kept whole, the tokens give the same path.
    tokens = LatticeDecoder(graph, WIDE, 1e-3, 0.3).raw(loglik[:1000])
    assert nbest(tokens, 1, 0.3)[0].cost == pytest.approx(-Decoder(graph, WIDE, acwt=0.3).decode(loglik[:1000]).score)


@pytest.mark.parametrize("limits", [(6.0, 0, 50), (6.0, 20, 1000), (1.0, 200, 1000)])
def test_at_the_same_limits_it_finds_paths_as_good_as_kaldis(limits):
    pytest.importorskip("kaldifst", reason="needs the Kaldi wheels: pip install 'asr_kd[hmm]'")
    pytest.importorskip("kaldi_hmm_gmm")
    kaldi_decoder = pytest.importorskip("kaldi_decoder", reason="Kaldi's own search: pip install 'asr_kd[test]'")
    beam, min_active, max_active = limits
    graph = random_graph(7, 300, 4)
    fst, options = graph.arcs.to_fst(), kaldi_decoder.FasterDecoderOptions(beam, max_active, min_active, 0.5, 2.0)
    theirs, ours = (
        kaldi_decoder.FasterDecoder(fst, options),
        Decoder(graph, beam, min_active, 0.3, max_active=max_active),
    )
    lost = []
    for seed in range(20):
        loglik = random_loglik(seed, 50)
        theirs.decode(kaldi_decoder.DecodableCtc(np.ascontiguousarray(loglik * np.float32(0.3))[:, graph.t2pdf[1:]]))
        _, path = theirs.get_best_path()
        lost.append(ours.decode(loglik).score - _score(path, theirs.reached_final()))
    assert np.mean(lost) > -1e-3


def _score(path: object, complete: bool) -> float:
    from _kaldifst import _ArcIteratorLattice

    cost, state = 0.0, path.start
    while not (arcs := _ArcIteratorLattice(path, state)).done:
        cost += arcs.value.weight.value1 + arcs.value.weight.value2
        state = arcs.value.nextstate
    if complete:
        cost += path.final(state).value1 + path.final(state).value2
    return -cost


def all_costs(graph: Graph, loglik: np.ndarray, acwt: float) -> dict[tuple[int, ...], float]:
    """The cost of the best complete path of every word sequence."""
    arcs, best = graph.arcs, {}
    leaving = [np.flatnonzero(arcs.source == state).tolist() for state in range(arcs.num_states)]
    waiting = [(arcs.start, 0, (), 0.0)]
    while waiting:
        state, frame, words, cost = waiting.pop()
        if frame == len(loglik) and np.isfinite(arcs.final[state]):
            best[words] = min(best.get(words, np.inf), cost + arcs.final[state])
        for row in leaving[state]:
            label, word = int(arcs.ilabel[row]), int(arcs.olabel[row])
            if label and frame == len(loglik):
                continue
            gain = acwt * loglik[frame, graph.t2pdf[label]] if label else 0.0
            following = (*words, word) if word else words
            waiting.append((int(arcs.target[row]), frame + bool(label), following, cost + arcs.weight[row] - gain))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_a_lattice_holds_every_word_sequence_within_its_beam_and_no_other(seed):
    graph, loglik = random_graph(seed, 4, 1), random_loglik(seed, 4)
    costs = all_costs(graph, loglik, 0.3)
    least = min(costs.values())
    for lattice_beam in (0.5, 3.0, 8.0):
        lattice = LatticeDecoder(graph, WIDE, lattice_beam, 0.3)
        within = {words: cost for words, cost in costs.items() if cost <= least + lattice_beam - 1e-3}
        for found in (lattice.raw(loglik), lattice.decode(loglik)):
            paths = [path for path in nbest(found, 10**4, 0.3) if path.cost <= least + lattice_beam - 1e-3]
            assert {path.words for path in paths} == set(within)
            for path in paths:
                assert path.cost == pytest.approx(within[path.words], abs=1e-4)


def test_a_lattice_of_a_bounded_search_holds_its_best_path():
    graph = random_graph(11, 500, 4)
    for seed in range(5):
        loglik = random_loglik(seed, 60)
        for max_active in (20, 100):
            best = Decoder(graph, 15.0, 0, 0.3, max_active=max_active).decode(loglik)
            lattice = LatticeDecoder(graph, 15.0, 4.0, 0.3, min_active=0, max_active=max_active).decode(loglik)
            assert nbest(lattice, 1, 0.3)[0].cost == pytest.approx(-best.score, abs=1e-3)
            assert len(lattice.source) > len(best.words)


def test_a_cycle_without_input_that_could_gain_is_an_error():
    columns = (np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([1, 0, 0]), np.zeros(3, int))
    t2pdf, limits = np.array([-1, 0]), Limits(10.0, 0, 100)
    for weight, penalty in ((-0.5, 0.0), (0.5, -1.0)):
        arcs = GraphArcs(0, *columns, np.array([0.1, 0.1, weight]), np.zeros(2))
        arcs.olabel[2] = 1
        with pytest.raises(AsrKdError, match="cycle of arcs without input"):
            BeamSearch(arcs, t2pdf, penalty, limits)
    harmless = GraphArcs(0, *columns, np.array([0.1, 0.1, 0.5]), np.zeros(2))
    assert BeamSearch(harmless, t2pdf, 0.0, limits).best_path(np.zeros((3, 1), np.float32)).cost == pytest.approx(0.3)
