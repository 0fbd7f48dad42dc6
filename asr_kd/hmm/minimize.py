"""Minimisation of a graph as an acceptor of (input, output, weight), as Kaldi's fstminimizeencoded has it, on arrays.

States are equal where all that can follow them is. Their partition is refined round by round (Moore 1956), from a hash
of each state's arcs and of the classes that these lead to; a state that is alone in its class takes no further part,
so that most rounds are short. Hashes have 64 bits: that any two of ten million states are confused has a chance of 1
in 300,000 a round.
"""

from dataclasses import replace

import numpy as np

from asr_kd.hmm.graph_arcs import GraphArcs

DELTA = np.float32(1 / 1024)  # to which weights are rounded, as OpenFst's kDelta


def minimize(graph: GraphArcs) -> GraphArcs:
    """The least graph with the same paths, weights rounded to DELTA; every state must be on a path.

    Where arcs of a state share their labels it is the least that follows it arc by arc, not the least of all.
    """
    weight, final = _rounded(graph.weight), _rounded(graph.final)
    labels = graph.ilabel.astype(np.uint64) << np.uint64(32) | graph.olabel.astype(np.uint64)
    hashes = _state_hashes(graph, _mixed(_mixed(labels) + weight.view(np.uint64)), _mixed(final.view(np.uint64)))
    _, first, numbers = np.unique(hashes, return_index=True, return_inverse=True)
    # Classes in the order of their first states, which stand for them: arcs then stay in the order of their source.
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    new, first = rank[numbers], np.sort(first)
    stands = np.zeros(graph.num_states, dtype=bool)
    stands[first] = True
    kept = stands[graph.source]
    return replace(
        graph,
        start=int(new[graph.start]),
        source=new[graph.source[kept]],
        target=new[graph.target[kept]],
        ilabel=graph.ilabel[kept],
        olabel=graph.olabel[kept],
        weight=weight[kept],
        final=final[first],
    )


def _rounded(costs: np.ndarray) -> np.ndarray:
    """In float32, as OpenFst rounds; as float64 without a negative zero, which would be other bits."""
    return (np.floor(costs.astype(np.float32) / DELTA + np.float32(0.5)) * DELTA).astype(np.float64) + 0.0


def _mixed(values: np.ndarray) -> np.ndarray:
    """Bits of uint64 spread over all of them (xmxmx of Maiga's *The construct of a bit mixer*, 2020)."""
    shift, factor = np.uint64(32), np.uint64(0xD6E8FEB86659FD93)
    values = (values ^ (values >> shift)) * factor
    values = (values ^ (values >> shift)) * factor
    return values ^ (values >> shift)


def _state_hashes(graph: GraphArcs, arc_hashes: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """(num_states,) uint64, equal for equal states; hashes: what is known of each state without its arcs."""
    counts = np.bincount(graph.source, minlength=graph.num_states)
    states, targets, num_classes = np.arange(graph.num_states), graph.target, -1
    while True:
        following = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed(arc_hashes + hashes[targets]))])
        ends = np.cumsum(counts)
        # The old hash is part of the new one, so that classes are only ever divided.
        new = _mixed(hashes[states] * np.uint64(3) + following[ends] - following[ends - counts])
        hashes[states] = new
        order = np.argsort(new)
        same = np.diff(new[order]) == 0
        shared = np.zeros(len(states), dtype=bool)
        shared[order[:-1][same]] = shared[order[1:][same]] = True
        if len(states) - np.count_nonzero(same) == num_classes:
            return hashes
        num_classes = np.count_nonzero(shared) - np.count_nonzero(same)
        arcs = np.repeat(shared, counts)
        states, counts, targets, arc_hashes = states[shared], counts[shared], targets[arcs], arc_hashes[arcs]
