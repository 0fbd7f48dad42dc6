"""Kaldi's tables, read and written without Kaldi: archives (ark) and scripts (scp) of matrices and vectors.

Tables are named as Kaldi names them, see table_names.py. Archives may be binary or text, and compressed by gzip. A line
of a script may end in an offset and in a range of rows and columns, both ends included (`feats.ark:1234[0:99,0:12]`).

Commands (`gunzip -c ali.gz |`) are never run: a table may come from a stranger. Every size in a file is checked
against what the file holds before memory is taken. Formats: Kaldi's src/util/kaldi-table.h, src/matrix.
"""

import contextlib
import gzip
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np

from asr_kd.errors import AsrKdError
from asr_kd.store import kaldi_compression
from asr_kd.store.atomic import atomic_path
from asr_kd.store.kaldi_stream import INT_RECORD, MAX_OBJECT_BYTES, KaldiStream, open_stream
from asr_kd.store.table_names import parse_specifier, parse_wspecifier

T = TypeVar("T")

# Kaldi lets a range end up to three rows after the matrix, since segments are rounded to 10 ms.
RANGE_TOLERANCE = 3
_IGNORED_OPTIONS = {"b", "t", "o", "no", "s", "ns", "cs", "ncs", "np", "bg"}
_FLOAT_TYPES = {"F": np.dtype("<f4"), "D": np.dtype("<f8")}


def _shape(stream: KaldiStream, num_rows: int, num_cols: int) -> tuple[int, int]:
    if num_rows < 0 or num_cols < 0 or (num_rows == 0) != (num_cols == 0):
        raise stream.error(f"declares {num_rows} rows and {num_cols} columns")
    return num_rows, num_cols


def _parse_numbers(stream: KaldiStream, text: str, dtype: type) -> np.ndarray:
    try:
        return np.fromiter(map(int if dtype == np.int32 else float, text.split()), dtype=dtype)
    except (ValueError, OverflowError) as error:
        raise stream.error(f"holds what is not a number of type {np.dtype(dtype)} ({str(error)[:80]})") from error


def _bracketed(stream: KaldiStream) -> Iterator[str]:
    """The lines between [ and ]."""
    line = stream.read_line().lstrip()
    if not line.startswith("["):
        raise stream.error(f"should begin with [ , but begins with {line[:20]!r}")
    line = line[1:]
    while "]" not in line:
        yield line
        line = stream.read_line()
    line, _, rest = line.partition("]")
    if rest.strip():
        raise stream.error(f"is followed by {rest.strip()[:20]!r} on the line of its ]")
    yield line


def _text_matrix(stream: KaldiStream) -> np.ndarray:
    rows, num_bytes = [], 0
    for line in _bracketed(stream):
        for text in line.split(";"):
            row = _parse_numbers(stream, text, np.float64)
            if not row.size:
                continue
            num_bytes += row.nbytes
            if num_bytes > MAX_OBJECT_BYTES:
                raise stream.error(f"goes on for more than the {MAX_OBJECT_BYTES} bytes that one object may have")
            if rows and len(row) != len(rows[0]):
                raise stream.error(f"row {len(rows) + 1} has {len(row)} numbers, but the first has {len(rows[0])}")
            rows.append(row)
    return np.array(rows) if rows else np.zeros((0, 0))


def _read_matrix(stream: KaldiStream) -> np.ndarray:
    """The matrix that comes next, in the type in which it is stored (text: float64)."""
    if not stream.is_binary():
        return _text_matrix(stream)
    token = stream.token()
    if token in ("FM", "DM"):
        dtype = _FLOAT_TYPES[token[0]]
        shape = _shape(stream, stream.int32(), stream.int32())
        return np.frombuffer(stream.read(shape[0] * shape[1] * dtype.itemsize), dtype=dtype).reshape(shape)
    if token not in ("CM", "CM2", "CM3"):
        raise stream.error(f"is of type {token!r}, but a matrix was expected (FM, DM, CM, CM2 or CM3)")
    low, spread, *shape = kaldi_compression.HEADER.unpack(stream.read(kaldi_compression.HEADER.size))
    num_rows, num_cols = _shape(stream, *shape)
    if not (np.isfinite(low) and np.isfinite(spread)):
        raise stream.error("has a compression range that is not finite")
    if 4 * num_rows * num_cols > MAX_OBJECT_BYTES:
        raise stream.error(f"declares {num_rows} rows and {num_cols} columns, more than one object may have")
    payload = stream.read(kaldi_compression.payload_size(token, num_rows, num_cols))
    return kaldi_compression.decompress(token, low, spread, num_rows, num_cols, payload)


