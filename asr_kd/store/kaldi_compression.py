"""Kaldi's CompressedMatrix: features in one or two bytes a value.

The quantisation follows Kaldi's src/matrix/compressed-matrix.cc to the byte, its order of float and double operations
included. After the token `CM`, `CM2` or `CM3` come min_value and range (float32), the rows and the columns (int32), and

    CM   four uint16 a column (its minimum, quartiles and maximum), then one byte a value, column by column
    CM2  two bytes a value, row by row
    CM3  one byte a value, row by row
"""

import struct
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from asr_kd.errors import AsrKdError

COMPRESSION_METHODS = {
    1: "automatic: 2 above 8 rows, else 3",
    2: "speech features: one byte a value, spaced by the quartiles of its column",
    3: "two bytes a value, over the matrix's range",
    4: "two bytes a value, whole numbers from -32768 to 32767",
    5: "one byte a value, over the matrix's range",
    6: "one byte a value, whole numbers from 0 to 255",
    7: "one byte a value, from 0 to 1",
}
HEADER = struct.Struct("<ffii")
# min_value and range of the methods that do not take them from the matrix.
_FIXED_RANGE = {4: (-32768.0, 65535.0), 6: (0.0, 255.0), 7: (0.0, 1.0)}
_TOKENS = {2: b"CM", 3: b"CM2", 4: b"CM2", 5: b"CM3", 6: b"CM3", 7: b"CM3"}
# The smallest step between two quartiles is one of 65536, so the last that leaves room for the following ones.
_HIGHEST_QUARTILES = (65532, 65533, 65534, 65535)


def payload_size(token: str, num_rows: int, num_cols: int) -> int:
    """Bytes that follow the header of a matrix of that size."""
    if token == "CM":
        return num_cols * (8 + num_rows)
    return num_rows * num_cols * (2 if token == "CM2" else 1)


def _range_of(matrix: np.ndarray, method: int) -> tuple[np.float32, np.float32]:
    if method in _FIXED_RANGE:
        return np.float32(_FIXED_RANGE[method][0]), np.float32(_FIXED_RANGE[method][1])
    low, high = matrix.min(), matrix.max()
    if low == high:
        high = np.float32(float(low) + (1.0 + abs(float(low))))
    with np.errstate(over="ignore"):
        return low, high - low


def _to_integers(values: np.ndarray, low: np.float32, spread: np.float32, highest: int) -> np.ndarray:
    """Values (…) float32 as whole numbers from 0 to `highest`; 0.499 and not 0.5, as in Kaldi."""
    fraction = np.clip((values - low) / spread, np.float32(0), np.float32(1))
    return ((fraction * np.float32(highest)).astype(np.float64) + 0.499).astype(np.int64)


def _quartile_values(quartiles: np.ndarray, low: np.float32, spread: np.float32) -> np.ndarray:
    """Quartiles (num_cols, 4) uint16 as float32."""
    return low + (spread * np.float32(1.52590218966964e-05)) * quartiles.astype(np.float32)


