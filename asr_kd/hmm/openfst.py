"""OpenFst's binary form of a graph, read and written without OpenFst, whose reader trusts every number and crashes on a
wrong one.

The form is that of VectorFst with StdArc as OpenFst 1.6 and later, and Kaldi, write it: a header, then for every state
its final weight, its number of arcs, and the arcs. All of it is in units of four bytes, so that the arcs of millions of
states are taken out, or put in, by one numpy operation.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from asr_kd.errors import AsrKdError

MAGIC = 2125659606
HEADER = struct.Struct("<iiQqqq")  # version, flags, properties, start, number of states, of arcs
VERSION = 2
# What OpenFst must know of a graph that it reads (kExpanded, kMutable); anything else it finds out when it needs it.
PROPERTIES = 3
STATE_UNITS, ARC_UNITS = 3, 4  # final weight, number of arcs in two; ilabel, olabel, weight, target

Columns = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read_vector_fst(path: str | Path) -> Columns:
    """(start, source, target, ilabel, olabel, weight, final) of a graph, in the form and order of GraphArcs.

    Raises AsrKdError for a file that is not a `vector` FST of `standard` arcs, has symbol tables, or does not hold
    exactly what it declares. Labels and states are not checked here.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AsrKdError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        start, num_states, position = _read_header(content)
        begins, declared = _states(memoryview(content)[position:], num_states)
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: is damaged, or no OpenFst binary of a decoding graph ({error})") from error
    if position + 4 * declared != len(content):
        raise AsrKdError(f"{path}: is damaged, more follows than it declares")
    units = np.frombuffer(content, "<i4", offset=position)
    heads = begins[:-1]
    lengths = (np.diff(begins) - STATE_UNITS) // ARC_UNITS
    is_arc = np.ones(len(units), dtype=bool)
    is_arc[heads[:, None] + np.arange(STATE_UNITS)] = False
    arcs = units[is_arc].reshape(-1, ARC_UNITS)
    ilabel, olabel, target = (arcs[:, column].astype(np.int64) for column in (0, 1, 3))
    with np.errstate(invalid="ignore"):  # a damaged file may hold any bits
        weight = np.ascontiguousarray(arcs[:, 2]).view("<f4").astype(np.float64)
        final = units[heads].view("<f4").astype(np.float64)
    return start, np.repeat(np.arange(num_states), lengths), target, ilabel, olabel, weight, final


def _states(body: memoryview, num_states: int) -> tuple[np.ndarray, int]:
    """Where each state begins, and where the last one ends, (num_states + 1,) int64, in units; and the latter alone.

    Raises ValueError where a state has more arcs than there are bytes.
    """
    num_units = len(body) // 4
    units = body[: 4 * num_units].cast("i")
    begins = np.empty(num_states + 1, dtype=np.int64)
    begin = 0
    for state in range(num_states):
        begins[state] = begin
        if begin + STATE_UNITS > num_units:
            raise ValueError("a state behind the end")
        count = units[begin + 1]
        if count < 0 or units[begin + 2] or begin + STATE_UNITS + ARC_UNITS * count > num_units:
            raise ValueError(f"a state of {count} arcs")
        begin += STATE_UNITS + ARC_UNITS * count
    begins[num_states] = begin
    return begins, begin


def write_vector_fst(
    file: BinaryIO,
    start: int,
    source: np.ndarray,
    target: np.ndarray,
    ilabel: np.ndarray,
    olabel: np.ndarray,
    weight: np.ndarray,
    final: np.ndarray,
) -> None:
    """Write a graph, whose arcs are in the order of their source; weights become float32, labels and states int32."""
    num_states, num_arcs = len(final), len(source)
    lengths = np.bincount(source, minlength=num_states)
    heads = np.arange(num_states) * STATE_UNITS + ARC_UNITS * (np.cumsum(lengths) - lengths)
    units = np.empty(num_states * STATE_UNITS + num_arcs * ARC_UNITS, dtype="<i4")
    is_arc = np.ones(len(units), dtype=bool)
    is_arc[heads[:, None] + np.arange(STATE_UNITS)] = False
    units[heads] = final.astype("<f4").view("<i4")
    units[heads + 1], units[heads + 2] = lengths, 0
    columns = (ilabel, olabel, weight.astype("<f4").view("<i4"), target)
    units[is_arc] = np.stack([column.astype("<i4", copy=False) for column in columns], axis=1).ravel()
    file.write(struct.pack("<i", MAGIC))
    for name in (b"vector", b"standard"):
        file.write(struct.pack("<i", len(name)) + name)
    file.write(HEADER.pack(VERSION, 0, PROPERTIES, start, num_states, num_arcs))
    file.write(units.data)


def _read_header(content: bytes) -> tuple[int, int, int]:
    """Start state, number of states, and where they begin; raises ValueError and struct.error."""
    (magic,) = struct.unpack_from("<i", content)
    if magic != MAGIC:
        raise ValueError("its first bytes are not OpenFst's")
    position, names = 4, []
    for _ in range(2):
        (length,) = struct.unpack_from("<i", content, position)
        if not 0 < length < 100:
            raise ValueError(f"a name of {length} bytes")
        names.append(content[position + 4 : position + 4 + length].decode("ascii"))
        position += 4 + length
    # The number of arcs is not filled in by VectorFst.
    version, flags, _, start, num_states, _ = HEADER.unpack_from(content, position)
    if names != ["vector", "standard"] or version != VERSION or flags:
        raise ValueError(f"type {' '.join(names)}, version {version}, flags {flags}")
    if not 0 < num_states <= len(content) // (4 * STATE_UNITS):
        raise ValueError(f"{num_states} states declared")
    return start, num_states, position + HEADER.size
