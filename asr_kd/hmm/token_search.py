"""Token passing that keeps every way to a token, on arrays: the search behind lattices (Povey et al. 2012; Kaldi's
LatticeFasterDecoder, whose pruning this follows).

The tokens of a frame are the states that the beam reaches in it, each once, with the cost of the best path there. A
link is an arc between two tokens, and its excess is how much worse than the target's best path the best one through it
is. No link with an excess above the lattice beam can be in a lattice, so that little more than one a token is kept.
"""

from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.graph_arcs import GraphArcs

PRUNE_EVERY = 100  # frames, so that an hour of speech needs no more memory than its lattice
SLACK = 0.5  # beyond the worst token kept, where their number and not the beam limits the search


@dataclass(frozen=True)
class Links:
    """source, target: tokens; arc: index into the graph's arcs; excess: costs; (num_links,) each."""

    source: np.ndarray
    target: np.ndarray
    arc: np.ndarray
    excess: np.ndarray

    def where(self, kept: np.ndarray) -> "Links":
        return Links(self.source[kept], self.target[kept], self.arc[kept], self.excess[kept])


@dataclass(frozen=True)
class Tokens:
    """Those after a frame: state, cost: (num_tokens,); entering: links from the frame before; inside: from each other,
    along arcs that read nothing.
    """

    state: np.ndarray
    cost: np.ndarray
    entering: Links
    inside: Links


