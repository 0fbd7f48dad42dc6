"""Minimisation and self-loops on arrays, against the wheels' own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ngram_graph import needs_kaldi, random_case

from asr_kd.hmm import wheels
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.minimize import DELTA, minimize
from asr_kd.hmm.self_loops import add_self_loops


def random_graph(seed: int) -> GraphArcs:
    """Deterministic, cyclic, of few labels, so that many states are equal; every state is on a path."""
    rng = np.random.default_rng(seed)
    num_states, num_labels = int(rng.integers(1, 25)), int(rng.integers(1, 4))
    rows = [(s, label) for s in range(num_states) for label in range(1, num_labels + 1) if rng.random() < 0.7]
    rows += [(s, num_labels + 1) for s in range(num_states)]  # leads from every state to the last one, and on
    source, label = np.array(sorted(rows)).T
    target = np.where(label > num_labels, (source + 1) % num_states, rng.integers(0, num_states, len(source)))
    weight = rng.choice([-0.5, 0.0, 0.3, 0.3002], len(source))
    final = np.full(num_states, np.inf)
    final[-1] = 0.25
    final[rng.random(num_states) < 0.5] = 0.25
    return GraphArcs(0, source, target, label, rng.integers(0, 2, len(source)), weight, final)


def numbered(graph: GraphArcs) -> tuple[np.ndarray, ...]:
    """Arcs and final weights with states in the order in which a walk along the input labels meets them."""
    order = np.lexsort((graph.ilabel, graph.source))
    number, waiting = {graph.start: 0}, [graph.start]
    for state in waiting:
        for target in graph.target[order][graph.source[order] == state].tolist():
            if target not in number:
                number[target] = len(number)
                waiting.append(target)
    source, target = (np.array([number[s] for s in column[order].tolist()]) for column in (graph.source, graph.target))
    again = np.lexsort((graph.ilabel[order], source))
    columns = (graph.ilabel[order], graph.olabel[order], graph.weight[order])
    return (source[again], target[again], *(column[again] for column in columns), graph.final[waiting])


@needs_kaldi
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_least_graph_is_the_wheels(seed):
    graph = random_graph(seed)
    reference = graph.to_fst()
    wheels.kaldi().fst.minimize_encoded(reference)
    least = minimize(graph)
    for column, expected in zip(numbered(least), numbered(GraphArcs.from_fst(reference)), strict=True):
        np.testing.assert_array_equal(column, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_what_is_least_gets_no_smaller_and_costs_the_same(seed):
    graph = random_graph(seed)
    least = minimize(graph)
    assert minimize(least).num_states == least.num_states <= graph.num_states
    rng = np.random.default_rng(seed)
    for _ in range(5):
        here, there, moved = graph.start, least.start, 0.0
        for _ in range(8):
            (arc,) = rng.choice(np.flatnonzero(graph.source == here), 1)
            (same,) = np.flatnonzero((least.source == there) & (least.ilabel == graph.ilabel[arc]))
            assert least.olabel[same] == graph.olabel[arc]
            moved = max(moved, abs(least.weight[same] - graph.weight[arc]))
            here, there = graph.target[arc], least.target[same]
            assert np.isfinite(least.final[there]) == np.isfinite(graph.final[here])
        assert moved <= DELTA / 2


@needs_kaldi
@pytest.mark.parametrize("topology", ["3state", "bakis"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_self_loops_are_the_wheels(topology, seed):
    """Bit for bit, with several ways into one state."""
    rng, _, model, _ = random_case(seed, topology=topology)
    tids = np.flatnonzero(~model.is_self_loop)
    num_states, num_arcs = 6, 20
    source = np.sort(rng.integers(0, num_states, num_arcs))
    columns = (rng.integers(0, num_states, num_arcs), rng.choice(tids, num_arcs), rng.integers(0, 3, num_arcs))
    graph = GraphArcs(2, source, *columns, rng.normal(size=num_arcs), rng.choice([0.5, np.inf], num_states))
    reference = wheels.kaldi().khg.add_self_loops(
        self_loop_scale=0.3,
        disambig_syms=[],
        reorder=True,
        trans_model=model.transition_model,
        ifst=graph.to_fst(),
    )
    found, expected = add_self_loops(graph, model, 0.3), GraphArcs.from_fst(reference)
    assert list(found.parts()) == list(expected.parts())