def _read_vector(stream: KaldiStream) -> np.ndarray:
    """The float vector that comes next, in the type in which it is stored (text: float64)."""
    if not stream.is_binary():
        return _parse_numbers(stream, " ".join(_bracketed(stream)), np.float64)
    token = stream.token()
    if token not in ("FV", "DV"):
        raise stream.error(f"is of type {token!r}, but a vector was expected (FV or DV)")
    dim = stream.int32()
    if dim < 0:
        raise stream.error(f"declares {dim} elements")
    dtype = _FLOAT_TYPES[token[0]]
    return np.frombuffer(stream.read(dim * dtype.itemsize), dtype=dtype)


def _read_int_vector(stream: KaldiStream) -> np.ndarray:
    """The vector of int32 that comes next, as Kaldi stores alignments."""
    if not stream.is_binary():
        return _parse_numbers(stream, stream.read_line(), np.int32)
    dim = stream.int32()
    if dim < 0:
        raise stream.error(f"declares {dim} elements")
    records = np.frombuffer(stream.read(dim * INT_RECORD.itemsize), dtype=INT_RECORD)
    if not (records["size"] == 4).all():
        raise stream.error("is not a vector of whole numbers of 4 bytes")
    return records["value"].astype(np.int32)


class ScriptEntry(NamedTuple):
    """A line of a script: the file, where in it the object begins, and which part of the object is meant."""

    key: str
    file: str
    offset: int
    ranges: str


