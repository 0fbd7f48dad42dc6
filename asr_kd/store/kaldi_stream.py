"""A stranger's Kaldi file, read in exact pieces: no size that it declares is believed before it is checked."""

import contextlib
import gzip
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from asr_kd.errors import AsrKdError

# No matrix of speech comes near: 40 columns for 15 hours in one utterance.
MAX_OBJECT_BYTES = 1 << 30
MAX_KEY_BYTES = 4096
# An hour of speech is a tenth of it; what is taken apart takes fifty times as much memory.
MAX_LINE_BYTES = 1 << 24
_PIECE = 1 << 20
# A whole number is written with its size in bytes before it.
INT_RECORD = np.dtype([("size", "u1"), ("value", "<i4")])


class KaldiStream:
    """A file, plain or gzip, read in exact pieces; every failure is an AsrKdError with file, key and offset."""

    def __init__(self, name: str, file: BinaryIO, size: int | None) -> None:
        self.name = name
        self.key = ""
        self._file = file
        self._size = size  # bytes in all, unknown for gzip and for pipes
        self.offset = 0

    def error(self, what: str) -> AsrKdError:
        where = f"{self.key!r}, " if self.key else ""
        return AsrKdError(f"{self.name}: {where}byte {self.offset}: {what}")

    def seek(self, offset: int) -> None:
        if self._size is not None and offset > self._size:
            raise self.error(f"offset {offset} lies behind the end of the file, which has {self._size} bytes")
        self.offset = self._file.seek(offset)

    def read(self, num_bytes: int) -> bytearray:
        """Exactly so many bytes."""
        if num_bytes > MAX_OBJECT_BYTES:
            raise self.error(f"declares {num_bytes} bytes, more than the {MAX_OBJECT_BYTES} that one object may have")
        if self._size is not None and num_bytes > self._size - self.offset:
            raise self.error(f"ends early: {num_bytes} bytes follow by its header, but {self._size - self.offset} do")
        # Where the size of the file is unknown, memory is taken as the bytes come.
        out, found = bytearray(num_bytes if self._size is not None else min(num_bytes, _PIECE)), 0
        while found < num_bytes:
            if found == len(out):
                out.extend(bytes(min(_PIECE, num_bytes - found)))
            got = self._file.readinto(memoryview(out)[found:])
            if not got:
                raise self.error(f"ends early: {num_bytes} bytes follow by its header, but {found} do")
            found += got
        self.offset += num_bytes
        return out

    def _skip(self, num_bytes: int) -> None:
        self._file.read(num_bytes)
        self.offset += num_bytes

    def read_line(self) -> str:
        """A line of text without its end; raises where the file ends before it begins, and where it goes on and on."""
        line = self._file.readline(MAX_LINE_BYTES)
        if not line:
            raise self.error("ends early: a line of numbers should follow")
        if len(line) == MAX_LINE_BYTES:
            raise self.error(f"goes on for more than the {MAX_LINE_BYTES} bytes that a line of text may have")
        self.offset += len(line)
        try:
            return line.decode("ascii").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise self.error("is neither a binary object nor text") from error

    def peek(self) -> bytes:
        """The next byte, which stays; none at the end."""
        return self._file.peek(1)[:1]

    def is_binary(self) -> bool:
        """Whether Kaldi's binary marker comes next; it is read over."""
        if self.peek() != b"\0":
            return False
        if self.read(2) != b"\0B":
            raise self.error("is no object of Kaldi: \\0B should begin it")
        return True

    def token(self) -> str:
        """A short name and the space behind it."""
        out = bytearray()
        while len(out) < 8:
            byte = self.read(1)
            if byte == b" ":
                return out.decode("ascii", "replace")
            out += byte
        raise self.error(f"has no type that Kaldi knows ({bytes(out)!r})")

    def int32(self) -> int:
        """A number with its size before it, as Kaldi writes it."""
        size, value = np.frombuffer(self.read(5), dtype=INT_RECORD)[0]
        if size != 4:
            raise self.error(f"declares a whole number of {size} bytes; 4 are read here")
        return int(value)

    def next_key(self) -> bool:
        """Read the key of the next object, and the space behind it, into self.key; False at the end of the archive.

        A line end behind the key stays: it ends an empty vector of an archive of text.
        """
        self.key = ""
        while (byte := self.peek()) and byte in b" \t\r\n":
            self._skip(1)
        if not byte:
            return False
        key = bytearray()
        while (byte := self.peek()) and byte not in b" \t\r\n":
            key += byte
            self._skip(1)
            if len(key) > MAX_KEY_BYTES:
                raise self.error(f"has no key of fewer than {MAX_KEY_BYTES} bytes; it is not an archive of Kaldi")
        if not byte:
            raise self.error("ends early, within a key")
        if byte in b" \t":
            self._skip(1)
        try:
            self.key = key.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error("has a key that is not UTF-8; it is not an archive of Kaldi, or damaged") from error
        if not self.key.isprintable():
            raise self.error("has a key that cannot be printed; it is not an archive of Kaldi, or damaged")
        return True


@contextlib.contextmanager
def open_stream(name: str) -> Iterator[KaldiStream]:
    """Open a table for reading, gzip or not, whatever it is called; "-" is the standard input."""
    if name.endswith("|"):
        raise AsrKdError(f"{name!r} is a command, and commands are not run; files compressed by gzip are read as such")
    with contextlib.ExitStack() as stack:
        try:
            if name == "-":
                file, size = sys.stdin.buffer, None
            else:
                file = stack.enter_context(open(name, "rb"))
                status = os.fstat(file.fileno())
                size = status.st_size if stat.S_ISREG(status.st_mode) else None
            if file.peek(2)[:2] == b"\x1f\x8b":
                file, size = stack.enter_context(gzip.GzipFile(fileobj=file)), None
        except OSError as error:
            raise AsrKdError(f"{name}: cannot be read ({error.strerror or error})") from error
        stream = KaldiStream("standard input" if name == "-" else name, file, size)
        try:
            yield stream
        except (OSError, EOFError, zlib.error) as error:
            raise stream.error(f"is damaged, or cannot be read on ({error})") from error
