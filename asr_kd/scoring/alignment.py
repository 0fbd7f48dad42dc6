"""Alignment of recognised words with a reference, as Kaldi's compute-wer and as NIST's sclite make it.

A reference is a list of words. NIST's formats also know words that may be left out, `(uh)`, and alternatives,
`{ i'm / i am / @ }` with `@` for nothing: such a reference is a small graph, and the best path through it counts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

CORRECT, INSERTION, DELETION, SUBSTITUTION = "C", "I", "D", "S"


class Weights(NamedTuple):
    """Costs of the errors that an alignment minimises, and how it breaks ties.

    Where several paths cost the same, `pairs_first` says whether a pair of words (right or substituted) is taken
    before a deletion or insertion of the same cost, or only where it is cheaper than both. A deletion is taken before
    an insertion only where it is cheaper. The split into insertions, deletions and substitutions depends on it; the
    number of errors, at equal weights, does not.
    """

    insertion: int
    deletion: int
    substitution: int
    pairs_first: bool


KALDI = Weights(1, 1, 1, pairs_first=False)  # LevenshteinEditDistance, util/edit-distance-inl.h
SCLITE = Weights(3, 3, 4, pairs_first=True)  # wwd_WORD in word.c, calculate_internal_cells in net_dp.c
WEIGHTS = {"kaldi": KALDI, "sclite": SCLITE}


class Alternatives(NamedTuple):
    """Transcripts of which any one is right; an empty one stands for nothing (`@`)."""

    options: tuple[tuple["Token", ...], ...]


class Optional(NamedTuple):
    """A word that may be left out: deleted, it counts as correct (sclite -D)."""

    word: str


Token = str | Optional | Alternatives
Reference = Sequence[Token]


def map_words(ref: Reference, split: Callable[[str], Sequence[str]]) -> list[Token]:
    """`ref` with each word replaced by those that `split` makes of it: other case, characters, phones."""
    mapped: list[Token] = []
    for token in ref:
        if isinstance(token, Alternatives):
            mapped.append(Alternatives(tuple(tuple(map_words(option, split)) for option in token.options)))
        elif isinstance(token, Optional):
            mapped.extend(Optional(word) for word in split(token.word))
        else:
            mapped.extend(split(token))
    return mapped


class Alignment(NamedTuple):
    """The errors of one hypothesis and the alignment that they were counted on.

    `ops` is a list of (op, ref_word, hyp_word) from left to right; op is one of "C", "I", "D", "S", and the word that
    an insertion or a deletion lacks is None, as is that of an optional word that was left out and so is correct.
    """

    num_ins: int
    num_del: int
    num_sub: int
    num_ref: int
    ops: list[tuple[str, str | None, str | None]]

    @property
    def num_correct(self) -> int:
        return self.num_ref - self.num_del - self.num_sub

    @property
    def num_errors(self) -> int:
        return self.num_ins + self.num_del + self.num_sub


Times = Sequence[tuple[float, float]]  # start and duration of each word, seconds


def align_words(ref: Reference, hyp: Sequence[str], weights: Weights = KALDI) -> Alignment:
    """Align `hyp` to `ref` at the least cost, ties broken as the tool that `weights` are named after breaks them."""
    if list(ref) == list(hyp):  # the diagonal is the only path that costs nothing
        return Alignment(0, 0, 0, len(hyp), [(CORRECT, word, word) for word in hyp])
    net = _Net()
    net.extend(ref)
    return _alignment(_best_path(net, hyp, _WordCosts(net, hyp, weights), weights.pairs_first))


def align_times(ref: Sequence[str], hyp: Sequence[str], ref_times: Times, hyp_times: Times) -> Alignment:
    """Align words by when they were spoken, as sclite -T does (wwd_time_WORD in word.c).

    A pair costs the distance of its starts and of its ends, and a little more if the words differ; a word alone costs
    its duration. So the errors are not the fewest, but none pairs words that were spoken at different times.
    """
    net = _Net()
    net.extend(ref)
    return _alignment(_best_path(net, hyp, _TimeCosts(net, hyp, ref_times, hyp_times), SCLITE.pairs_first))


def _alignment(ops: list[tuple[str, str | None, str | None]]) -> Alignment:
    counts = [sum(op == kind for op, _, _ in ops) for kind in (INSERTION, DELETION, SUBSTITUTION)]
    return Alignment(*counts, len(ops) - counts[0], ops)


class _Net:
    """A reference as arcs in topological order, each with the arcs that may come before it.

    Arc 0 is the start. `words[a]` is None for `@`.
    """

    def __init__(self) -> None:
        self.words: list[str | None] = [None]
        self.optional = [False]
        self.before: list[tuple[int, ...]] = [()]
        self.ends: tuple[int, ...] = (0,)

    def extend(self, ref: Reference) -> None:
        for token in ref:
            if isinstance(token, Alternatives):
                start, ends = self.ends, []
                for option in token.options:
                    self.ends = start
                    self.extend(option) if option else self._append(None)
                    ends.extend(self.ends)
                self.ends = tuple(ends)
            elif isinstance(token, Optional):
                self._append(token.word, optional=True)
            else:
                self._append(token)

    def _append(self, word: str | None, optional: bool = False) -> None:
        self.words.append(word)
        self.optional.append(optional)
        self.before.append(self.ends)
        self.ends = (len(self.words) - 1,)


# Costs are scaled so that what is nearly free has an integer cost as well, and ties are exact.
_SCALE = 1000
_NOTHING = 1  # passing `@`; sclite's 0.001
_NEVER = 1 << 40


class _WordCosts:
    """`insertions` (len(hyp),), and by arc the cost of its deletion and of its pairs with each word, (len(hyp),)."""

    def __init__(self, net: _Net, hyp: Sequence[str], weights: Weights) -> None:
        self._net, self._weights = net, weights
        self._id = {word: i for i, word in enumerate(dict.fromkeys(hyp))}
        self._hyp_ids = np.array([self._id[word] for word in hyp], dtype=np.int64)
        self.insertions = np.full(len(hyp), _SCALE * weights.insertion)

    def deletion(self, arc: int) -> int:
        if self._net.words[arc] is None:
            return _NOTHING
        cost = _SCALE * self._weights.deletion
        return cost * 2 // 3 if self._net.optional[arc] else cost  # sclite: 2 instead of 3

    def pairs(self, arc: int) -> np.ndarray | int:
        word = self._net.words[arc]
        if word is None:
            return _NEVER
        return _SCALE * self._weights.substitution * (self._hyp_ids != self._id.get(word, -1))


class _TimeCosts:
    """As `_WordCosts`, from the times of the words, in microseconds."""

    def __init__(self, net: _Net, hyp: Sequence[str], ref_times: Times, hyp_times: Times) -> None:
        self._words, self._hyp = net.words, np.array(hyp, dtype=object)
        (self._ref_start, self._ref_end), (self._start, self._end) = map(_starts_and_ends, (ref_times, hyp_times))
        self.insertions = self._end - self._start

    def deletion(self, arc: int) -> int:
        return int(self._ref_end[arc - 1] - self._ref_start[arc - 1])

    def pairs(self, arc: int) -> np.ndarray:
        apart = np.abs(self._start - self._ref_start[arc - 1]) + np.abs(self._end - self._ref_end[arc - 1])
        return apart + _SCALE * (self._hyp != self._words[arc])


def _starts_and_ends(times: Times) -> np.ndarray:
    start, duration = np.array(times, dtype=np.float64).reshape(-1, 2).T
    return np.rint(1e6 * np.stack([start, start + duration])).astype(np.int64)


_PAIR, _DEL, _INS = 0, 1, 2


def _best_path(
    net: _Net, hyp: Sequence[str], costs: _WordCosts | _TimeCosts, pairs_first: bool
) -> list[tuple[str, str | None, str | None]]:
    """Costs of all (arc, prefix of hyp), a row per arc, and the way back from the cheapest end."""
    width = len(hyp) + 1
    inserted = np.concatenate([[0], np.cumsum(costs.insertions)])
    last_use = {earlier: arc for arc, before in enumerate(net.before) for earlier in before}
    last_use.update(dict.fromkeys(net.ends, len(net.words)))
    rows = {0: inserted}
    moves = np.full((len(net.words), width), _INS, dtype=np.int8)
    moves[1:, 0] = _DEL
    came_from: dict[int, np.ndarray] = {}
    for arc in range(1, len(net.words)):
        before = net.before[arc]
        reached = rows[before[0]]
        if len(before) > 1:
            choices = np.stack([rows[earlier] for earlier in before])
            came_from[arc] = choices.argmin(axis=0)
            reached = choices.min(axis=0)
        down = reached + costs.deletion(arc)
        pair = reached[:-1] + costs.pairs(arc)
        row = down.copy()
        np.minimum(down[1:], pair, out=row[1:])
        # An insertion costs the same in every row: the running minimum of (row - inserted) carries all of them.
        row = np.minimum.accumulate(row - inserted) + inserted
        deletes, left = down[1:], row[:-1] + costs.insertions
        paired = (pair <= deletes) & (pair <= left) if pairs_first else (pair < deletes) & (pair < left)
        moves[arc, 1:] = np.where(paired, _PAIR, np.where(deletes < left, _DEL, _INS))
        rows[arc] = row
        for earlier in before:
            if last_use[earlier] == arc:
                del rows[earlier]
    end = min(net.ends, key=lambda arc: rows[arc][-1])  # the first of equals
    return _trace(net, hyp, end, moves.tobytes(), came_from)


def _trace(
    net: _Net, hyp: Sequence[str], arc: int, moves: bytes, came_from: dict[int, np.ndarray]
) -> list[tuple[str, str | None, str | None]]:
    ops: list[tuple[str, str | None, str | None]] = []
    width = len(hyp) + 1
    h = len(hyp)
    while arc or h:
        move, word = moves[arc * width + h], net.words[arc]
        if move == _INS:
            ops.append((INSERTION, None, hyp[h - 1]))
        elif move == _PAIR:
            ops.append((CORRECT if word == hyp[h - 1] else SUBSTITUTION, word, hyp[h - 1]))
        elif word is not None:
            ops.append((CORRECT if net.optional[arc] else DELETION, word, None))
        h -= move != _DEL
        if move != _INS:
            before = net.before[arc]
            arc = before[0] if len(before) == 1 else before[came_from[arc][h]]
    ops.reverse()
    return ops
