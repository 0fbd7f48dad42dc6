"""From a matrix of log-likelihoods to a lattice: the C++ lattice decoder, with every guard of asr_kd.hmm.decode."""

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.decode import NoPathError, require_limits, scaled_columns
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.wheels import arcs, kaldi
from asr_kd.hmm.word_search import determinize


class LatticeDecoder:
    """Beam search that keeps what comes near the best path; reusable, one thread at a time.

    beam: as of a Decoder, but nothing else limits the search: the wheels' lattice decoder has neither min_active nor
    max_active. lattice_beam: how much more than the best path a path may cost, in units of acwt-scaled log-likelihood.
    Raises AsrKdError for bad values.
    """

    def __init__(
        self, graph: Graph, beam: float, lattice_beam: float, acwt: float, insertion_penalty: float = 0.0
    ) -> None:
        require_limits(beam, acwt, insertion_penalty)
        if not 0 < lattice_beam <= beam:
            raise AsrKdError(f"lattice_beam {lattice_beam}: must be above 0 and at most the beam, {beam}")
        self.graph, self.acwt, self.insertion_penalty = graph, acwt, insertion_penalty
        self.lattice_beam = lattice_beam
        options = kaldi().decoder.LatticeSimpleDecoderConfig(beam=beam, lattice_beam=lattice_beam)
        # Held as long as the decoder: the C++ side keeps plain pointers to both.
        self._fst, self._options = graph.arcs.with_insertion_penalty(insertion_penalty).to_fst(), options
        self._decoder = kaldi().decoder.LatticeSimpleDecoder(self._fst, options)

    def raw(self, loglik: np.ndarray) -> Lattice:
        """The lattice with an arc for every frame of every path, for loglik (num_frames, num_pdfs).

        Raises as Decoder.decode does. Where no path ends in a final state, all that are left end as they are.
        """
        columns = scaled_columns(self.graph, loglik, self.acwt)
        found = self._decoder.decode(kaldi().decoder.DecodableCtc(columns))
        found, raw = self._decoder.get_raw_lattice() if found else (False, None)
        if not found or raw.num_states == 0:
            raise NoPathError(f"no path through the graph survives {len(loglik)} frames; widen the beam")
        rows = [
            (state, arc.nextstate, arc.ilabel, arc.olabel, arc.weight.value1, arc.weight.value2)
            for state in range(raw.num_states)
            for arc in arcs(raw, state)
        ]
        finals = [raw.final(state).value1 for state in range(raw.num_states)]
        rows += [(state, len(finals), 0, 0, cost, 0.0) for state, cost in enumerate(finals) if np.isfinite(cost)]
        table = np.array(rows)
        source, target, tid, word = table[:, :4].astype(np.int64).T
        graph = table[:, 4] - self.insertion_penalty * (word != 0)
        tids = [one.to_bytes(4, "little") if one else b"" for one in tid.tolist()]
        return Lattice.from_arcs(raw.start, len(finals), source, target, word, graph, table[:, 5] / self.acwt, tids)

    def decode(self, loglik: np.ndarray) -> Lattice:
        """The determinised lattice, of every word sequence within the lattice beam; raises as `raw` does."""
        return determinize(self.raw(loglik), self.lattice_beam, self.acwt, self.insertion_penalty)
