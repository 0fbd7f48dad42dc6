"""Passes over the arcs of a lattice, compiled: the order of its states, best paths, and the ways to a next word."""

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from asr_kd.hmm.compiled import compiled


class Neighbours(NamedTuple):
    """For each state others: first (num_states + 1,) int64, where its own begin in `others` (num_arcs,) int64."""

    first: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray, others: np.ndarray, num_states: int) -> "Neighbours":
        """From two columns of as many arcs; what belongs to one state keeps its order."""
        order = np.argsort(states, kind="stable")
        return cls(np.searchsorted(states[order], np.arange(num_states + 1)), others[order])


@compiled
def _reached(begin, neighbours):
    """Which states a walk from `begin` comes to, (num_states,) bool."""
    reached = np.zeros(len(neighbours.first) - 1, np.bool_)
    reached[begin] = True
    waiting = [begin]
    while waiting:
        state = waiting.pop()
        for n in range(neighbours.first[state], neighbours.first[state + 1]):
            other = neighbours.others[n]
            if not reached[other]:
                reached[other] = True
                waiting.append(other)
    return reached


@compiled
def topological_order(start, end, following, before):
    """New number of each state, (num_states,) int64, −1 where it is on no path; how many are on one; how many got a
    number: fewer where there is a cycle.
    """
    useful = _reached(start, following) & _reached(end, before)
    missing = np.zeros(len(useful), np.int64)
    for state in np.flatnonzero(useful):
        for n in range(before.first[state], before.first[state + 1]):
            missing[state] += useful[before.others[n]]
    rank, count = np.full(len(useful), -1, np.int64), 0
    ready = [start]
    if not useful[start] or missing[start]:
        ready.pop()
    while ready:
        state = ready.pop()
        rank[state] = count
        count += 1
        for n in range(following.first[state], following.first[state + 1]):
            other = following.others[n]
            if useful[other]:
                missing[other] -= 1
                if not missing[other]:
                    ready.append(other)
    return rank, useful.sum(), count


@compiled
def costs_from_start(source, target, costs, num_states):
    """Cost of the best path from state 0 to each, (num_states,) float64; arcs in the order of their source."""
    best = np.full(num_states, np.inf)
    best[0] = 0.0
    for arc in range(len(source)):
        best[target[arc]] = min(best[target[arc]], best[source[arc]] + costs[arc])
    return best


@compiled
def costs_to_end(source, target, costs, num_states):
    """Cost of the best path from each state to the last, (num_states,) float64; arcs in the order of their source."""
    best = np.full(num_states, np.inf)
    best[-1] = 0.0
    for arc in range(len(source) - 1, -1, -1):
        best[source[arc]] = min(best[source[arc]], costs[arc] + best[target[arc]])
    return best


class WordArcs(NamedTuple):
    """The arcs of a lattice as `ways_to_words` reads them.

    first: (num_states + 1,), where the arcs of each state begin; target, and `ending`, (num_arcs,) int64: the number of
    the pair of word and target where an arc has a word or leads to the end, else −1; excess: (num_arcs,) float64.
    """

    first: np.ndarray
    target: np.ndarray
    ending: np.ndarray
    excess: np.ndarray


class Arrivals(NamedTuple):
    """By what is arrived at: the excess of the best way, its last arc and the place of what it came by; stamp: of which
    search they are, of all others they mean nothing.
    """

    excess: np.ndarray
    arc: np.ndarray
    before: np.ndarray
    stamp: np.ndarray

    @classmethod
    def of(cls, size: int) -> "Arrivals":
        """Of nothing yet."""
        arc, before, stamp = (np.full(size, -1) for _ in range(3))
        return cls(np.empty(size), arc, before, stamp)


@compiled
def ways_to_words(source, limit, arcs, at_states, at_words):
    """Best ways from a state along arcs without a word, and an ending arc behind them, of an excess up to `limit`.

    Returns of the states on them, in topological order, the arc that each is reached by and the place of the one before
    it in this order (−1 at the source), two (num_reached,) int64; and of words, in the order in which they were first
    met, (num_words,): numbers of pairs, excess, last arc, and the place of the state that it leaves.
    """
    order, met = np.empty(len(at_states.stamp), np.int64), np.empty(len(at_words.stamp), np.int64)
    num_reached, num_met = 0, 0
    at_states.stamp[source], at_states.excess[source] = source, 0.0
    at_states.arc[source], at_states.before[source] = -1, -1
    waiting = [source]
    while waiting:
        state = heappop(waiting)  # states are in topological order: nothing better can come later
        for arc in range(arcs.first[state], arcs.first[state + 1]):
            excess = arcs.excess[arc] + at_states.excess[state]
            if excess > limit:
                continue
            arrivals, there = at_states, arcs.target[arc]
            if arcs.ending[arc] >= 0:
                arrivals, there = at_words, arcs.ending[arc]
            if arrivals.stamp[there] != source:
                arrivals.stamp[there] = source
                if arcs.ending[arc] >= 0:
                    met[num_met] = there
                    num_met += 1
                else:
                    heappush(waiting, there)
            elif excess >= arrivals.excess[there]:
                continue
            arrivals.excess[there], arrivals.arc[there], arrivals.before[there] = excess, arc, num_reached
        order[num_reached] = state
        num_reached += 1
    reached, words = order[:num_reached], met[:num_met].copy()
    ways = at_states.arc[reached], at_states.before[reached]
    return ways, (words, at_words.excess[words], at_words.arc[words], at_words.before[words])
