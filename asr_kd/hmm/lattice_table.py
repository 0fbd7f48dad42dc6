"""Kaldi's tables of lattices (CompactLattice), read and written without Kaldi.

In binary, an object is an OpenFst VectorFst of arcs of type compactlattice44: a weight is a graph cost and an acoustic
cost (float32) and a string of transition-ids. As text, it is a line for every arc, `source target word
graph,acoustic,tid_tid_…`, and for every final state, `state graph,acoustic,tid_…`, ended by an empty line. Format:
Kaldi's src/lat/kaldi-lattice.cc and src/fstext/lattice-weight.h.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.lattice import Lattice
from asr_kd.hmm.openfst import HEADER, MAGIC, PROPERTIES, VERSION
from asr_kd.store.kaldi_ark import read_objects, write_objects
from asr_kd.store.kaldi_stream import KaldiStream

_ARC_TYPE = b"compactlattice44"
_ARC = struct.Struct(
    "<iiffi"
)  # word twice, graph and acoustic cost, number of transition-ids, which follow; then target
_FINAL = struct.Struct("<ffi")  # graph and acoustic cost, number of transition-ids, which follow
_NOT_FINAL = _FINAL.pack(np.inf, np.inf, 0)


class _Arc(NamedTuple):
    source: int
    target: int
    word: int
    graph: float
    acoustic: float
    tids: bytes


def write_lattices(wspecifier: str, items: Iterable[tuple[str, Lattice]]) -> int:
    """Write (utt_id, lattice) to a table, complete or not at all; returns how many.

    Acoustic costs are unscaled, as Kaldi's programs expect them. Raises AsrKdError for a key with spaces, and for a
    state that has two arcs into the end, as only a lattice that is not determinised can have.
    """
    return write_objects(wspecifier, items, lambda lattice, text: (_to_text if text else _to_binary)(lattice))


def read_lattices(rspecifier: str) -> Iterator[tuple[str, Lattice]]:
    """The keys and lattices of a table.

    Raises AsrKdError, naming file, key and byte, for what is damaged, no CompactLattice, has a cycle or no path.
    """
    return read_objects(rspecifier, _read)


def _finals(lattice: Lattice) -> dict[int, int]:
    """The arc into the end of each state that has one."""
    arcs = np.flatnonzero(lattice.target == lattice.num_states - 1)
    finals = dict(zip(lattice.source[arcs].tolist(), arcs.tolist(), strict=True))
    if len(finals) < len(arcs) or lattice.word[arcs].any():
        raise AsrKdError("a state of the lattice ends in two ways; determinise it first")
    return finals


def _to_text(lattice: Lattice) -> bytes:
    finals, lines = _finals(lattice), []

    def weight(arc: int) -> str:
        tids = "_".join(map(str, np.frombuffer(lattice.tids[arc], "<i4").tolist()))
        return f"{lattice.graph[arc]:.9g},{lattice.acoustic[arc]:.9g},{tids}"

    for state in range(lattice.num_states - 1):
        for arc in range(lattice.first_arc[state], lattice.first_arc[state + 1]):
            if finals.get(state) != arc:
                lines.append(f"{state}\t{lattice.target[arc]}\t{lattice.word[arc]}\t{weight(arc)}\n")
        if state in finals:
            lines.append(f"{state}\t{weight(finals[state])}\n")
    return ("\n" + "".join(lines) + "\n").encode()


def _to_binary(lattice: Lattice) -> bytes:
    finals, num_states = _finals(lattice), lattice.num_states - 1
    pieces = [struct.pack("<i", MAGIC)]
    pieces += [struct.pack("<i", len(name)) + name for name in (b"vector", _ARC_TYPE)]
    pieces.append(HEADER.pack(VERSION, 0, PROPERTIES, 0, num_states, len(lattice.source) - len(finals)))
    for state in range(num_states):
        final, arcs = finals.get(state), range(lattice.first_arc[state], lattice.first_arc[state + 1])
        if final is None:
            pieces.append(_NOT_FINAL)
        else:
            tids = lattice.tids[final]
            pieces += [_FINAL.pack(lattice.graph[final], lattice.acoustic[final], len(tids) // 4), tids]
        pieces.append(struct.pack("<q", len(arcs) - (final is not None)))
        for arc in arcs:
            if arc != final:
                word, tids = lattice.word[arc], lattice.tids[arc]
                pieces.append(_ARC.pack(word, word, lattice.graph[arc], lattice.acoustic[arc], len(tids) // 4))
                pieces += [tids, struct.pack("<i", lattice.target[arc])]
    return b"".join(pieces)


def _read(stream: KaldiStream) -> Lattice:
    if stream.peek() == struct.pack("<i", MAGIC)[:1]:
        start, arcs = _read_binary(stream)
    else:
        start, arcs = _read_text(stream)
    states = {start: 0}
    for arc in arcs:
        states.setdefault(arc.source, len(states))
        states.setdefault(arc.target, len(states))
        if not (np.isfinite(arc.graph) and np.isfinite(arc.acoustic)):
            raise stream.error(f"a cost of {arc.graph:g},{arc.acoustic:g}")
        if arc.word < 0 or (arc.tids and np.frombuffer(arc.tids, "<i4").min() <= 0):
            raise stream.error("a word below 0, or a transition-id below 1")
    try:
        if _END not in states:
            raise AsrKdError("the lattice has no final state")
        source, target, *columns = zip(*arcs, strict=True)
        lattice = Lattice.from_arcs(0, states[_END], [states[s] for s in source], [states[t] for t in target], *columns)
        _ = lattice.times
    except AsrKdError as error:
        raise stream.error(str(error)) from error
    return lattice


_END = -1


def _read_binary(stream: KaldiStream) -> tuple[int, list[_Arc]]:
    if stream.read(4) != struct.pack("<i", MAGIC):
        raise stream.error("its first bytes are not those of an FST")
    names = []
    for _ in range(2):
        (length,) = struct.unpack("<i", stream.read(4))
        if not 0 < length < 100:
            raise stream.error(f"a name of {length} bytes")
        names.append(bytes(stream.read(length)))
    if names != [b"vector", _ARC_TYPE]:
        kind = b" ".join(names).decode("ascii", "replace")
        raise stream.error(f"is an FST of type {kind!r}; a CompactLattice is one of type 'vector compactlattice44'")
    version, flags, _, start, num_states, _ = HEADER.unpack(stream.read(HEADER.size))
    if version != VERSION or flags or not 0 <= start < num_states:
        raise stream.error(f"declares version {version}, flags {flags}, start {start} and {num_states} states")
    arcs: list[_Arc] = []
    for state in range(num_states):
        graph, acoustic, tids = _weight(stream)
        if graph != np.inf or acoustic != np.inf:
            arcs.append(_Arc(state, _END, 0, graph, acoustic, tids))
        (num_arcs,) = struct.unpack("<q", stream.read(8))
        if num_arcs < 0:
            raise stream.error(f"a state of {num_arcs} arcs")
        for _ in range(num_arcs):
            word, other = struct.unpack("<ii", stream.read(8))
            graph, acoustic, tids = _weight(stream)
            (target,) = struct.unpack("<i", stream.read(4))
            if word != other or not 0 <= target < num_states:
                raise stream.error(f"an arc of labels {word} and {other} to state {target} of {num_states}")
            arcs.append(_Arc(state, target, word, graph, acoustic, tids))
    return start, arcs


def _weight(stream: KaldiStream) -> tuple[float, float, bytes]:
    graph, acoustic, length = _FINAL.unpack(stream.read(_FINAL.size))
    if length < 0:
        raise stream.error(f"a string of {length} transition-ids")
    return graph, acoustic, bytes(stream.read(4 * length))


def _read_text(stream: KaldiStream) -> tuple[int, list[_Arc]]:
    if stream.read_line().strip():
        raise stream.error("a lattice as text should begin on the line after its key")
    arcs: list[_Arc] = []
    while fields := stream.read_line().split():
        try:
            weight = _parse_weight(fields.pop()) if len(fields) in (2, 4) else (0.0, 0.0, b"")
            if len(fields) not in (1, 3):
                raise ValueError
            numbers = [int(field) for field in fields]
            if min(numbers) < 0 or max(numbers) >= 1 << 31:
                raise ValueError
        except (ValueError, OverflowError, struct.error):
            what = "is neither `source target word graph,acoustic,tid_…` nor `state graph,acoustic,tid_…`"
            raise stream.error(f"a line of a lattice {what}") from None
        source, target, word = numbers if len(numbers) == 3 else (numbers[0], _END, 0)
        arcs.append(_Arc(source, target, word, *weight))
    if not arcs:
        raise stream.error("a lattice without a state")
    return arcs[0].source, arcs


def _parse_weight(text: str) -> tuple[float, float, bytes]:
    graph, acoustic, tids = text.split(",")
    numbers = [int(tid) for tid in tids.split("_")] if tids else []
    return float(graph), float(acoustic), struct.pack(f"<{len(numbers)}i", *numbers)
