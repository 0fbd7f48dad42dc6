"""From a matrix of log-likelihoods to a lattice: token passing, and what it kept as a Lattice."""

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.decode import NoPathError, require_limits, scaled_logliks
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.token_search import Tokens, TokenSearch
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
        require_limits(beam, acwt, insertion_penalty, min_active, max_active)
        if not 0 < lattice_beam <= beam:
            raise AsrKdError(f"lattice_beam {lattice_beam}: must be above 0 and at most the beam, {beam}")
        self.graph, self.acwt, self.insertion_penalty = graph, acwt, insertion_penalty
        self.lattice_beam = lattice_beam
        arcs = graph.arcs.with_insertion_penalty(insertion_penalty)
        self._search = TokenSearch(arcs, graph.t2pdf, beam, lattice_beam, min_active, max_active)

    def raw(self, loglik: np.ndarray) -> Lattice:
        """The lattice with an arc for every frame of every path, for loglik (num_frames, num_pdfs).

        Raises as Decoder.decode does. Where no path ends in a final state, all that are left end as they are.
        """
        loglik = np.asarray(loglik)
        found = self._search.search(scaled_logliks(self.graph, loglik, self.acwt))
        if found is None:
            raise NoPathError(f"no path through the graph survives {len(loglik)} frames; widen the beam")
        return self._lattice(*found, loglik)

    def _lattice(self, frames: list[Tokens], ends: np.ndarray, loglik: np.ndarray) -> Lattice:
        # States are the tokens in their order; the number of the first of each frame, and of the end behind all.
        first = np.cumsum([0, *(len(tokens.state) for tokens in frames)])
        columns = []
        for time, tokens in enumerate(frames):
            for links, begin in ((tokens.entering, time - 1), (tokens.inside, time)):
                frame = np.full(len(links.arc), begin)
                columns.append((first[begin] + links.source, first[time] + links.target, links.arc, frame))
        source, target, arc, frame = (np.concatenate(c) for c in zip(*columns, strict=True))
        arcs = self.graph.arcs
        tid, word, graph = arcs.ilabel[arc], arcs.olabel[arc], arcs.weight[arc]
        acoustic, reads = np.zeros(len(arc)), tid > 0
        acoustic[reads] = -loglik[frame[reads], self.graph.t2pdf[tid[reads]]]
        last = np.flatnonzero(np.isfinite(ends))
        nothing = np.zeros(len(last), dtype=np.int64)
        source, target = np.append(source, first[-2] + last), np.append(target, nothing + first[-1])
        tids = [one.to_bytes(4, "little") if one else b"" for one in tid.tolist()] + [b""] * len(last)
        costs = np.append(graph, ends[last]), np.append(acoustic, nothing)
        return Lattice.from_arcs(0, int(first[-1]), source, target, np.append(word, nothing), *costs, tids)

    def decode(self, loglik: np.ndarray) -> Lattice:
        """The determinised lattice, of every word sequence within the lattice beam; raises as `raw` does."""
        return determinize(self.raw(loglik), self.lattice_beam, self.acwt, self.insertion_penalty)
