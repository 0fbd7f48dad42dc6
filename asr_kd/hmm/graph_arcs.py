"""Graphs as arrays, to and from Kaldi's wheels."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.openfst import read_vector_fst, write_vector_fst
from asr_kd.hmm.wheels import kaldi


@dataclass(frozen=True)
class GraphArcs:
    """A graph as arrays, one entry an arc, in the order of their source state.

    source, target, ilabel (transition-id, 0 for none), olabel (word id, 0 for none): (num_arcs,) int64;
    weight: (num_arcs,) float64 costs; final: (num_states,) float64 costs, infinite where a path cannot end.
    """

    start: int
    source: np.ndarray
    target: np.ndarray
    ilabel: np.ndarray
    olabel: np.ndarray
    weight: np.ndarray
    final: np.ndarray

    @property
    def num_states(self) -> int:
        return len(self.final)

    @classmethod
    def from_fst(cls, fst: object) -> "GraphArcs":
        """Read a kaldifst StdVectorFst, through a file: there, millions of arcs are no work for Python."""
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/graph.fst"
            if not fst.write(path):
                raise AsrKdError(f"{path}: could not be written; is there space in {tempfile.gettempdir()}?")
            return cls.read(path)

    def to_fst(self) -> object:
        """The same graph as a kaldifst StdVectorFst."""
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/graph.fst"
            self.write(path)
            return kaldi().fst.StdVectorFst.read(path)

    @classmethod
    def read(cls, path: str | Path) -> "GraphArcs":
        """Read OpenFst's binary file; raises AsrKdError as read_vector_fst does."""
        return cls(*read_vector_fst(path))

    def write(self, path: str | Path) -> None:
        """Write OpenFst's binary file, as Kaldi reads it."""
        columns = (self.source, self.target, self.ilabel, self.olabel, self.weight, self.final)
        with open(path, "wb") as file:
            write_vector_fst(file, self.start, *columns)

    def with_insertion_penalty(self, penalty: float) -> "GraphArcs":
        """A copy in which every arc that puts out a word costs `penalty` more."""
        return replace(self, weight=self.weight + penalty * (self.olabel != 0))

    def without_labels(self, labels: Iterable[int]) -> "GraphArcs":
        """A copy with these input labels made epsilon (fstrmsymbols)."""
        return replace(self, ilabel=np.where(np.isin(self.ilabel, sorted(labels)), 0, self.ilabel))

    def parts(self) -> Iterator[bytes]:
        """Everything, as it stands in the file: what a digest is made of."""
        yield np.array([self.start, self.num_states], dtype="<i8").tobytes()
        for column in (self.source, self.target, self.ilabel, self.olabel):
            yield column.astype("<i4").tobytes()
        for column in (self.weight, self.final):
            yield column.astype("<f4").tobytes()

    def text(self) -> str:
        """OpenFst's text form, for the digest of graphs of version 1; nine digits give a float32 back exactly."""
        order = np.argsort(self.source != self.start, kind="stable")
        columns = (self.source, self.target, self.ilabel, self.olabel, self.weight)
        lines = [
            f"{s} {t} {i} {o} {w:.9g}" for s, t, i, o, w in zip(*(c[order].tolist() for c in columns), strict=True)
        ]
        lines += [f"{state} {self.final[state]:.9g}" for state in np.flatnonzero(np.isfinite(self.final))]
        return "\n".join(lines) + "\n"
