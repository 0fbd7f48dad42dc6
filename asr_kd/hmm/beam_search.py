"""Time-synchronous Viterbi beam search over a graph, compiled by numba.

It prunes as Kaldi's FasterDecoder does: by a beam around the best token of a frame, made narrower where more than
max_active tokens are within it and wider where fewer than min_active are. Tokens are rows of arrays, and a state finds
its token by a table as long as the graph has states: without hashing and allocation it is several times as fast.

A token is a state after so many frames, with the cost of the best path there: `prev` is the token before it on that
path and `arc` the arc between them. For lattices (Povey et al. 2012) every token is kept, and a pass from the end
backwards finds all arcs between tokens, not those of best paths alone, that lie on a path within the lattice beam.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.compiled import compiled
from asr_kd.hmm.graph_arcs import GraphArcs

BEAM_DELTA = np.float32(0.5)  # Kaldi's: what the beam has to spare where max_active or min_active set it
FIRST_TOKENS = 1 << 16
ROUNDING = 1e-4  # by which costs of one path may differ, since searches sum them in other orders


class NoPathError(AsrKdError):
    """The search lost every path: the utterance is too short for any words, or the beam too narrow."""


class SearchArcs(NamedTuple):
    """The arcs of a graph by their source state, first all that have an input label, then those that have none.

    first_emitting, first_epsilon: (num_states + 1,) int32, where the arcs of each state begin; target, pdf (−1 for
    none): (num_arcs,) int32; weight: (num_arcs,) float32 costs.
    """

    first_emitting: np.ndarray
    first_epsilon: np.ndarray
    target: np.ndarray
    pdf: np.ndarray
    weight: np.ndarray


class Limits(NamedTuple):
    """What bounds the search."""

    beam: float
    min_active: int
    max_active: int


class Tokens(NamedTuple):
    """All tokens of an utterance, frame by frame, those of the start first.

    state, prev, arc: (num_tokens,) int32; cost: (num_tokens,) float32, to which `offset` (num_frames + 1,) float64 of
    the frame is to be added; first: (num_frames + 2,) int64, where the tokens of each frame begin, of which only the
    last two mean anything where not all tokens were kept.
    """

    state: np.ndarray
    prev: np.ndarray
    arc: np.ndarray
    cost: np.ndarray
    first: np.ndarray
    offset: np.ndarray


@compiled
def _longer(array, length):
    longer = np.empty(length, array.dtype)
    for n in range(len(array)):  # an assignment of slices takes ten times as long to compile
        longer[n] = array[n]
    return longer


@compiled
def _nth(costs, n):
    """The n-th smallest cost, from 0; `costs` is put in another order, the n smallest first (Hoare's quickselect)."""
    low, high = 0, len(costs) - 1
    while low < high:
        pivot = costs[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while costs[left] < pivot:
                left += 1
            while costs[right] > pivot:
                right -= 1
            if left <= right:
                costs[left], costs[right] = costs[right], costs[left]
                left += 1
                right -= 1
        if n <= right:
            high = right
        elif n >= left:
            low = left
        else:
            break
    return costs[n]


@compiled
def _cutoff(costs, best, beam, min_active, max_active):
    """Cost up to which tokens are followed, and the beam for what comes next; `costs` is put in another order."""
    cutoff, num_left = best + beam, len(costs)
    if num_left > max_active:
        most = _nth(costs, max_active - 1)
        if most < cutoff:
            return most, most - best + BEAM_DELTA
        num_left = max_active
    if num_left <= min_active:
        return np.float32(np.inf), np.float32(np.inf)
    if min_active > 0:
        least = _nth(costs[:num_left], min_active - 1)
        if least > cutoff:
            return least, least - best + BEAM_DELTA
    return cutoff, beam


@compiled
def _follow_epsilon(arcs, slot, state, cost, prev, arc_of, count, cutoff, waiting):
    """Follow arcs without input from the `count` new tokens; how many there are then."""
    for n in range(count):
        waiting[n] = n
    num_waiting = count
    while num_waiting:
        num_waiting -= 1
        here = waiting[num_waiting]
        for arc in range(arcs.first_epsilon[state[here]], arcs.first_epsilon[state[here] + 1]):
            arriving = cost[here] + arcs.weight[arc]
            if arriving > cutoff:
                continue
            there = slot[arcs.target[arc]]
            if there < 0:
                there = count
                slot[arcs.target[arc]], state[there] = there, arcs.target[arc]
                count += 1
            elif arriving >= cost[there]:
                continue
            cost[there], prev[there], arc_of[there] = arriving, here, arc
            if num_waiting == len(waiting):
                waiting = _longer(waiting, 2 * num_waiting)
            waiting[num_waiting] = there
            num_waiting += 1
    return count


@compiled
def _compact(state, prev, arc_of, cost, last_first, num_tokens):
    """Leave out tokens that none of the last frame, from last_first on, goes back to; where that frame begins then."""
    number = np.zeros(num_tokens, np.int32)
    for token in range(last_first, num_tokens):
        here = token
        while here >= 0 and number[here] == 0:
            number[here] = 1
            here = prev[here]
    kept, first = 0, 0
    for token in range(num_tokens):
        if token == last_first:
            first = kept
        if number[token]:
            number[token] = kept
            kept += 1
        else:
            number[token] = -1
    for token in range(num_tokens):
        if number[token] >= 0:
            to = number[token]
            state[to], arc_of[to], cost[to] = state[token], arc_of[token], cost[token]
            prev[to] = number[prev[token]] if prev[token] >= 0 else -1
    return first, kept


@compiled
def _search(arcs, start, scores, limits, keep_all, slot):
    """Tokens for scaled log-likelihoods `scores` (num_frames, num_pdfs), and whether any are left in the end.

    slot: (num_states,) int32, −1 everywhere, before and after.
    """
    num_frames, num_states = scores.shape[0], len(slot)
    num_emitting = arcs.first_epsilon[0]
    tok_state, tok_prev = np.empty(FIRST_TOKENS, np.int32), np.empty(FIRST_TOKENS, np.int32)
    tok_arc, tok_cost = np.empty(FIRST_TOKENS, np.int32), np.empty(FIRST_TOKENS, np.float32)
    first, offset = np.zeros(num_frames + 2, np.int64), np.zeros(num_frames + 1, np.float64)
    # Of the frame that is being made; memory that is never touched is never taken.
    state, prev = np.empty(num_states, np.int32), np.empty(num_states, np.int32)
    arc_of, cost = np.empty(num_states, np.int32), np.empty(num_states, np.float32)
    waiting = np.empty(num_states, np.int32)
    state[0], cost[0], prev[0], arc_of[0] = start, 0.0, -1, -1
    slot[start] = 0
    count = np.int64(1)
    count = _follow_epsilon(arcs, slot, state, cost, prev, arc_of, count, np.float32(np.inf), waiting)
    frame, last, num_tokens = 0, np.int64(0), np.int64(0)
    while True:
        for n in range(count):
            slot[state[n]] = -1
        if count == 0:
            break
        if num_tokens + count > len(tok_state):
            if frame > 0 and not keep_all:
                moved_to, num_tokens = _compact(tok_state, tok_prev, tok_arc, tok_cost, last, num_tokens)
                for n in range(count):  # the tokens that new ones go back to have moved together
                    if arc_of[n] < num_emitting:
                        prev[n] += moved_to - last
            if num_tokens + count > len(tok_state) // 2:
                length = 2 * max(len(tok_state), num_tokens + count)
                tok_state, tok_prev = _longer(tok_state, length), _longer(tok_prev, length)
                tok_arc, tok_cost = _longer(tok_arc, length), _longer(tok_cost, length)
        first[frame] = num_tokens
        for n in range(count):
            tok_state[num_tokens + n], tok_arc[num_tokens + n] = state[n], arc_of[n]
            tok_cost[num_tokens + n] = cost[n]
            own_frame = arc_of[n] >= num_emitting  # by an arc without input
            tok_prev[num_tokens + n] = prev[n] + num_tokens if own_frame else prev[n]
        last, num_tokens = num_tokens, num_tokens + count
        first[frame + 1] = num_tokens
        if frame == num_frames:
            break
        best = np.float32(np.inf)
        best_token = last
        for token in range(last, num_tokens):
            if tok_cost[token] < best:
                best, best_token = tok_cost[token], token
        cutoff, beam = _cutoff(
            tok_cost[last:num_tokens].copy(), best, np.float32(limits.beam), limits.min_active, limits.max_active
        )
        # Costs are kept relative to the best token before, so that float32 holds them however long the speech is.
        offset[frame + 1] = offset[frame] + best
        gains = scores[frame]
        next_cutoff = np.float32(np.inf)
        for arc in range(arcs.first_emitting[tok_state[best_token]], arcs.first_emitting[tok_state[best_token] + 1]):
            next_cutoff = min(next_cutoff, np.float32(arcs.weight[arc] - gains[arcs.pdf[arc]] + beam))
        count = np.int64(0)
        for token in range(last, num_tokens):
            if tok_cost[token] > cutoff:
                continue
            here = tok_cost[token] - np.float32(best)
            for arc in range(arcs.first_emitting[tok_state[token]], arcs.first_emitting[tok_state[token] + 1]):
                arriving = here + arcs.weight[arc] - gains[arcs.pdf[arc]]
                if arriving > next_cutoff:
                    continue
                next_cutoff = min(next_cutoff, np.float32(arriving + beam))
                there = slot[arcs.target[arc]]
                if there < 0:
                    there = count
                    slot[arcs.target[arc]], state[there] = there, arcs.target[arc]
                    count += 1
                elif arriving >= cost[there]:
                    continue
                cost[there], prev[there], arc_of[there] = arriving, token, arc
        count = _follow_epsilon(arcs, slot, state, cost, prev, arc_of, count, next_cutoff, waiting)
        frame += 1
    return count > 0, Tokens(
        tok_state[:num_tokens], tok_prev[:num_tokens], tok_arc[:num_tokens], tok_cost[:num_tokens], first, offset
    )


@compiled
def _with_row(table, row, source, target, arc):
    if row == len(table):
        longer = np.empty((2 * row, 3), np.int32)
        for n in range(row):
            for column in range(3):
                longer[n, column] = table[n, column]
        table = longer
    table[row, 0], table[row, 1], table[row, 2] = source, target, arc
    return table


@compiled
def _lattice_arcs(arcs, tokens, scores, to_end, limit, slot):
    """Arcs between tokens on paths of a cost of at most `limit`: (num_found, 3) int32, source, target, arc.

    to_end: (num_tokens,) float64, what ending there costs in the last frame, infinite for all others; filled.
    """
    num_frames = scores.shape[0]
    found, count = np.empty((FIRST_TOKENS, 3), np.int32), 0
    for frame in range(num_frames, -1, -1):
        first, end = tokens.first[frame], tokens.first[frame + 1]
        if frame < num_frames:
            for token in range(first, end):
                so_far, state = tokens.offset[frame] + tokens.cost[token], tokens.state[token]
                for arc in range(arcs.first_emitting[state], arcs.first_emitting[state + 1]):
                    there = slot[arcs.target[arc]]
                    if there < 0:
                        continue
                    cost = arcs.weight[arc] - scores[frame, arcs.pdf[arc]] + to_end[there]
                    to_end[token] = min(to_end[token], cost)
                    if so_far + cost <= limit:
                        found = _with_row(found, count, token, there, arc)
                        count += 1
            for token in range(end, tokens.first[frame + 2]):
                slot[tokens.state[token]] = -1
        for token in range(first, end):
            slot[tokens.state[token]] = token
        lowered = True
        while lowered:  # arcs without input mostly lead to later tokens
            lowered = False
            for token in range(end - 1, first - 1, -1):
                state = tokens.state[token]
                for arc in range(arcs.first_epsilon[state], arcs.first_epsilon[state + 1]):
                    there = slot[arcs.target[arc]]
                    if there >= 0 and arcs.weight[arc] + to_end[there] < to_end[token]:
                        to_end[token] = arcs.weight[arc] + to_end[there]
                        lowered = True
        for token in range(first, end):
            so_far, state = tokens.offset[frame] + tokens.cost[token], tokens.state[token]
            for arc in range(arcs.first_epsilon[state], arcs.first_epsilon[state + 1]):
                there = slot[arcs.target[arc]]
                if there >= 0 and so_far + arcs.weight[arc] + to_end[there] <= limit:
                    found = _with_row(found, count, token, there, arc)
                    count += 1
    for token in range(tokens.first[0], tokens.first[1]):
        slot[tokens.state[token]] = -1
    return found[:count]


@dataclass(frozen=True)
class FoundPath:
    """Arcs of a path in its order, as rows of the graph's arcs (num_arcs,) int64; ends: whether in a final state; cost:
    with that state's, in float64.
    """

    rows: np.ndarray
    ends: bool
    cost: float


@dataclass(frozen=True)
class FoundArcs:
    """Arcs between tokens, of which the start is number 0.

    source, target, rows (of the graph's arcs), frames (that each takes, or would take): (num_arcs,) int64;
    ending, ending_cost: the tokens that paths end with, and what that costs, (num_ends,); num_tokens: that are named.
    """

    source: np.ndarray
    target: np.ndarray
    rows: np.ndarray
    frames: np.ndarray
    ending: np.ndarray
    ending_cost: np.ndarray
    num_tokens: int


def _has_cycle(source: np.ndarray, target: np.ndarray) -> bool:
    """Whether arcs, (num_arcs,) each, form one: those that no other leads to are taken away until none is left."""
    while len(source):
        kept = np.isin(source, target)
        if kept.all():
            return True
        source, target = source[kept], target[kept]
    return False


class BeamSearch:
    """The search of one graph at one insertion penalty; reusable, one thread at a time.

    graph: its arcs; t2pdf: (num_transition_ids + 1,) as of a Graph. Raises AsrKdError for arcs without input that form
    a cycle, along which costs could fall for ever.
    """

    def __init__(self, graph: GraphArcs, t2pdf: np.ndarray, insertion_penalty: float, limits: Limits) -> None:
        self._limits, self._start, self._final = limits, graph.start, graph.final
        emitting = graph.ilabel != 0
        # Stable, and so still in the order of their source states within both kinds.
        self._order = np.concatenate([np.flatnonzero(emitting), np.flatnonzero(~emitting)])
        num_emitting = int(emitting.sum())
        states = np.arange(graph.num_states + 1)
        by_source = (graph.source[self._order[:num_emitting]], graph.source[self._order[num_emitting:]])
        weight = graph.with_insertion_penalty(insertion_penalty).weight
        pdf = np.where(emitting, t2pdf[graph.ilabel], -1)
        self._arcs = SearchArcs(
            np.searchsorted(by_source[0], states).astype(np.int32),
            (num_emitting + np.searchsorted(by_source[1], states)).astype(np.int32),
            graph.target[self._order].astype(np.int32),
            pdf[self._order].astype(np.int32),
            weight[self._order].astype(np.float32),
        )
        self._slot = np.full(graph.num_states, -1, np.int32)
        if (self._arcs.weight[num_emitting:] < 0).any() and _has_cycle(by_source[1], self._arcs.target[num_emitting:]):
            raise AsrKdError("the decoding graph has a cycle of arcs without input, and negative costs on such arcs")

    def best_path(self, scores: np.ndarray) -> FoundPath:
        """The best path for scaled log-likelihoods (num_frames, num_pdfs) float32; of unfinished ones where none ends.

        Raises NoPathError.
        """
        tokens = self._tokens(scores, keep_all=False)
        ending, final, costs, complete = self._ends(tokens)
        best = int(costs.argmin())
        arcs, token = [], int(ending[best])
        while tokens.arc[token] >= 0:
            arcs.append(tokens.arc[token])
            token = tokens.prev[token]
        arcs = np.array(arcs[::-1], dtype=np.int64)
        pdfs = self._arcs.pdf[arcs]
        # Anew in float64: sums in float32 drift.
        acoustic = scores[np.arange(len(scores)), pdfs[pdfs >= 0]].sum(dtype=np.float64)
        cost = self._arcs.weight[arcs].sum(dtype=np.float64) - acoustic + final[best]
        return FoundPath(self._order[arcs], complete, float(cost))

    def lattice(self, scores: np.ndarray, lattice_beam: float) -> FoundArcs:
        """Arcs between tokens on paths that cost at most `lattice_beam` more than the best one; raises as best_path."""
        tokens = self._tokens(scores, keep_all=True)
        ending, final, costs, _ = self._ends(tokens)
        limit = costs.min() + lattice_beam + ROUNDING
        near = costs <= limit
        to_end = np.full(len(tokens.state), np.inf)
        to_end[ending] = final
        source, target, arcs = _lattice_arcs(self._arcs, tokens, scores, to_end, limit, self._slot).T
        frames = np.searchsorted(tokens.first, source, side="right") - 1
        # Few of the tokens are left; the first one, the start, is always number 0.
        used, numbers = np.unique(np.concatenate([[0], source, target, ending[near]]), return_inverse=True)
        source, target, ending = np.split(numbers[1:], np.cumsum([len(source), len(target)]))
        return FoundArcs(source, target, self._order[arcs], frames, ending, final[near], len(used))

    def _tokens(self, scores: np.ndarray, keep_all: bool) -> Tokens:
        survives, tokens = _search(self._arcs, self._start, scores, self._limits, keep_all, self._slot)
        if not survives:
            raise NoPathError(f"no path through the graph survives {len(scores)} frames; widen the beam")
        return tokens

    def _ends(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Tokens of the last frame that paths end with, the cost of ending there, that of the best path through each,
        and whether they are final: where none is, all are taken as they are.
        """
        last = np.arange(tokens.first[-2], tokens.first[-1])
        final = self._final[tokens.state[last]]
        complete = bool(np.isfinite(final).any())
        if complete:
            last, final = last[np.isfinite(final)], final[np.isfinite(final)]
        else:
            final = np.zeros(len(last))
        return last, final, tokens.offset[-1] + tokens.cost[last] + final, complete
