"""From a matrix of log-likelihoods to a lattice, with every check of asr_kd.hmm.decode."""

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.decode import make_search, scaled_logliks
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.word_search import determinize


class LatticeDecoder:
    """Beam search that keeps what comes near the best path; reusable, one thread at a time.

    beam, min_active, max_active: as of a Decoder. lattice_beam: how much more than the best path a path may cost, in
    units of acwt-scaled log-likelihood. Raises AsrKdError for bad values.
    """

    def __init__(
        self,
        graph: Graph,
        beam: float,
        lattice_beam: float,
        acwt: float,
        insertion_penalty: float = 0.0,
        min_active: int = 200,
        max_active: int = 7000,
    ) -> None:
        self._search = make_search(graph, beam, min_active, max_active, acwt, insertion_penalty)
        if not 0 < lattice_beam <= beam:
            raise AsrKdError(f"lattice_beam {lattice_beam}: must be above 0 and at most the beam, {beam}")
        self.graph, self.acwt, self.insertion_penalty = graph, acwt, insertion_penalty
        self.lattice_beam = lattice_beam

    def raw(self, loglik: np.ndarray) -> Lattice:
        """The lattice with an arc for every frame of every path, for loglik (num_frames, num_pdfs).

        Raises as Decoder.decode does. Where no path ends in a final state, all that are left end as they are.
        """
        scores = scaled_logliks(self.graph, loglik, self.acwt)
        found, arcs = self._search.lattice(scores, self.lattice_beam), self.graph.arcs
        tids, words = arcs.ilabel[found.rows], arcs.olabel[found.rows]
        acoustic, takes = np.zeros(len(tids)), tids > 0
        acoustic[takes] = -scores[found.frames[takes], self.graph.t2pdf[tids[takes]]] / np.float64(self.acwt)
        end, num_ends = found.num_tokens, len(found.ending)
        names = {tid: tid.to_bytes(4, "little") if tid else b"" for tid in np.unique(tids).tolist()}
        return Lattice.from_arcs(
            0,
            end,
            np.concatenate([found.source, found.ending]),
            np.concatenate([found.target, np.full(num_ends, end)]),
            np.concatenate([words, np.zeros(num_ends, np.int64)]),
            np.concatenate([arcs.weight[found.rows], found.ending_cost]),
            np.concatenate([acoustic, np.zeros(num_ends)]),
            [*map(names.__getitem__, tids.tolist()), *[b""] * num_ends],
        )

    def decode(self, loglik: np.ndarray) -> Lattice:
        """The determinised lattice, of every word sequence within the lattice beam; raises as `raw` does."""
        return determinize(self.raw(loglik), self.lattice_beam, self.acwt, self.insertion_penalty)
