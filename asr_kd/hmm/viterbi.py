"""Exact Viterbi search in numpy: no beam, float64, the oracle for the beam decoder."""

from collections.abc import Iterable

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.decode import Decoder, scaled_logliks
from asr_kd.hmm.graph import Graph, GraphArcs


class _ArcGroup:
    """Arcs sorted by target, so that the best arrival at each target is one reduceat."""

    def __init__(self, graph: GraphArcs, rows: np.ndarray) -> None:
        self.rows = rows[np.argsort(graph.target[rows], kind="stable")]
        self.source, self.weight = graph.source[self.rows], graph.weight[self.rows]
        self.targets, self.starts, self.counts = np.unique(
            graph.target[self.rows], return_index=True, return_counts=True
        )

    def relax(self, score: np.ndarray, gain: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Best arrival at each of self.targets, and the arc that it comes by."""
        arriving = score[self.source] - self.weight + gain
        best = np.maximum.reduceat(arriving, self.starts)
        hits = np.flatnonzero(arriving == np.repeat(best, self.counts))
        return best, self.rows[hits[np.searchsorted(hits, self.starts)]]


def epsilon_levels(graph: GraphArcs) -> list[np.ndarray]:
    """Rows of the arcs without input label, in an order in which each is relaxed once, level by level of their source.

    Raises AsrKdError where they form a cycle, along which no longest path exists.
    """
    rows = np.flatnonzero(graph.ilabel == 0)
    level = np.zeros(graph.num_states, dtype=np.int64)
    for _ in range(graph.num_states + 1):
        raised = level.copy()
        np.maximum.at(raised, graph.target[rows], level[graph.source[rows]] + 1)
        if np.array_equal(raised, level):
            return [rows[level[graph.source[rows]] == depth] for depth in np.unique(level[graph.source[rows]])]
        level = raised
    raise AsrKdError("the decoding graph has a cycle of arcs without input")


class ExactSearch:
    """Viterbi over all arcs of a graph, each frame vectorised over arcs; for graphs of up to some ten thousand arcs."""

    def __init__(self, graph: Graph, acwt: float, insertion_penalty: float = 0.0) -> None:
        self.graph, self.acwt = graph, acwt
        # The decoder's arcs hold float32 weights; the oracle judges the search, so it uses the same numbers.
        exact = graph.arcs.with_insertion_penalty(insertion_penalty)
        self.arcs = GraphArcs(
            exact.start,
            exact.source,
            exact.target,
            exact.ilabel,
            exact.olabel,
            exact.weight.astype(np.float32).astype(np.float64),
            exact.final,
        )
        self._emitting = _ArcGroup(self.arcs, np.flatnonzero(self.arcs.ilabel))
        self._pdf = graph.t2pdf[self.arcs.ilabel[self._emitting.rows]]
        self._epsilon = [_ArcGroup(self.arcs, rows) for rows in epsilon_levels(self.arcs)]

    def best_path(self, loglik: np.ndarray) -> tuple[float, list[str]]:
        """Score and words of the best complete path; of the best unfinished one where none is complete.

        Raises AsrKdError for log-likelihoods that do not fit, and where no path is that long.
        """
        scaled = scaled_logliks(self.graph, loglik, self.acwt).astype(np.float64)
        score = np.full(self.arcs.num_states, -np.inf)
        score[self.arcs.start] = 0.0
        # by_epsilon, by_frame: the arc by which a state was reached, -1 for none; an epsilon arc is followed first.
        by_epsilon = np.full((len(scaled) + 1, self.arcs.num_states), -1, dtype=np.int32)
        by_frame = np.full((len(scaled) + 1, self.arcs.num_states), -1, dtype=np.int32)
        self._close(score, by_epsilon[0])
        for frame, gains in enumerate(scaled, 1):
            best, rows = self._emitting.relax(score, gains[self._pdf])
            score = np.full(self.arcs.num_states, -np.inf)
            score[self._emitting.targets] = best
            by_frame[frame, self._emitting.targets] = rows
            self._close(score, by_epsilon[frame])
        ending = score - self.arcs.final
        if not np.isfinite(ending).any():
            ending = score
        state = int(ending.argmax())
        if not np.isfinite(ending[state]):
            raise AsrKdError(f"no path through the graph has {len(scaled)} frames")
        return float(ending[state]), self._words(state, by_epsilon, by_frame)

    def _close(self, score: np.ndarray, by_epsilon: np.ndarray) -> None:
        for group in self._epsilon:
            best, rows = group.relax(score, 0.0)
            better = best > score[group.targets]
            score[group.targets[better]] = best[better]
            by_epsilon[group.targets[better]] = rows[better]

    def _words(self, state: int, by_epsilon: np.ndarray, by_frame: np.ndarray) -> list[str]:
        words, frame = [], len(by_frame) - 1
        while True:
            row = by_epsilon[frame, state]
            if row < 0:
                if frame == 0:
                    break
                row, frame = by_frame[frame, state], frame - 1
            if self.arcs.olabel[row]:
                words.append(self.graph.words[self.arcs.olabel[row] - 1])
            state = self.arcs.source[row]
        return words[::-1]


def exact_best_path(
    graph: Graph, loglik: np.ndarray, acwt: float, insertion_penalty: float = 0.0
) -> tuple[float, list[str]]:
    """Score and words of the best path for loglik (num_frames, num_pdfs); see ExactSearch.best_path."""
    return ExactSearch(graph, acwt, insertion_penalty).best_path(loglik)


def check_search(
    graph: Graph,
    logliks: Iterable[np.ndarray],
    acwt: float = 0.1,
    insertion_penalty: float = 0.0,
    **decoder_options: float,
) -> float:
    """Largest |score of the Decoder − score of the exact search| over `logliks`, each (num_frames, num_pdfs).

    Rounding leaves some 1e-5; a search error shows as the score that it lost. decoder_options: beam, min_active, ….
    """
    decoder = Decoder(graph, acwt=acwt, insertion_penalty=insertion_penalty, **decoder_options)
    search = ExactSearch(graph, acwt, insertion_penalty)
    return max((abs(decoder.decode(x).score - search.best_path(x)[0]) for x in logliks), default=0.0)
