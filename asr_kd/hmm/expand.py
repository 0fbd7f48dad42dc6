"""From phones in context to HMM states: what composition with H does to C∘L∘G, on arrays.

Each arc that reads a phone in its context becomes the states of its HMM. Phones that begin with the same states share
them (so that a deterministic graph stays so), and phones that end with the same states on the way to one state share
those: what determinisation and minimisation of H∘C∘L∘G find, without the search. Self-loops are added later.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.graph_arcs import GraphArcs
from asr_kd.hmm.model import HmmModel


@dataclass(frozen=True)
class Windows:
    """What the input labels of C∘L∘G stand for.

    same: (num_labels,) the first label with the same phone and pdfs, by label; pdfs: (num_labels, most states of any
    phone) int64, −1 beyond a phone's last; phone: (num_labels,) id, 0 for epsilon and disambiguation symbols.
    """

    same: np.ndarray
    pdfs: np.ndarray
    phone: np.ndarray

    @classmethod
    def of(cls, ilabel_info: Sequence[Sequence[int]], model: HmmModel) -> "Windows":
        """From Kaldi's ilabel_info: a window of phones by label, nothing or one negative number for other symbols."""
        width, central = model.ctx_dep.context_width, model.ctx_dep.central_position
        labels = np.array([label for label, info in enumerate(ilabel_info) if len(info) == width and info[0] >= 0])
        contexts = np.array([ilabel_info[label] for label in labels]).reshape(-1, width)
        most = max(map(len, model.class_of_state.values()))
        classes = np.full((max(model.class_of_state) + 1, most), -1)
        for phone, found in model.class_of_state.items():
            classes[phone, : len(found)] = found
        phone = np.zeros(len(ilabel_info), dtype=np.int64)
        phone[labels] = contexts[:, central]
        pdfs = np.full((len(ilabel_info), most), -1, dtype=np.int64)
        for state in range(most):
            has = classes[phone[labels], state] >= 0
            asked = classes[phone[labels[has]], state]
            pdfs[labels[has], state] = model.context_tree.pdfs(contexts[has], asked)
        keys = np.column_stack([phone, pdfs])[labels]
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        same = np.arange(len(ilabel_info))
        same[labels] = labels[first[inverse.ravel()]]
        return cls(same, pdfs, phone)


# Source, target, ilabel, olabel and weight of arcs, (num_arcs,) each.
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class _Pieces:
    """Arcs that are put together bit by bit, and the states that are added to them."""

    def __init__(self, num_states: int) -> None:
        self.num_states = num_states
        self.columns: list[Columns] = []

    def add_states(self, number: int) -> int:
        """Id of the first of `number` new states."""
        self.num_states += number
        return self.num_states - number

    def add(self, *columns: np.ndarray) -> None:
        self.columns.append(columns)


def expand(graph: GraphArcs, windows: Windows, model: HmmModel, transition_scale: float) -> GraphArcs:
    """H∘graph without self-loops: transition-ids in, as Kaldi's get_h_transducer and reorder have them.

    graph: phones in context (labels of `windows`) in, words out; epsilon arcs stay.
    """
    pieces = _Pieces(graph.num_states)
    phone = windows.phone[graph.ilabel]
    others = np.flatnonzero(phone == 0)
    zeros = np.zeros(len(others), dtype=np.int64)
    pieces.add(graph.source[others], graph.target[others], zeros, graph.olabel[others], graph.weight[others])
    transitions = Transitions(model, transition_scale)
    for phones, arcs in transitions.topologies():
        rows = np.flatnonzero(np.isin(phone, phones))
        tids, costs = transitions.look_up(phone[rows], windows.pdfs[graph.ilabel[rows]], arcs)
        ends = graph.source[rows], graph.target[rows], graph.olabel[rows], graph.weight[rows]
        if all(to == state + 1 for state, _, to in arcs):
            _add_chains(pieces, *ends, tids)  # the only way out of a state costs nothing
        else:
            _add_copies(pieces, *ends, arcs, tids, costs)
    source, target, ilabel, olabel, weight = (np.concatenate(c) for c in zip(*pieces.columns, strict=True))
    order = np.argsort(source, kind="stable")
    final = np.concatenate([graph.final, np.full(pieces.num_states - graph.num_states, np.inf)])
    columns = (column[order] for column in (source, target, ilabel, olabel, weight))
    return GraphArcs(graph.start, *columns, final)


