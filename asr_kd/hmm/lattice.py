"""Lattices: the word sequences that survived a search, with graph cost and acoustic cost apart (Ney & Aubert 1994;
Povey et al. 2012, *Generating exact lattices in the WFST framework*).

One class holds a raw lattice, of an arc for every frame of every surviving path, and a determinised one, of an arc for
every word. Costs are kept as Kaldi keeps them in its files: acoustic costs without acoustic scale, graph costs without
insertion penalty. Both are applied when a lattice is searched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm import lattice_passes
from asr_kd.hmm.lattice_passes import Neighbours


@dataclass(frozen=True)
class Lattice:
    """An acyclic graph with one start, state 0, and one end, the last state; arcs in the order of their source.

    source, target: (num_arcs,) int64, source < target everywhere; word: (num_arcs,) int64 word ids, 0 for none, as on
    all arcs into the end; graph, acoustic: (num_arcs,) float64 costs; tids: for each arc its transition-ids, one a
    frame, as the bytes of little-endian int32. Every state lies on a path from start to end. Make one by `from_arcs`.
    """

    source: np.ndarray
    target: np.ndarray
    word: np.ndarray
    graph: np.ndarray
    acoustic: np.ndarray
    tids: tuple[bytes, ...]

    @property
    def num_states(self) -> int:
        return int(self.target[-1]) + 1 if len(self.target) else 0

    @classmethod
    def from_arcs(
        cls,
        start: int,
        end: int,
        source: np.ndarray,
        target: np.ndarray,
        word: np.ndarray,
        graph: np.ndarray,
        acoustic: np.ndarray,
        tids: Sequence[bytes],
    ) -> "Lattice":
        """Number states anew, and leave out what is on no path from `start` to `end`.

        Raises AsrKdError for a cycle, and where there is no path.
        """
        source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
        rank = _ranks(start, end, source, target)
        kept = np.flatnonzero((rank[source] >= 0) & (rank[target] >= 0))
        kept = kept[np.lexsort((np.asarray(word)[kept], rank[target[kept]], rank[source[kept]]))]
        return cls(
            rank[source[kept]],
            rank[target[kept]],
            np.asarray(word, np.int64)[kept],
            np.asarray(graph, np.float64)[kept],
            np.asarray(acoustic, np.float64)[kept],
            tuple(tids[arc] for arc in kept.tolist()),
        )

    @cached_property
    def first_arc(self) -> np.ndarray:
        """Where the arcs of each state begin, (num_states + 1,) int64."""
        return np.searchsorted(self.source, np.arange(self.num_states + 1))

    @cached_property
    def times(self) -> np.ndarray:
        """Frames before each state, (num_states,) int64.

        Raises AsrKdError where two paths to a state differ in theirs, as in no lattice of a decoder.
        """
        times = [-1] * self.num_states
        times[0] = 0
        for source, target, tids in zip(self.source.tolist(), self.target.tolist(), self.tids, strict=True):
            time = times[source] + len(tids) // 4
            if times[target] not in (-1, time):
                raise AsrKdError(f"two paths to a state of the lattice have {times[target]} and {time} frames")
            times[target] = time
        return np.array(times, dtype=np.int64)

    @property
    def num_frames(self) -> int:
        return int(self.times[-1])

    @property
    def depth(self) -> float:
        """Mean number of arcs over a frame, as Kaldi's lattice-depth counts them."""
        return sum(map(len, self.tids)) / 4 / max(1, self.num_frames)

    def costs(self, acwt: float, insertion_penalty: float = 0.0) -> np.ndarray:
        """Cost of each arc, (num_arcs,): graph + acwt · acoustic, and the penalty where there is a word.

        Raises AsrKdError for scales that are no scales.
        """
        if not (acwt >= 0 and np.isfinite(acwt)) or not np.isfinite(insertion_penalty):
            raise AsrKdError(f"bad scales: acwt {acwt}, insertion_penalty {insertion_penalty}")
        return self.graph + acwt * self.acoustic + insertion_penalty * (self.word != 0)

    def costs_from_start(self, costs: np.ndarray) -> np.ndarray:
        """Cost of the best path from the start to each state, (num_states,), for the arcs' `costs`."""
        return lattice_passes.costs_from_start(self.source, self.target, costs, self.num_states)

    def costs_to_end(self, costs: np.ndarray) -> np.ndarray:
        """Cost of the best path from each state to the end, (num_states,), for the arcs' `costs`."""
        return lattice_passes.costs_to_end(self.source, self.target, costs, self.num_states)

    def pruned(self, beam: float, acwt: float, insertion_penalty: float = 0.0) -> "Lattice":
        """Without the arcs whose best path costs more than the best path of all by more than `beam`.

        Raises AsrKdError for a beam below 0.
        """
        if not beam >= 0:
            raise AsrKdError(f"a lattice cannot be pruned to a beam of {beam}")
        costs = self.costs(acwt, insertion_penalty)
        to_end = self.costs_to_end(costs)
        through = self.costs_from_start(costs)[self.source] + costs + to_end[self.target]
        # The sums along one path differ in their last digits, by the order in which they are taken.
        rounding = 1e-12 * max(1.0, float(np.abs(costs).sum()))
        return self.of_arcs(np.flatnonzero(through <= to_end[0] + beam + rounding))

    def of_arcs(self, arcs: np.ndarray) -> "Lattice":
        """The lattice of some of its arcs, (num_kept,) int; raises AsrKdError where no path is left."""
        columns = (column[arcs] for column in (self.source, self.target, self.word, self.graph, self.acoustic))
        return Lattice.from_arcs(0, self.num_states - 1, *columns, [self.tids[arc] for arc in arcs.tolist()])

    def oracle_errors(self, ref: Sequence[int]) -> int:
        """Fewest word errors against `ref`, word ids, of any path: what no rescoring can get below."""
        num_ref, reference = len(ref), np.array(ref, dtype=np.int64)
        index = np.arange(num_ref + 1)
        # errors[state][n]: fewest errors of a path to the state against the first n words of the reference.
        errors = np.full((self.num_states, num_ref + 1), np.iinfo(np.int64).max // 2)
        errors[0] = index
        for source, target, word in zip(self.source.tolist(), self.target.tolist(), self.word.tolist(), strict=True):
            arriving = errors[source]
            if word:
                arriving = arriving + 1
                arriving[1:] = np.minimum(arriving[1:], errors[source][:-1] + (reference != word))
                arriving = np.minimum.accumulate(arriving - index) + index
            errors[target] = np.minimum(errors[target], arriving)
        return int(errors[-1, -1])


def _ranks(start: int, end: int, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """New number of each state in topological order, (num_states,) int64; −1 where it is on no path to the end."""
    num_states = int(max(start, end, source.max(initial=0), target.max(initial=0))) + 1
    if min(start, end, source.min(initial=0), target.min(initial=0)) < 0:
        raise AsrKdError("the lattice has states below 0")
    following, before = Neighbours.of(source, target, num_states), Neighbours.of(target, source, num_states)
    rank, num_useful, num_ranked = lattice_passes.topological_order(start, end, following, before)
    if start == end or not num_useful:
        raise AsrKdError("the lattice has no path from its start to its end")
    if num_ranked != num_useful:
        raise AsrKdError("the lattice has a cycle")
    return rank