class _Fan:
    """The arcs of a graph that read something, or those that read nothing, by the state that they leave."""

    def __init__(self, arcs: GraphArcs, weight: np.ndarray, chosen: np.ndarray) -> None:
        self._arc = np.flatnonzero(chosen)
        self._first = np.searchsorted(arcs.source[self._arc], np.arange(arcs.num_states + 1))
        self._count = np.diff(self._first)
        self._target, self._weight = arcs.target[self._arc], weight[self._arc]

    def any_of(self, states: np.ndarray) -> np.ndarray:
        return self._count[states] > 0

    def of(self, states: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Index into `states`, target, arc and cost at its end of each arc that leaves one of them."""
        counts = self._count[states]
        before = np.cumsum(counts) - counts
        source = np.repeat(np.arange(len(states)), counts)
        rows = np.arange(len(source)) + (self._first[states] - before)[source]
        return source, self._target[rows], self._arc[rows], costs[source] + self._weight[rows]


class TokenSearch:
    """Reusable, one utterance at a time.

    arcs: with the insertion penalty in their weights; t2pdf: as a Graph's; beam, lattice_beam, min_active, max_active:
    as a LatticeDecoder's. Raises AsrKdError for a graph in which a path can go on for ever and read nothing.
    """

    def __init__(
        self,
        arcs: GraphArcs,
        t2pdf: np.ndarray,
        beam: float,
        lattice_beam: float,
        min_active: int,
        max_active: int,
    ) -> None:
        self._start, self._final = arcs.start, arcs.final
        self._beam, self._lattice_beam = beam, lattice_beam
        self._min_active, self._max_active = min_active, max_active
        self._reading = _Fan(arcs, arcs.weight, arcs.ilabel > 0)
        self._silent = _Fan(arcs, arcs.weight, arcs.ilabel == 0)
        self._pdf = t2pdf[arcs.ilabel]
        _require_ends(arcs)
        # Scratch, by state: the best cost in this frame, and the number of a state's token.
        self._best = np.full(arcs.num_states, np.inf)
        self._number = np.zeros(arcs.num_states, dtype=np.int64)

    def search(self, scores: np.ndarray) -> tuple[list[Tokens], np.ndarray] | None:
        """Tokens before the first and after each frame of `scores` (num_frames, num_pdfs), acwt-scaled, and what it
        costs to end at each of the last; only tokens and links of paths within the lattice beam. None where none end.

        The first token of all is that of the start. Where no path ends in a final state, all end as they are.
        """
        nothing = np.zeros(0, dtype=np.int64)
        start, no_arcs = np.array([self._start]), (nothing, nothing, nothing, np.zeros(0))
        self._best[start] = 0.0
        frames = [self._tokens(start, np.inf, *no_arcs)]
        for row in scores:
            tokens = self._advanced(frames[-1], row)
            if tokens is None:
                return None
            frames.append(tokens)
            if len(frames) % PRUNE_EVERY == 0:
                self._prune(frames, len(frames) - PRUNE_EVERY, np.zeros(len(tokens.state)))
        through = frames[-1].cost + self._ends(frames[-1].state)
        self._prune(frames, 0, through - through.min())
        return frames, self._ends(frames[-1].state)

    def _ends(self, states: np.ndarray) -> np.ndarray:
        """Costs to end at the states of the last frame's tokens, infinite at some; 0 where a path can end at none."""
        ends = self._final[states]
        return ends if np.isfinite(ends).any() else np.zeros(len(ends))

    def _advanced(self, tokens: Tokens, row: np.ndarray) -> Tokens | None:
        """Those a frame later, whose scores are `row` (num_pdfs,)."""
        limit, width = self._limits(tokens.cost)
        sources = np.flatnonzero(tokens.cost <= limit)
        source, target, arc, cost = self._reading.of(tokens.state[sources], tokens.cost[sources])
        if not len(arc):
            return None
        cost -= row[self._pdf[arc]]
        limit = cost.min() + width
        near = np.flatnonzero(cost <= limit)
        source, target, arc, cost = sources[source[near]], target[near], arc[near], cost[near]
        np.minimum.at(self._best, target, cost)
        return self._tokens(self._distinct(target), limit, source, target, arc, cost)

    def _limits(self, costs: np.ndarray) -> tuple[float, float]:
        """Cost of the worst token to go on from, and how much worse than the best one those of the next frame may be
        (Kaldi's GetCutoff).
        """
        best, limit = costs.min(), costs.min() + self._beam
        if len(costs) > self._max_active:
            worst = np.partition(costs, self._max_active - 1)[self._max_active - 1]
            if worst < limit:
                return worst, worst - best + SLACK
        if self._min_active:
            rank = min(self._min_active, len(costs)) - 1
            worst = np.partition(costs, rank)[rank]
            if worst > limit:
                return worst, worst - best + SLACK
        return limit, self._beam

    def _tokens(
        self,
        states: np.ndarray,
        limit: float,
        source: np.ndarray,
        target: np.ndarray,
        arc: np.ndarray,
        cost: np.ndarray,
    ) -> Tokens:
        """Those at `states`, whose best costs are known, and at what can be reached from these without reading; with
        the arcs that lead to `states`, given by their tokens of the frame before, target state, arc and cost there.
        """
        found, waiting = [states], states
        while len(waiting := waiting[self._silent.any_of(waiting)]):
            _, reached, _, there = self._silent.of(waiting, self._best[waiting])
            better = np.flatnonzero((there < self._best[reached]) & (there <= limit))
            reached, there = reached[better], there[better]
            new = reached[np.isinf(self._best[reached])]
            np.minimum.at(self._best, reached, there)
            found.append(self._distinct(new))
            waiting = self._distinct(reached)
        states = np.concatenate(found)
        costs = self._best[states]
        self._number[states] = np.arange(len(states))
        entering = self._links(source, target, arc, cost)
        leaving = np.flatnonzero(self._silent.any_of(states))
        inside = self._silent.of(states[leaving], costs[leaving])
        inside = self._links(leaving[inside[0]], *inside[1:])
        self._best[states] = np.inf
        return Tokens(states, costs, entering, inside)

    def _links(self, source: np.ndarray, target: np.ndarray, arc: np.ndarray, cost: np.ndarray) -> Links:
        """Those between tokens whose excess is within the lattice beam."""
        # What is no token has an infinite best cost.
        excess = cost - self._best[target]
        near = np.flatnonzero((excess >= 0) & (excess <= self._lattice_beam))
        return Links(source[near], self._number[target[near]], arc[near], excess[near])

    def _distinct(self, states: np.ndarray) -> np.ndarray:
        """Each of `states` once."""
        order = np.arange(len(states))
        self._number[states] = order  # of several the last one stays
        return states[self._number[states] == order]

    def _prune(self, frames: list[Tokens], first: int, excess: np.ndarray) -> None:
        """Leave out of `frames`, from number `first` on, what is on no path within the lattice beam.

        excess: of the last frame's tokens, (num_tokens,).
        """
        last, beam = len(frames) - 1, self._lattice_beam
        for index in range(last, first - 1, -1):
            entering, inside = frames[index].entering, frames[index].inside
            excess = _settled(excess, inside)
            kept = np.flatnonzero(excess <= beam)
            number = np.full(len(excess), -1)
            number[kept] = np.arange(len(kept))
            if index < last:
                behind = frames[index + 1].entering
                behind.source[:] = number[behind.source]
            entering, through = _near(entering, excess, beam)
            inside, _ = _near(inside, excess, beam)
            if index:
                excess = np.full(len(frames[index - 1].state), np.inf)
                np.minimum.at(excess, entering.source, through)
            entering.target[:] = number[entering.target]
            inside.source[:], inside.target[:] = number[inside.source], number[inside.target]
            frames[index] = Tokens(frames[index].state[kept], frames[index].cost[kept], entering, inside)


def _near(links: Links, excess: np.ndarray, beam: float) -> tuple[Links, np.ndarray]:
    """The links on paths within the beam, for the excess of tokens, and the excess of the best path through each."""
    through = excess[links.target] + links.excess
    kept = np.flatnonzero(through <= beam)
    return links.where(kept), through[kept]


def _settled(excess: np.ndarray, inside: Links) -> np.ndarray:
    """Excess of tokens, (num_tokens,), along links inside the frame too."""
    excess = excess.copy()
    while len(inside.source):
        through = excess[inside.target] + inside.excess
        better = through < excess[inside.source]
        if not better.any():
            break
        np.minimum.at(excess, inside.source[better], through[better])
    return excess


def _require_ends(arcs: GraphArcs) -> None:
    """Raises AsrKdError where arcs that read nothing form a cycle."""
    silent = np.flatnonzero(arcs.ilabel == 0)
    while len(silent):
        # Arcs into states that none of these leaves are on no cycle.
        leaves = np.zeros(arcs.num_states, dtype=bool)
        leaves[arcs.source[silent]] = True
        left = silent[leaves[arcs.target[silent]]]
        if len(left) == len(silent):
            raise AsrKdError(
                "the decoding graph has a cycle of arcs that read nothing, along which a search never ends"
            )
        silent = left