def _quartiles(columns: np.ndarray, low: np.float32, spread: np.float32) -> np.ndarray:
    """Strictly growing quartiles of columns (num_cols, num_rows): (num_cols, 4) int64."""
    num_cols, num_rows = columns.shape
    if num_rows >= 5:
        places = [0, num_rows // 4, 3 * (num_rows // 4), num_rows - 1]
        picked = np.sort(columns, axis=1)[:, places]  # faster than to partition at four places
    else:
        picked = np.sort(columns, axis=1)
    found = _to_integers(picked, low, spread, 65535)
    quartiles = np.empty((num_cols, 4), dtype=np.int64)
    for i, highest in enumerate(_HIGHEST_QUARTILES):
        following = quartiles[:, i - 1] + 1 if i else np.zeros(num_cols, dtype=np.int64)
        wanted = np.maximum(found[:, i], following) if i < found.shape[1] else following
        quartiles[:, i] = np.minimum(wanted, highest)
    return quartiles


def _compress_columns(matrix: np.ndarray, low: np.float32, spread: np.float32) -> bytes:
    columns = np.ascontiguousarray(matrix.T)
    quartiles = _quartiles(columns, low, spread)
    values = _quartile_values(quartiles, low, spread)
    packed = np.empty(columns.shape, dtype=np.uint8)
    # Which two quartiles each value lies between, and the bytes that stand for what is between them.
    first_bytes, num_bytes = np.array([0, 64, 192]), np.array([64, 128, 63], dtype=np.float32)
    for column, ends, out in zip(columns, values, packed, strict=True):
        between = (column >= ends[1]).astype(np.intp) + (column >= ends[2])
        span = num_bytes.take(between)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = ((column - ends.take(between)) / np.diff(ends).take(between) * span).astype(np.float64)
        # Where two quartiles are one float32, Kaldi's conversion of infinity to a whole number gives the lowest.
        steps[~np.isfinite(steps)] = 0.0
        out[:] = first_bytes.take(between) + np.clip(steps + 0.5, 0, span).astype(np.intp)
    return quartiles.astype("<u2").tobytes() + packed.tobytes()


def warn_of_clipped(
    items: Iterable[tuple[str, np.ndarray]], method: int, log: Callable[[str], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """The same (id, matrix); once all are through, `log` is told how many values a method of fixed range cuts off."""
    low, spread = _FIXED_RANGE.get(method, (-np.inf, np.inf))
    num_clipped = num_values = 0
    for key, matrix in items:
        num_clipped += np.count_nonzero((matrix < low) | (matrix > low + spread))
        num_values += matrix.size
        yield key, matrix
    if num_clipped:
        log(
            f"warning: {num_clipped} of {num_values} values are outside of {low:g} to {low + spread:g}, the range of "
            f"compression method {method}, and were set to its ends"
        )


def compress(matrix: np.ndarray, method: int) -> bytes:
    """Token, header and values of a matrix (num_rows, num_cols), as Kaldi writes them.

    Raises AsrKdError for an unknown method and for values that are not finite.
    """
    if method not in COMPRESSION_METHODS:
        raise AsrKdError(f"compression method {method} is not one of 1 to {max(COMPRESSION_METHODS)}")
    num_rows, num_cols = matrix.shape
    if matrix.size == 0:
        return b"CM " + HEADER.pack(0.0, 0.0, 0, 0)
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    if method == 1:
        method = 2 if num_rows > 8 else 3
    low, spread = _range_of(matrix, method)
    if not (np.isfinite(low) and np.isfinite(spread) and np.isfinite(matrix).all()):
        raise AsrKdError("its values, or their range, are not finite float32 numbers, so it cannot be compressed")
    token = _TOKENS[method]
    if token == b"CM":
        payload = _compress_columns(matrix, low, spread)
    elif token == b"CM2":
        payload = _to_integers(matrix, low, spread, 65535).astype("<u2").tobytes()
    else:
        payload = _to_integers(matrix, low, spread, 255).astype(np.uint8).tobytes()
    return token + b" " + HEADER.pack(low, spread, num_rows, num_cols) + payload


def decompress(token: str, low: float, spread: float, num_rows: int, num_cols: int, payload: bytes) -> np.ndarray:
    """The matrix (num_rows, num_cols) float32 of a payload of payload_size() bytes."""
    low, spread = np.float32(low), np.float32(spread)
    if token != "CM":
        kind, highest = ("<u2", 65535.0) if token == "CM2" else ("u1", 255.0)
        step = np.float32(float(spread) * (1.0 / highest))
        matrix = np.frombuffer(payload, dtype=kind).astype(np.float32)
        matrix *= step
        matrix += low
        return matrix.reshape(num_rows, num_cols)
    quartiles = np.frombuffer(payload, dtype="<u2", count=4 * num_cols).reshape(num_cols, 4)
    values = np.frombuffer(payload, dtype=np.uint8, offset=8 * num_cols).reshape(num_cols, num_rows)
    p0, p25, p75, p100 = _quartile_values(quartiles, low, spread).T
    # One table of 256 values a column: what a byte stands for depends on nothing but its column.
    byte = np.arange(256, dtype=np.float32)
    table = np.empty((num_cols, 256), dtype=np.float32)
    for start, end, first, last in ((p0, p25, 0, 64), (p25, p75, 64, 192), (p75, p100, 192, 255)):
        steps = (end - start)[:, None] * (byte[first : last + 1] - np.float32(first))
        part = start[:, None].astype(np.float64) + steps.astype(np.float64) * (1.0 / (last - first))
        keep = slice(first if first == 0 else first + 1, last + 1)
        table[:, keep] = part[:, keep.start - first :]
    matrix = np.empty((num_rows, num_cols), dtype=np.float32)
    for column in range(num_cols):
        np.take(table[column], values[column], out=matrix[:, column])
    return matrix