def read_script(name: str) -> Iterator[ScriptEntry]:
    """The lines of a script; raises AsrKdError, naming file and line, for one that is none, or a command."""
    try:
        with open(name, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                key, _, rest = line.strip().partition(" ")
                rest = rest.strip()
                if not rest:
                    raise AsrKdError(f"{name}:{number}: should be a key, a space and a file, but is {line.strip()!r}")
                if rest.endswith("|"):
                    raise AsrKdError(f"{name}:{number}: {key!r} is the output of a command, and commands are not run")
                if rest == "-" or "\0" in rest:
                    raise AsrKdError(f"{name}:{number}: {key!r} is in {rest[:80]!r}, which is no file")
                ranges = ""
                if rest.endswith("]"):
                    rest, _, ranges = rest[:-1].rpartition("[")
                file, colon, offset = rest.rpartition(":")
                if colon and offset.isascii() and offset.isdigit() and len(offset) < 19:
                    yield ScriptEntry(key, file, int(offset), ranges)
                else:
                    yield ScriptEntry(key, rest, 0, ranges)
    except OSError as error:
        raise AsrKdError(f"{name}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise AsrKdError(f"{name}: is not a script of Kaldi, since it is not text in UTF-8") from error


def _part(array: np.ndarray, ranges: str, where: str) -> np.ndarray:
    """The rows, and perhaps columns, of a range as in a script: first:last, both included."""
    slices = []
    parts = ranges.split(",")
    for axis, text in enumerate(parts):
        first, colon, last = text.partition(":")
        tolerance = RANGE_TOLERANCE if axis == 0 else 0
        if text == ":":
            slices.append(slice(None))
            continue
        if not (colon and first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
            raise AsrKdError(f"{where}: the range [{ranges}] is not first:last, or first:last,first:last")
        if (
            axis >= array.ndim
            or not int(first) <= int(last) < array.shape[axis] + tolerance
            or int(first) >= array.shape[axis]
        ):
            raise AsrKdError(f"{where}: the range [{ranges}] does not lie in an object of shape {array.shape}")
        slices.append(slice(int(first), int(last) + 1))
    return array[tuple(slices)]


def _read_script_objects(name: str, read: Callable[[KaldiStream], T]) -> Iterator[tuple[str, T]]:
    with contextlib.ExitStack() as stack:
        opened, stream = None, None
        for key, file, offset, ranges in read_script(name):
            if file != opened:  # the entries of one archive follow each other
                stack.close()
                stream, opened = stack.enter_context(open_stream(file)), file
            stream.key = key
            stream.seek(offset)
            found = read(stream)
            if ranges and not isinstance(found, np.ndarray):
                raise AsrKdError(f"{name}: {key!r}: the range [{ranges}] is of a matrix or vector, which this is not")
            yield key, _part(found, ranges, f"{name}: {key!r}") if ranges else found


def read_objects(rspecifier: str, read: Callable[[KaldiStream], T]) -> Iterator[tuple[str, T]]:
    """The keys and objects of a table, one after the other, each taken from its stream by `read`.

    Raises AsrKdError for a specifier, archive or script that is none, and what `read` raises.
    """
    kinds, name = parse_specifier(rspecifier)
    unknown = set(kinds) - {"ark", "scp"} - _IGNORED_OPTIONS
    if unknown or ("ark" in kinds and "scp" in kinds):
        raise AsrKdError(f"{rspecifier!r}: {', '.join(sorted(unknown)) or 'ark with scp'} is not supported in reading")
    if "scp" in kinds:
        yield from _read_script_objects(name, read)
        return
    with open_stream(name) as stream:
        while stream.next_key():
            yield stream.key, read(stream)


def read_matrices(rspecifier: str, dtype: type = np.float32) -> Iterator[tuple[str, np.ndarray]]:
    """The keys and matrices (num_rows, num_cols) of a table, one after the other; compressed ones are expanded.

    rspecifier: as in the module's description; dtype: of the result (statistics want np.float64).

    Raises AsrKdError naming file, key and byte for what is truncated, damaged or no matrix.
    """
    with np.errstate(over="ignore"):
        for key, matrix in read_objects(rspecifier, _read_matrix):
            yield key, np.ascontiguousarray(matrix, dtype=dtype)


def read_vectors(rspecifier: str, dtype: type = np.float32) -> Iterator[tuple[str, np.ndarray]]:
    """The keys and float vectors (dim,) of a table; raises as read_matrices does."""
    with np.errstate(over="ignore"):
        for key, vector in read_objects(rspecifier, _read_vector):
            yield key, np.ascontiguousarray(vector, dtype=dtype)


def read_int_vectors(rspecifier: str) -> Iterator[tuple[str, np.ndarray]]:
    """The keys and vectors (dim,) int32 of a table, such as alignments; raises as read_matrices does."""
    return read_objects(rspecifier, _read_int_vector)


def object_kind(rspecifier: str) -> str:
    """What the first object of a table is: "matrix", "vector" or "int vector".

    Raises AsrKdError for an empty table, something else, and the standard input, of which it would take a part away.
    """
    kinds, name = parse_specifier(rspecifier)
    entry = next(read_script(name), None) if "scp" in kinds else ScriptEntry("", name, 0, "")
    if entry is None or entry.file == "-":
        raise AsrKdError(f"{rspecifier}: is empty, or not a file")
    with open_stream(entry.file) as stream:
        stream.key = entry.key
        stream.seek(entry.offset)
        if "scp" not in kinds and not stream.next_key():
            raise AsrKdError(f"{rspecifier}: is an empty table")
        if not stream.is_binary():
            return "matrix" if stream.read_line().lstrip().startswith("[") else "int vector"
        if stream.peek() == b"\x04":
            return "int vector"
        token = stream.token()
        if token not in ("FM", "DM", "CM", "CM2", "CM3", "FV", "DV"):
            raise stream.error(f"is of type {token!r}, which is neither a matrix nor a vector")
        return "vector" if token.endswith("V") else "matrix"


def _int32(value: int) -> bytes:
    return b"\x04" + value.to_bytes(4, "little", signed=True)


def _format_row(row: np.ndarray) -> str:
    return "".join(f"{value:.7g} " for value in row.tolist())


def _encode_matrix(matrix: np.ndarray, text: bool, compression_method: int) -> bytes:
    if matrix.ndim != 2:
        raise AsrKdError(f"it has shape {matrix.shape}, and a matrix has two dimensions")
    if text:
        lines = "".join(f"\n  {_format_row(row)}" for row in matrix) if matrix.size else " "
        return f" [{lines}]\n".encode()
    if compression_method:
        return b"\0B" + kaldi_compression.compress(matrix, compression_method)
    kind = "D" if matrix.dtype == np.float64 else "F"
    num_rows, num_cols = matrix.shape if matrix.size else (0, 0)
    values = matrix.astype(_FLOAT_TYPES[kind]).tobytes()
    return b"\0B" + kind.encode() + b"M " + _int32(num_rows) + _int32(num_cols) + values


def _encode_vector(vector: np.ndarray, text: bool) -> bytes:
    if vector.ndim != 1:
        raise AsrKdError(f"it has shape {vector.shape}, and a vector has one dimension")
    if text:
        return f" [ {_format_row(vector)}]\n".encode()
    kind = "D" if vector.dtype == np.float64 else "F"
    return b"\0B" + kind.encode() + b"V " + _int32(len(vector)) + vector.astype(_FLOAT_TYPES[kind]).tobytes()


def _encode_int_vector(vector: np.ndarray, text: bool) -> bytes:
    if vector.ndim != 1 or (vector.size and vector.dtype.kind not in "iu"):
        raise AsrKdError(f"it has shape {vector.shape} and type {vector.dtype}, and is not a vector of whole numbers")
    if vector.size and (vector.min() < -(1 << 31) or vector.max() >= 1 << 31):
        raise AsrKdError("it holds numbers that do not fit in 32 bits")
    if text:
        return ("".join(f"{value} " for value in vector.tolist()) + "\n").encode()
    records = np.empty(len(vector), dtype=INT_RECORD)
    records["size"], records["value"] = 4, vector
    return b"\0B" + _int32(len(vector)) + records.tobytes()


def _write_archive(
    file: BinaryIO, items: Iterable[tuple[str, T]], encode: Callable[[T], bytes], name: str
) -> Iterator[tuple[str, int]]:
    """Write objects one after the other; yields each key and the offset at which its object begins."""
    offset = 0
    for key, value in items:
        if not key or any(letter.isspace() for letter in key) or not key.isprintable():
            raise AsrKdError(f"{name}: {key!r} cannot be a key; keys hold no spaces and are not empty")
        try:
            data = encode(value)
        except AsrKdError as error:
            raise AsrKdError(f"{name}: {key!r} was not written: {error}") from error
        head = f"{key} ".encode()
        file.write(head)
        file.write(data)
        yield key, offset + len(head)
        offset += len(head) + len(data)


def write_objects(wspecifier: str, items: Iterable[tuple[str, T]], encode: Callable[[T, bool], bytes]) -> int:
    """Write (key, object) to a table, complete or not at all; returns how many. encode(object, text): its bytes.

    Raises AsrKdError for a key with spaces and for what `encode` refuses.
    """
    archive, text, script = parse_wspecifier(wspecifier)
    count = 0
    with contextlib.ExitStack() as stack:
        lines = None
        if script:  # renamed into its place after the archive that it names
            lines = stack.enter_context(open(stack.enter_context(atomic_path(script)), "w", encoding="utf-8"))
        if archive == "-":
            file = sys.stdout.buffer
        else:
            file = stack.enter_context(open(stack.enter_context(atomic_path(archive)), "wb"))
        if archive.endswith(".gz"):
            # The name and the time of writing stay out of the file: the same contents are the same bytes.
            file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
        for key, offset in _write_archive(file, items, lambda value: encode(value, text), archive):
            count += 1
            if lines is not None:
                lines.write(f"{key} {archive}:{offset}\n")
        file.flush()
    return count


def write_matrices(wspecifier: str, items: Iterable[tuple[str, np.ndarray]], compression_method: int = 0) -> int:
    """Write (key, matrix (num_rows, num_cols)) to a table, complete or not at all; returns how many.

    float64 is stored as such, all else as float32; compression_method: 0, or one of Kaldi's seven
    (kaldi_compression.COMPRESSION_METHODS), for binary archives only.

    Raises AsrKdError for a key with spaces, an array that is no matrix, and what cannot be compressed.
    """
    if compression_method and parse_wspecifier(wspecifier).text:
        raise AsrKdError(f"{wspecifier!r}: archives of text are not compressed")
    return _write(wspecifier, items, lambda array, text: _encode_matrix(array, text, compression_method))


def _write(
    wspecifier: str, items: Iterable[tuple[str, np.ndarray]], encode: Callable[[np.ndarray, bool], bytes]
) -> int:
    return write_objects(wspecifier, ((key, np.asarray(array)) for key, array in items), encode)


def write_vectors(wspecifier: str, items: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write (key, vector (dim,) of floats) to a table, as write_matrices does."""
    return _write(wspecifier, items, _encode_vector)


def write_int_vectors(wspecifier: str, items: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write (key, vector (dim,) of whole numbers, stored as int32) to a table, as write_matrices does."""
    return _write(wspecifier, items, _encode_int_vector)
