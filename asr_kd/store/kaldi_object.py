"""One of Kaldi's single objects (a model, a tree), text or binary, read token by token from memory.

Kaldi's readers trust what they read; here every size is checked against the bytes that are there before memory is
taken, and every failure is an AsrKdError with file and byte. Formats: Kaldi's src/base/io-funcs*.h, src/matrix.
"""

import re
import struct
from pathlib import Path

import numpy as np

from asr_kd.errors import AsrKdError

# Kaldi begins a binary file so.
BINARY_MARK = b"\0B"
MAX_TOKEN_BYTES = 64
# A file may be cut short before the last line's end, but not, if it is binary, before the blank behind its last word.
_WORD, _LAST_WORD = (re.compile(rb"\s*(\S{1,%d})(?=%s)" % (MAX_TOKEN_BYTES, end)) for end in (rb"\s", rb"\s|$"))
_SPACE = re.compile(rb"\s*")
_INT = re.compile(rb"[+-]?\d{1,10}")


def read_file(path: str | Path) -> bytes:
    """The bytes of a file; raises AsrKdError where it is none, or cannot be read."""
    try:
        if not Path(path).is_file():
            raise AsrKdError(f"{path}: no such file")
        return Path(path).read_bytes()
    except OSError as error:
        raise AsrKdError(f"{path}: cannot be read ({error.strerror or error})") from error


class KaldiObject:
    """A cursor over the bytes of a file that Kaldi wrote; binary: None to tell by the mark that it begins with."""

    def __init__(self, data: bytes, name: str | Path, binary: bool | None = None) -> None:
        self.data, self.name = data, str(name)
        self.binary = data.startswith(BINARY_MARK) if binary is None else binary
        self.position = len(BINARY_MARK) if data.startswith(BINARY_MARK) else 0

    def error(self, what: str) -> AsrKdError:
        """What to raise: `what` is wrong here."""
        return AsrKdError(f"{self.name}: byte {self.position}: {what}")

    def token(self) -> str:
        """The next word, and the one white space behind it."""
        found = (_WORD if self.binary else _LAST_WORD).match(self.data, self.position)
        if not found:
            raise self.error("a word of Kaldi's should follow, but what does is none; the file is cut short or damaged")
        self.position = min(found.end() + 1, len(self.data))
        return found[1].decode("ascii", "replace")

    def peek(self) -> str:
        """The next word, which stays; "" at the end."""
        if self.at_end():
            return ""
        position, token = self.position, self.token()
        self.position = position
        return token

    def expect(self, *tokens: str) -> str:
        """The next word, which must be one of `tokens`."""
        found = self.token()
        if found not in tokens:
            raise self.error(f"has {found!r} where {' or '.join(tokens)} belongs")
        return found

    def at_end(self) -> bool:
        """Whether nothing but white space follows."""
        return _SPACE.match(self.data, self.position).end() == len(self.data)

    def int(self) -> int:
        """A whole number of 32 bits, with sign."""
        return self._binary_number(b"\x04", "<i") if self.binary else self._text_int(-(1 << 31), 1 << 31)

    def unsigned(self) -> int:
        """A whole number of 32 bits, without."""
        return self._binary_number(b"\xfc", "<I") if self.binary else self._text_int(0, 1 << 32)

    def float(self) -> float:
        """A number, single or double."""
        if self.binary:
            return self._binary_number(*((b"\x08", "<d") if self._next_byte() == b"\x08" else (b"\x04", "<f")))
        return float(self._numbers(self.token().encode(), np.float64)[0])

    def int_vector(self) -> np.ndarray:
        """Whole numbers, (n,) int64, as WriteIntegerVector writes them."""
        if not self.binary:
            values = self._numbers(self._bracketed(), np.int64)
            if len(values) and (values.min() < -(1 << 31) or values.max() >= 1 << 31):
                raise self.error("holds a number that does not fit in 32 bits")
            return values
        if self._take(1) != b"\x04":
            raise self.error("has no vector of 32-bit numbers where one belongs")
        (size,) = struct.unpack("<i", self._take(4))
        return np.frombuffer(self._take(4 * size), "<i4").astype(np.int64)

    def vector(self) -> np.ndarray:
        """Numbers, (n,) float32."""
        if not self.binary:
            return self._numbers(self._bracketed(), np.float32)
        dtype = self._float_type("V")
        return np.frombuffer(self._take(dtype.itemsize * self.int()), dtype).astype(np.float32)

    def matrix(self) -> np.ndarray:
        """Numbers, (num_rows, num_cols) float32."""
        if self.binary:
            dtype = self._float_type("M")
            num_rows, num_cols = self.int(), self.int()
            if num_rows < 0 or num_cols < 0 or (num_rows == 0) != (num_cols == 0):
                raise self.error(f"has a matrix of {num_rows} rows and {num_cols} columns")
            values = np.frombuffer(self._take(dtype.itemsize * num_rows * num_cols), dtype)
            return values.astype(np.float32).reshape(num_rows, num_cols)
        rows = [row for line in self._bracketed().splitlines() if len(row := self._numbers(line, np.float32))]
        if len({len(row) for row in rows}) > 1:
            raise self.error("has a matrix whose rows differ in length")
        return np.array(rows, np.float32) if rows else np.zeros((0, 0), np.float32)

    def _next_byte(self) -> bytes:
        return self.data[self.position : self.position + 1]

    def _take(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= len(self.data) - self.position:
            raise self.error(
                f"ends early: {num_bytes} bytes should follow, but {len(self.data) - self.position} do"
                if num_bytes >= 0
                else "declares a negative size"
            )
        self.position += num_bytes
        return self.data[self.position - num_bytes : self.position]

    def _binary_number(self, size: bytes, form: str) -> float:
        if self._next_byte() != size:
            raise self.error(f"should have a number of {struct.calcsize(form)} bytes here")
        return struct.unpack(form, self._take(1 + struct.calcsize(form))[1:])[0]

    def _text_int(self, low: int, high: int) -> int:
        text = self.token().encode()
        if not _INT.fullmatch(text) or not low <= int(text) < high:
            raise self.error(f"has {text.decode()!r} where a whole number belongs")
        return int(text)

    def _float_type(self, kind: str) -> np.dtype:
        return np.dtype("<f4" if self.expect("F" + kind, "D" + kind)[0] == "F" else "<f8")

    def _bracketed(self) -> bytes:
        if self.token() != "[":
            raise self.error("has no [ where numbers begin")
        end = self.data.find(b"]", self.position)
        if end < 0:
            raise self.error("has no ] behind its numbers; the file is cut short or damaged")
        text = self.data[self.position : end]
        self.position = end + 1
        return text

    def _numbers(self, text: bytes, dtype: type) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):
                return np.array(text.split(), dtype=dtype)
        except (ValueError, OverflowError) as error:
            raise self.error(f"holds what is no number ({str(error)[:80]})") from error
