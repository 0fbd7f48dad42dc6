"""Random lattices that are small enough to list all their paths, and a graph that is made without an HMM."""

import itertools

import numpy as np
from hypothesis import strategies as st

from asr_kd.hmm.graph import Graph
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.lattice import Lattice

NUM_WORDS = 3


@st.composite
def lattices(draw) -> Lattice:
    """Acyclic graphs of few states, each of which has a time, as in a decoder's lattice."""
    num_states = draw(st.integers(2, 6))
    times = [0, *sorted(draw(st.lists(st.integers(0, 4), min_size=num_states - 1, max_size=num_states - 1)))]
    pairs = list(itertools.combinations(range(num_states), 2))
    chain = list(itertools.pairwise(range(num_states)))
    chosen = chain + draw(st.lists(st.sampled_from(pairs), max_size=7))
    arcs = []
    for number, (source, target) in enumerate(chosen):
        tids = b"".join((100 * (t + 1) + number).to_bytes(4, "little") for t in range(times[source], times[target]))
        word = draw(st.integers(0, NUM_WORDS))
        costs = draw(st.tuples(*[st.integers(-8, 8)] * 2))
        arcs.append((source, target, word, costs[0] / 4, costs[1] / 4, tids))
    arcs.append((num_states - 1, num_states, 0, draw(st.integers(-4, 4)) / 4, 0.0, b""))
    return Lattice.from_arcs(0, num_states, *(list(column) for column in zip(*arcs, strict=True)))


def all_paths(lattice: Lattice) -> list[list[int]]:
    """The arcs of every path."""
    complete, begun = [], [[arc] for arc in np.flatnonzero(lattice.source == 0)]
    while begun:
        path = begun.pop()
        state = lattice.target[path[-1]]
        if state == lattice.num_states - 1:
            complete.append(path)
        begun += [[*path, arc] for arc in np.flatnonzero(lattice.source == state)]
    return complete


def best_by_words(lattice: Lattice, acwt: float, penalty: float) -> dict[tuple[int, ...], float]:
    """Cost of the best path of every word sequence."""
    costs, best = lattice.costs(acwt, penalty), {}
    for path in all_paths(lattice):
        words = tuple(word for word in lattice.word[path].tolist() if word)
        best[words] = min(best.get(words, np.inf), float(costs[path].sum()))
    return best


def word_graph() -> Graph:
    """A loop of the words a, b, ab: of states A, of B, and of A and then B, of two transition-ids each."""
    pronunciations = [(0,), (1,), (0, 1)]
    weights = [0.5, 1.5, 1.0]
    arcs, num_states = [], 1
    for word, (pdfs, weight) in enumerate(zip(pronunciations, weights, strict=True), 1):
        here = 0
        for position, pdf in enumerate(pdfs):
            enter, loop, there = 2 * pdf + 1, 2 * pdf + 2, num_states
            arcs.append((here, there, enter, word if position == 0 else 0, weight if position == 0 else 0.25))
            arcs.append((there, there, loop, 0, 0.75))
            here, num_states = there, num_states + 1
        arcs.append((here, 0, 0, 0, 0.0))
    arcs.sort()
    source, target, ilabel, olabel, weight = (np.array(column) for column in zip(*arcs, strict=True))
    final = np.full(num_states, np.inf)
    final[0] = 0.125
    columns = (source, target, ilabel, olabel, weight.astype(np.float64))
    probs = {"a": 0.5, "b": 0.2, "ab": 0.2}
    return Graph(GraphArcs(0, *columns, final), np.array([-1, 0, 0, 1, 1]), 2, ["a", "b", "ab"], "made up", probs)
