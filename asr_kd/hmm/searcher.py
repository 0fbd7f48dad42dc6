"""The search of one utterance as a task that a worker process can be given."""

import time
from dataclasses import dataclass

import numpy as np

from asr_kd.hmm.beam_search import Limits
from asr_kd.hmm.decode import Decoded, Decoder
from asr_kd.hmm.graph import Graph
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.lattice_decode import LatticeDecoder


@dataclass(frozen=True)
class Task:
    """loglik: (num_frames, num_pdfs) of an utterance; lattice: whether that is wanted instead of the best path."""

    utt_id: str
    loglik: np.ndarray
    acwt: float
    insertion_penalty: float
    lattice: bool = False


@dataclass(frozen=True)
class Found:
    """Best path or lattice of an utterance, and the seconds of processor time that it took."""

    decoded: Decoded | None
    lattice: Lattice | None
    seconds: float


class Searcher:
    """Called with a Task it returns what it Found, or raises as the decoders do; `lattice_beam` bounds its lattices."""

    def __init__(self, graph: Graph, limits: Limits, lattice_beam: float) -> None:
        self._graph, self._limits, self._lattice_beam = graph, limits, lattice_beam
        self._decoder: Decoder | LatticeDecoder | None = None
        self._made_for: tuple | None = None

    def __call__(self, task: Task) -> Found:
        # Made again for another setting only: each decoder holds a copy of the graph's arcs.
        wanted = (task.acwt, task.insertion_penalty, task.lattice)
        if self._made_for != wanted:
            self._decoder = None
            self._decoder, self._made_for = self._make(*wanted), wanted
        begin = time.process_time()
        found = self._decoder.decode(task.loglik)
        seconds = time.process_time() - begin
        return Found(None, found, seconds) if task.lattice else Found(found, None, seconds)

    def _make(self, acwt: float, insertion_penalty: float, lattice: bool) -> Decoder | LatticeDecoder:
        options = {"acwt": acwt, "insertion_penalty": insertion_penalty, **self._limits._asdict()}
        if lattice:
            return LatticeDecoder(self._graph, lattice_beam=self._lattice_beam, **options)
        return Decoder(self._graph, **options)
