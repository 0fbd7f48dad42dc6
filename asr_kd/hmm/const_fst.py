"""OpenFst's ConstFst form of a graph, as Kaldi's mkgraph.sh writes HCLG.fst since 2018, read without OpenFst.

A header; for every state its final weight, the number of its first arc, its number of arcs, and how many of these have
no input and no output; then all arcs. Where the header says so, both parts begin at a multiple of 16 bytes.
"""

import struct
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.hmm.openfst import MAGIC, read_vector_fst
from asr_kd.store.kaldi_object import read_file

_HEADER = struct.Struct("<iiQqqq")  # version, flags, properties, start, states, arcs
_IS_ALIGNED, _ALIGNMENT = 4, 16
_STATE = np.dtype([("final", "<f4"), ("first", "<u4"), ("count", "<u4"), ("no_input", "<u4"), ("no_output", "<u4")])
_ARC = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("weight", "<f4"), ("target", "<i4")])


def read_graph_fst(
    path: str | Path,
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(start, source, target, ilabel, olabel, weight, final) of a graph of either form, as read_vector_fst gives them.

    Raises AsrKdError for a file that is neither a `vector` nor a `const` FST of `standard` arcs, has symbol tables, or
    does not hold exactly what it declares. Labels and states are not checked here.
    """
    content = read_file(path)
    if not content.startswith(struct.pack("<ii", MAGIC, len("const")) + b"const"):
        return read_vector_fst(path)
    try:
        start, states, arcs = _parse(content)
    except (struct.error, ValueError) as error:
        raise AsrKdError(f"{path}: is damaged, or no OpenFst binary of a decoding graph ({error})") from error
    labels = [arcs[name].astype(np.int64) for name in ("target", "ilabel", "olabel")]
    source = np.repeat(np.arange(len(states)), states["count"])
    return start, source, *labels, arcs["weight"].astype(np.float64), states["final"].astype(np.float64)


def _parse(content: bytes) -> tuple[int, np.ndarray, np.ndarray]:
    """Start state, states and arcs; raises ValueError and struct.error."""
    position = 8 + len("const")
    (length,) = struct.unpack_from("<i", content, position)
    if length != len("standard") or content[position + 4 : position + 4 + length] != b"standard":
        raise ValueError("its arcs are not of type standard")
    position += 4 + length
    version, flags, _, start, num_states, num_arcs = _HEADER.unpack_from(content, position)
    if version not in (1, 2) or flags & ~_IS_ALIGNED:
        raise ValueError(f"version {version}, flags {flags}")
    aligned = version == 1 or bool(flags & _IS_ALIGNED)
    states, position = _array(content, position + _HEADER.size, num_states, _STATE, aligned)
    arcs, position = _array(content, position, num_arcs, _ARC, aligned)
    if position != len(content) or not num_states:
        raise ValueError("it holds less or more than it declares")
    counts = states["count"].astype(np.int64)
    if counts.sum() != num_arcs or (states["first"][counts > 0] != (np.cumsum(counts) - counts)[counts > 0]).any():
        raise ValueError("its states do not divide its arcs")
    return start, states, arcs


def _array(content: bytes, position: int, count: int, dtype: np.dtype, aligned: bool) -> tuple[np.ndarray, int]:
    """`count` records from a position on, and where they end."""
    if aligned:
        position += -position % _ALIGNMENT
    if not 0 <= count <= (len(content) - position) // dtype.itemsize:
        raise ValueError(f"{count} states or arcs declared")
    return np.frombuffer(content, dtype, count, position), position + count * dtype.itemsize