class Transitions:
    """Transition-ids of a model by phone, state, pdf and transition, self-loops apart."""

    def __init__(self, model: HmmModel, transition_scale: float) -> None:
        topology = model.transition_model.topo
        # Phones of one topology, by the targets of all transitions of each state, in their order.
        self._phones: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for phone in topology.phones:
            states = tuple(tuple(to for to, _ in s.transitions) for s in topology.topology_for_phone(phone))
            if any(0 in targets for targets in states[1:]):
                raise AsrKdError("a phone's HMM leads back to its first state, of which no graph can be made here")
            self._phones.setdefault(states, []).append(phone)
        known = model.state_of_tid[1:]
        self._size = 1 + int(model.state_of_tid.max())
        self._keys = self._key(known[:, 0], known[:, 1], known[:, 2], known[:, 3])
        self._order = np.argsort(self._keys)
        self._keys = self._keys[self._order]
        self._costs = -transition_scale * self._ignoring_loops(model)

    def _key(self, *parts: np.ndarray | int) -> np.ndarray:
        key = np.int64(0)
        for part in parts:
            key = key * self._size + part
        return key

    @staticmethod
    def _ignoring_loops(model: HmmModel) -> np.ndarray:
        """Log-probability of each transition-id among those that leave its state, (num_transition_ids + 1,)."""
        _, state = np.unique(model.state_of_tid[1:, :3], axis=0, return_inverse=True)
        probs = np.exp(model.log_probs[1:].astype(np.float64))
        leaving = np.bincount(state.ravel(), probs * ~model.is_self_loop[1:])
        with np.errstate(divide="ignore"):
            return np.concatenate([[0.0], np.log(probs) - np.log(leaving[state.ravel()])])

    def topologies(self) -> Iterator[tuple[list[int], list[tuple[int, int, int]]]]:
        """Phones of one topology each, and the arcs of their HMM but self-loops: state, its transition, next state."""
        for states, phones in self._phones.items():
            arcs = [(s, index, to) for s, targets in enumerate(states) for index, to in enumerate(targets) if to != s]
            yield phones, arcs

    def look_up(
        self, phone: np.ndarray, pdfs: np.ndarray, arcs: Sequence[tuple[int, int, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transition-ids and their costs, both (num_phones, num_arcs), for phones of one topology and their pdfs.

        Raises AsrKdError where the model has no such transition.
        """
        if not len(phone):
            return np.zeros((0, len(arcs)), np.int64), np.zeros((0, len(arcs)))
        columns = []
        for state, index, _ in arcs:
            wanted = self._key(phone, state, pdfs[:, state], index)
            found = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            if (self._keys[found] != wanted).any():
                raise AsrKdError("the tree of this HMM has states that its transitions lack; train it again")
            columns.append(1 + self._order[found])
        tids = np.stack(columns, axis=1)
        return tids, self._costs[tids]


def _add_copies(
    pieces: _Pieces,
    source: np.ndarray,
    target: np.ndarray,
    olabel: np.ndarray,
    weight: np.ndarray,
    arcs: Sequence[tuple[int, int, int]],
    tids: np.ndarray,
    costs: np.ndarray,
) -> None:
    """Any HMM: a copy of its inner states for each arc. Word and weight stand on what leaves its first state."""
    last = max(to for _, _, to in arcs)
    before_inner = pieces.add_states(len(source) * (last - 1)) + np.arange(len(source)) * (last - 1) - 1

    def number(state: int) -> np.ndarray:
        return source if state == 0 else target if state == last else before_inner + state

    for column, (state, _, to) in enumerate(arcs):
        first = state == 0
        pieces.add(number(state), number(to), tids[:, column], olabel * first, costs[:, column] + weight * first)


def _add_chains(
    pieces: _Pieces,
    source: np.ndarray,
    target: np.ndarray,
    olabel: np.ndarray,
    weight: np.ndarray,
    tids: np.ndarray,
) -> None:
    """HMMs whose states follow each other: beginnings and ends are shared, words and weights pushed to the front."""
    # The nodes of a trie below each source: the parent of each, and the transition-id that leads to it, level by level.
    levels, node, size = [], source, int(tids.max(initial=0)) + 1
    for column in tids[:, :-1].T:
        keys, node = np.unique(node * size + column, return_inverse=True)
        levels.append(np.divmod(keys, size))
    arcs: Columns = (node, target, tids[:, -1], olabel, weight)
    for parent, entering in reversed(levels):
        (owner, to, label, word, cost), starts, common, potential = _pushed(arcs)
        # Nodes with one way on are the same where what enters and what leaves them are.
        alone = np.flatnonzero(np.diff(np.append(starts, len(owner))) == 1)
        keys = (entering[alone] * size + label[starts[alone]]) * pieces.num_states + to[starts[alone]]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        representative = np.arange(len(parent))
        representative[alone] = alone[first[inverse]]
        kept = representative == np.arange(len(parent))
        numbers = pieces.add_states(int(kept.sum())) + np.cumsum(kept) - 1
        mine = kept[owner]
        pieces.add(numbers[owner[mine]], to[mine], label[mine], word[mine], cost[mine])
        arcs = (parent, numbers[representative], entering, common, potential)
    pieces.add(*arcs)


def _pushed(arcs: Columns) -> tuple[Columns, np.ndarray, np.ndarray, np.ndarray]:
    """Arcs by source, without what all of a source have in common; where each source begins; its word and its weight.

    Weights are pushed as determinize_star(use_log=True) does: those left of a source sum to one.
    """
    order = np.argsort(arcs[0], kind="stable")
    owner, to, label, word, cost = (column[order] for column in arcs)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    if not len(owner):
        return (owner, to, label, word, cost), starts, word, cost
    least = np.minimum.reduceat(cost, starts)
    potential = least - np.log(np.add.reduceat(np.exp(least[owner] - cost), starts))
    common = np.minimum.reduceat(word, starts)
    common = np.where(common == np.maximum.reduceat(word, starts), common, 0)
    return (owner, to, label, word - common[owner], cost - potential[owner]), starts, common, potential
