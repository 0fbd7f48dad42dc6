"""Self-loops of a graph over transition-ids, as Kaldi's add-self-loops puts them with reorder, on arrays."""

import numpy as np

from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.model import HmmModel

SMALLEST = 1e-10  # probability to leave a state


def add_self_loops(graph: GraphArcs, model: HmmModel, scale: float) -> GraphArcs:
    """A graph in which a state stays in the HMM state that its entering arcs have left, at `scale` × log-probability.

    graph: transition-ids without self-loops in. A state that is entered from several HMM states gets one before it for
    each of them.
    """
    loop_of, stay, leave = _loops(model, scale)
    target, before, entered = _one_way_in(graph, model.transition_state[graph.ilabel])
    num_states = len(entered)
    added = np.arange(graph.num_states, num_states)
    loops = np.flatnonzero(loop_of[entered] > 0)
    final = np.concatenate([graph.final, np.full(len(added), np.inf)]) + leave[entered]
    nothing = np.zeros(num_states, dtype=np.int64)
    source = np.concatenate([graph.source, added, loops])
    costs = np.concatenate([graph.weight, nothing[added]]).astype(np.float32) + leave[entered[source[: -len(loops)]]]
    columns = (
        source,
        np.concatenate([target, before, loops]),
        np.concatenate([graph.ilabel, nothing[added], loop_of[entered[loops]]]),
        np.concatenate([graph.olabel, nothing[added], nothing[loops]]),
        np.concatenate([costs, stay[entered[loops]]]),
    )
    order = np.argsort(source, kind="stable")
    return GraphArcs(graph.start, *(column[order] for column in columns), final)


def _loops(model: HmmModel, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By transition-state, 0 for none, all (num_transition_states + 1,): its self-loop's transition-id, 0 where it has
    none, and the costs to stay in it and to leave it.
    """
    tids = np.flatnonzero(model.is_self_loop)
    loop_of = np.zeros(model.transition_state.max() + 1, dtype=np.int64)
    loop_of[model.transition_state[tids]] = tids
    log_stay = np.where(loop_of > 0, model.log_probs[loop_of], -np.inf)
    log_leave = np.log(np.maximum(1.0 - np.exp(log_stay), SMALLEST))
    stay = np.where(loop_of > 0, log_stay, 0.0)
    return loop_of, np.float32(-scale) * stay.astype(np.float32), np.float32(-scale) * log_leave.astype(np.float32)


def _one_way_in(graph: GraphArcs, transitions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets of the arcs, where those with different `transitions` (transition-states, (num_arcs,)) to one state now
    lead to new states; the old state behind each new one; the transition-state that each of all states is entered by.
    """
    # Nothing has been left where a path begins.
    least = np.full(graph.num_states, np.iinfo(np.int64).max)
    most = np.full(graph.num_states, -1)
    least[graph.start] = most[graph.start] = 0
    np.minimum.at(least, graph.target, transitions)
    np.maximum.at(most, graph.target, transitions)
    several = least < most
    changed = np.flatnonzero(several[graph.target] & (transitions > 0))
    width = int(transitions.max(initial=0)) + 1
    keys, first, numbers = np.unique(
        graph.target[changed] * width + transitions[changed], return_index=True, return_inverse=True
    )
    # New states in the order in which they are met, as Kaldi numbers them.
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = graph.num_states + np.arange(len(order))
    target = graph.target.copy()
    target[changed] = rank[numbers]
    before, entered = np.divmod(keys[order], width)
    return target, before, np.concatenate([np.where(several | (most < 0), 0, most), entered])
