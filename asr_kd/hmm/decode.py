"""Decoding of a matrix of log-likelihoods: the checks of what is decoded, and the best path in words."""

from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.beam_search import BeamSearch, Limits
from asr_kd.hmm.graph import Graph


@dataclass(frozen=True)
class Decoded:
    """The best path of one utterance.

    words: in order; transition_ids, pdfs: (num_frames,) int64; score: −(graph cost + penalties) + acwt × loglik of the
    path; complete: whether it ends in a final state (else it is the best unfinished path, without a final cost).
    """

    words: list[str]
    transition_ids: np.ndarray
    pdfs: np.ndarray
    score: float
    complete: bool


def scaled_logliks(graph: Graph, loglik: np.ndarray, acwt: float) -> np.ndarray:
    """acwt × loglik as contiguous float32, (num_frames, num_pdfs), after all checks.

    Raises AsrKdError unless loglik is (num_frames > 0, num_pdfs of the graph) and finite.
    """
    loglik = np.asarray(loglik)
    if loglik.ndim != 2 or loglik.shape[1] != graph.num_pdfs:
        raise AsrKdError(f"log-likelihoods of shape {loglik.shape} do not fit a graph of {graph.num_pdfs} pdfs")
    if len(loglik) == 0:
        raise AsrKdError("log-likelihoods without a frame cannot be decoded")
    with np.errstate(over="ignore"):  # what overflows is refused just below
        scaled = np.ascontiguousarray(loglik * np.float32(acwt), dtype=np.float32)
    if not np.isfinite(scaled).all():
        raise AsrKdError("log-likelihoods hold NaN or infinity")
    return scaled


def make_search(
    graph: Graph, beam: float, min_active: int, max_active: int, acwt: float, insertion_penalty: float
) -> BeamSearch:
    """A search of a graph; raises AsrKdError for limits that are none, and scales that are none."""
    if not (beam > 0 and np.isfinite(beam)):
        raise AsrKdError(f"bad decoder limits: beam {beam}")
    if min_active < 0 or max_active <= max(1, min_active):
        raise AsrKdError(f"bad decoder limits: min_active {min_active}, max_active {max_active}")
    if not (acwt > 0 and np.isfinite(acwt)) or not np.isfinite(insertion_penalty):
        raise AsrKdError(f"bad decoder scales: acwt {acwt}, insertion_penalty {insertion_penalty}")
    return BeamSearch(graph.arcs, graph.t2pdf, insertion_penalty, Limits(float(beam), int(min_active), int(max_active)))


class Decoder:
    """Viterbi beam search over one graph; reusable, one thread at a time.

    beam: in units of acwt-scaled log-likelihood; min_active: tokens kept however bad they are; max_active: at most.
    The defaults make no search error on the graphs of small vocabularies (asr_kd.hmm.viterbi.check_search measures it).
    acwt: acoustic scale, on loglik alone. insertion_penalty: cost added per word. Raises AsrKdError for bad values.
    """

    def __init__(
        self,
        graph: Graph,
        beam: float = 30.0,
        min_active: int = 200,
        acwt: float = 0.1,
        insertion_penalty: float = 0.0,
        max_active: int = 7000,
    ) -> None:
        self.graph, self.acwt = graph, acwt
        self._search = make_search(graph, beam, min_active, max_active, acwt, insertion_penalty)

    def decode(self, loglik: np.ndarray) -> Decoded:
        """Best path for loglik (num_frames, num_pdfs): log_post − log_prior, or likelihoods up to a constant a frame.

        Raises AsrKdError for a matrix that does not fit, has no frame or is not finite, NoPathError if no path is left.
        """
        found = self._search.best_path(scaled_logliks(self.graph, loglik, self.acwt))
        graph = self.graph
        tids, words = graph.arcs.ilabel[found.rows], graph.arcs.olabel[found.rows]
        tids = tids[tids > 0]
        names = [graph.words[word - 1] for word in words[words > 0].tolist()]
        return Decoded(names, tids, graph.t2pdf[tids], -found.cost, found.ends)
