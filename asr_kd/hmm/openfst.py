"""OpenFst's binary form of a graph, read without OpenFst, whose reader trusts every number and crashes on a wrong one.

The form is that of VectorFst with StdArc as OpenFst 1.6 and later, and Kaldi, write it: a header, then for every state
its final weight, its number of arcs, and the arcs.
"""

import struct
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError

MAGIC = 2125659606
ARC = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("weight", "<f4"), ("target", "<i4")])
STATE = struct.Struct("<fq")  # final weight, number of arcs


def read_vector_fst(
    path: str | Path,
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
        states, arcs = [], []
        for _ in range(num_states):
            states.append(STATE.unpack_from(content, position))
            begin, count = position + STATE.size, states[-1][1]
            if not 0 <= count <= (len(content) - begin) // ARC.itemsize:
                raise ValueError(f"a state of {count} arcs")
            position = begin + count * ARC.itemsize
            arcs.append(np.frombuffer(content[begin:position], ARC))
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise AsrKdError(f"{path}: is damaged, or no OpenFst binary of a decoding graph ({error})") from error
    if position != len(content):
        raise AsrKdError(f"{path}: is damaged, more follows than it declares")
    table = np.concatenate(arcs)
    lengths = [count for _, count in states]
    labels = [table[name].astype(np.int64) for name in ("target", "ilabel", "olabel")]
    final = np.array([weight for weight, _ in states], dtype=np.float64)
    return start, np.repeat(np.arange(num_states), lengths), *labels, table["weight"].astype(np.float64), final


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
    version, flags, _, start, num_states, _ = struct.unpack_from("<iiQqqq", content, position)
    if names != ["vector", "standard"] or version != 2 or flags:
        raise ValueError(f"type {' '.join(names)}, version {version}, flags {flags}")
    if not 0 < num_states <= len(content) // STATE.size:
        raise ValueError(f"{num_states} states declared")
    return start, num_states, position + struct.calcsize("<iiQqqq")
