"""Decoding of a matrix of log-likelihoods: the C++ decoder, and every guard it needs.

The C++ side crashes on an empty graph or one that was freed, and reads a matrix with too few columns out of bounds
without a word; NaN ends in an abort. All of that is checked here and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.wheels import arcs, kaldi


class NoPathError(AsrKdError):
    """The search lost every path: the utterance is too short for any words, or the beam too narrow."""


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


def scaled_columns(graph: Graph, loglik: np.ndarray, acwt: float) -> np.ndarray:
    """The same with a column for each transition-id, (num_frames, num_transition_ids), as the C++ decoders want it."""
    return np.ascontiguousarray(scaled_logliks(graph, loglik, acwt)[:, graph.t2pdf[1:]])


def require_limits(beam: float, acwt: float, insertion_penalty: float, min_active: int, max_active: int) -> None:
    """Raises AsrKdError for limits that are none, and scales that are none."""
    if not (beam > 0 and np.isfinite(beam)):
        raise AsrKdError(f"bad decoder limits: beam {beam}")
    if min_active < 0 or max_active <= max(1, min_active):
        raise AsrKdError(f"bad decoder limits: min_active {min_active}, max_active {max_active}")
    if not (acwt > 0 and np.isfinite(acwt)) or not np.isfinite(insertion_penalty):
        raise AsrKdError(f"bad decoder scales: acwt {acwt}, insertion_penalty {insertion_penalty}")


class Decoder:
    """Viterbi beam search over one graph; reusable, one thread at a time.

    beam: in units of acwt-scaled log-likelihood; min_active: tokens kept however bad they are. The defaults make no
    search error on the graphs of small vocabularies (asr_kd.hmm.viterbi.check_search measures it).
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
        require_limits(beam, acwt, insertion_penalty, min_active, max_active)
        k = kaldi()
        self.graph, self.acwt = graph, acwt
        # Held as long as the decoder: the C++ side keeps plain pointers to both.
        self._fst = graph.arcs.with_insertion_penalty(insertion_penalty).to_fst()
        self._options = k.decoder.FasterDecoderOptions(beam=beam, max_active=max_active, min_active=min_active)
        self._decoder = k.decoder.FasterDecoder(self._fst, self._options)

    def decode(self, loglik: np.ndarray) -> Decoded:
        """Best path for loglik (num_frames, num_pdfs): log_post − log_prior, or likelihoods up to a constant a frame.

        Raises AsrKdError for a matrix that does not fit, has no frame or is not finite, NoPathError if no path is left.
        """
        columns = scaled_columns(self.graph, loglik, self.acwt)
        self._decoder.decode(kaldi().decoder.DecodableCtc(columns))
        complete = self._decoder.reached_final()
        found, path = self._decoder.get_best_path()
        if not found:
            raise NoPathError(f"no path through the graph survives {len(loglik)} frames; widen the beam")
        tids, words, cost = _read_path(path, complete)
        tids = np.array(tids, dtype=np.int64)
        names = [self.graph.words[word - 1] for word in words]
        return Decoded(names, tids, self.graph.t2pdf[tids], -cost, complete)


def _read_path(path: object, complete: bool) -> tuple[Sequence[int], Sequence[int], float]:
    """Transition-ids, word ids and cost of a linear lattice; summed in float64, for float32 sums drift by 1e-3."""
    tids, words, cost, state = [], [], 0.0, path.start
    while True:
        following = arcs(path, state)
        if not following:
            break
        arc = following[0]
        if arc.ilabel:
            tids.append(arc.ilabel)
        if arc.olabel:
            words.append(arc.olabel)
        cost += arc.weight.value1 + arc.weight.value2
        state = arc.nextstate
    if complete:
        final = path.final(state)
        cost += final.value1 + final.value2
    return tids, words, cost
