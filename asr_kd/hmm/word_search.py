"""Search of a lattice word by word: exact n-best lists, and determinisation (Mohri 1997; Povey et al. 2012).

A lattice holds a word sequence many times, with other times of the words, other pronunciations, and silence or none
between them. Both searches here follow all of these at once: a hypothesis is the set of states that its words can have
led to, each with the best path there. Costs are made relative to the best way to the end, so that every step costs 0 or
more, and what comes next off the heap is the best of all that is left, exactly.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.lattice_passes import Arrivals, WordArcs, ways_to_words

MAX_ARCS = 200_000  # of a determinised lattice; the beam is narrowed where it would have more
_ROUNDING = 1e-6  # of costs, so that what is just within a beam is not left out
_SAME = 5  # digits to which costs that are left over must agree for two sets of states to be the same


class _Way(NamedTuple):
    """How a state was reached: excess over the best path (relative to where it began), costs, transition-ids."""

    excess: float
    graph: float
    acoustic: float
    tids: bytes


class _Hypothesis(NamedTuple):
    """The states that some words can have led to, each with its way there, in the order of states."""

    states: tuple[int, ...]
    ways: tuple[_Way, ...]

    @property
    def key(self) -> tuple:
        """Equal for hypotheses that go on alike."""
        return self.states, tuple((round(way.excess, _SAME), way.tids) for way in self.ways)


class _Step(NamedTuple):
    """A word, or the end of the lattice for 0: what is certain of it, and the hypothesis that it leads to."""

    word: int
    way: _Way
    hypothesis: _Hypothesis


class _Region(NamedTuple):
    """What can be reached from a state without a word, and the words behind that.

    arc, before: of each state that is reached, in topological order, the arc of the best way to it and the place of the
    state before it, (num_reached,) int64; words: word, state behind it (the end for 0), excess, arc and the place of
    the state that the arc leaves; ways: by place, graph cost, acoustic cost and transition-ids, where they were asked
    for.
    """

    arc: np.ndarray
    before: np.ndarray
    words: list[tuple[int, int, float, int, int]]
    ways: dict[int, tuple[float, float, bytes]]


class _WordSteps:
    """The steps from hypothesis to hypothesis through a lattice, at one acoustic scale and insertion penalty."""

    def __init__(self, lattice: Lattice, acwt: float, insertion_penalty: float, beam: float) -> None:
        costs = lattice.costs(acwt, insertion_penalty)
        to_end = lattice.costs_to_end(costs)
        self._end = lattice.num_states - 1
        # What is left of the beam behind the best way to each state.
        self._left = (beam + _ROUNDING + to_end[0] - to_end - lattice.costs_from_start(costs)).tolist()
        excess = np.maximum(costs + to_end[lattice.target] - to_end[lattice.source], 0.0)
        ends = (lattice.word != 0) | (lattice.target == self._end)
        words = np.stack([lattice.word[ends], lattice.target[ends]], axis=1)
        self._words, pair = np.unique(words, axis=0, return_inverse=True)
        ending = np.full(len(ends), -1, dtype=np.int64)
        ending[ends] = pair.reshape(-1)
        self._steps = WordArcs(lattice.first_arc, lattice.target, ending, excess)
        self._arrivals = Arrivals.of(lattice.num_states), Arrivals.of(len(self._words))
        self._arcs = list(zip(lattice.graph.tolist(), lattice.acoustic.tolist(), lattice.tids, strict=True))
        self._known: dict[int, _Region] = {}
        self.start = _Hypothesis((0,), (_Way(0.0, 0.0, 0.0, b""),))

    def steps(self, hypothesis: _Hypothesis, budget: float) -> Iterator[_Step]:
        """Every next word, and the end, that exceeds the best path from `hypothesis` on by at most `budget`."""
        best: dict[int, dict[int, tuple[float, _Way, _Region, int, int]]] = {}
        for state, way in zip(*hypothesis, strict=True):
            region = self._from(state)
            for word, target, more, arc, place in region.words:
                excess = way.excess + more
                if excess <= budget and excess < best.setdefault(word, {}).get(target, (np.inf,))[0]:
                    best[word][target] = (excess, way, region, arc, place)
        for word, targets in sorted(best.items()):
            ways = {}
            for target, (excess, way, *last) in targets.items():
                graph, acoustic, tids = self._along(*last)
                ways[target] = _Way(excess, way.graph + graph, way.acoustic + acoustic, way.tids + tids)
            yield _factored(word, ways)

    def _from(self, source: int) -> _Region:
        """What can be reached from a state along arcs without a word, and one with a word behind them, as far as it is
        within the beam on the best way to the state.
        """
        if source not in self._known:
            (arc, before), words = ways_to_words(source, self._left[source], self._steps, *self._arrivals)
            columns = [column.tolist() for column in (*self._words[words[0]].T, *words[1:])]
            self._known[source] = _Region(arc, before, list(zip(*columns, strict=True)), {0: (0.0, 0.0, b"")})
        return self._known[source]

    def _along(self, region: _Region, arc: int, place: int) -> tuple[float, float, bytes]:
        """Graph cost, acoustic cost and transition-ids of the way to a word; those of its beginnings are kept."""
        trail = []
        while place not in region.ways:
            trail.append(place)
            place = int(region.before[place])
        way = region.ways[place]
        for passed in reversed(trail):
            way = region.ways[passed] = self._extended(way, int(region.arc[passed]))
        return self._extended(way, arc)

    def _extended(self, way: tuple[float, float, bytes], arc: int) -> tuple[float, float, bytes]:
        graph, acoustic, tids = self._arcs[arc]
        return way[0] + graph, way[1] + acoustic, way[2] + tids


def _factored(word: int, ways: dict[int, _Way]) -> _Step:
    """What the ways to some states share goes on the step; what is left over stays with the states."""
    states = tuple(sorted(ways))
    least = min(way.excess for way in ways.values())
    # Of ways that are equally good but for rounding always the same one, so that equal keys mean equal costs left over.
    best = ways[min(states, key=lambda state: (round(ways[state].excess - least, _SAME), state))]
    shared = _common_prefix([way.tids for way in ways.values()])
    left_over = tuple(
        _Way(w.excess - best.excess, w.graph - best.graph, w.acoustic - best.acoustic, w.tids[len(shared) :])
        for w in (ways[state] for state in states)
    )
    return _Step(word, _Way(best.excess, best.graph, best.acoustic, shared), _Hypothesis(states, left_over))


def _common_prefix(strings: Sequence[bytes]) -> bytes:
    """The whole transition-ids that all of `strings` begin with."""
    low, high = min(strings), max(strings)
    length = min(len(low), len(high)) // 4
    differs = bisect_left(range(1, length + 1), True, key=lambda n: low[: 4 * n] != high[: 4 * n])
    return low[: 4 * differs]


@dataclass(frozen=True)
class Path:
    """A word sequence with its best path: word ids, graph and acoustic cost as in the lattice, cost at the scales that
    were searched with, and transition_ids (num_frames,) int64.
    """

    words: tuple[int, ...]
    graph: float
    acoustic: float
    cost: float
    transition_ids: np.ndarray


class _Trail(NamedTuple):
    """A step and the trail that it ended."""

    before: "_Trail | None"
    step: _Step


def nbest(lattice: Lattice, n: int, acwt: float, insertion_penalty: float = 0.0) -> list[Path]:
    """The `n` best word sequences, each once, in the order of their costs; fewer where the lattice has no more.

    Exact: each stands with the best of its paths at these scales. Sequences of equal cost come in an order that is
    always the same. Raises AsrKdError for scales that are no scales.
    """
    search, order = _WordSteps(lattice, acwt, insertion_penalty, np.inf), count()
    heap: list[tuple[float, int, _Trail | None, _Hypothesis]] = [(0.0, next(order), None, search.start)]
    paths: list[Path] = []
    while heap and len(paths) < n:
        excess, _, trail, hypothesis = heapq.heappop(heap)
        if trail is not None and trail.step.word == 0:
            paths.append(_path(trail, acwt, insertion_penalty))
            continue
        for step in search.steps(hypothesis, np.inf):
            heapq.heappush(heap, (excess + step.way.excess, next(order), _Trail(trail, step), step.hypothesis))
    return paths


def _path(trail: _Trail | None, acwt: float, insertion_penalty: float) -> Path:
    steps = []
    while trail is not None:
        steps.append(trail.step)
        trail = trail.before
    steps.reverse()
    words = tuple(step.word for step in steps[:-1])
    graph, acoustic = (float(sum(getattr(step.way, name) for step in steps)) for name in ("graph", "acoustic"))
    tids = np.frombuffer(b"".join(step.way.tids for step in steps), "<i4").astype(np.int64)
    return Path(words, graph, acoustic, graph + acwt * acoustic + insertion_penalty * len(words), tids)


def determinize(
    lattice: Lattice, beam: float, acwt: float, insertion_penalty: float = 0.0, max_arcs: int = MAX_ARCS
) -> Lattice:
    """An arc for every word, and every word sequence at most once, by its best path at these scales.

    Exact within `beam`: it holds every word sequence whose cost exceeds that of the best by at most `beam`, with its
    cost at these scales, and no arc whose best path costs more. At other scales, a word sequence still stands with the
    path that was its best at these: its cost is then an upper bound. Where more than `max_arcs` would be needed, arcs
    of the costliest paths are left out. Raises AsrKdError for a beam below 0.
    """
    if not beam >= 0:
        raise AsrKdError(f"a lattice cannot be determinised within a beam of {beam}")
    search, order = _WordSteps(lattice, acwt, insertion_penalty, beam), count()
    end, numbers = 0, {search.start.key: 1}
    heap = [(0.0, next(order), search.start)]
    done: set[int] = set()
    arcs: list[tuple[int, int, int, float, float, bytes]] = []
    while heap and len(arcs) < max_arcs:
        excess, _, hypothesis = heapq.heappop(heap)
        state = numbers[hypothesis.key]
        if state in done:
            continue
        done.add(state)
        for word, way, following in search.steps(hypothesis, beam - excess):
            target = numbers.setdefault(following.key, len(numbers) + 1) if word else end
            arcs.append((state, target, word, way.graph, way.acoustic, way.tids))
            if word and target not in done:
                heapq.heappush(heap, (excess + way.excess, next(order), following))
    source, target, word, graph, acoustic, tids = zip(*arcs, strict=True)
    return Lattice.from_arcs(1, end, source, target, word, graph, acoustic, tids)
