"""Damaged and hostile files for every reader of strangers' files: an error of ours or a right result, nothing else.

A reader is registered by one call (tests/fuzz_readers.py has them all) with how to write a whole file and how to read
one. Of the whole file come cases that are cut, have bits flipped, parts moved, numbers replaced by hostile ones, or
are bombs and files of other kinds. They are read in a forked process with limits on memory and time, so that a crash,
a hang and a flood are found as such, by the number of the case, and the next case goes on.
"""

import gzip
import multiprocessing
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from asr_kd.errors import AsrKdError
from asr_kd.store import hdf5_guard

MEMORY_BYTES = 3 << 30  # beside what the process has before
CPU_SECONDS = 20  # of one case
WALL_SECONDS = 120  # without a word from the process: it hangs

_HOSTILE_INTS = [-1, 0, 1, 2, 255, 1 << 16, 1 << 24, (1 << 30) + 1, (1 << 31) - 1, -(1 << 31)]
_HOSTILE_LONGS = [*_HOSTILE_INTS, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63)]
_HOSTILE_WORDS = ["-1", "0", "999999999999999999999", "2147483648", "1e999", "-1e999", "nan", "inf", "0x10", "1_0"]
_HOSTILE_WORDS += [
    "",
    "\u0663",
    "\x00",
    "[",
    "]",
    "\ufeff",
    "a" * 5000,
    "1e-999",
    "-0",
    "4294967296",
    "\u00a0",
    "|",
    "..",
]
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")
# Each line of YAML is the one before it nine times.
_ALIASES = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghij"))
_BOMBS = [
    b"",
    b"\0",
    b"\n",
    b"\0B",
    b"[" * 200_000,
    b"{" * 200_000,
    b'{"a":' * 100_000,
    _ALIASES.encode(),
    b"[[[[ 1 ]]]]\n" * 1000,
    b"a" * 1_000_000,
    b"a " * 200_000,
    b"a\n" * 10_000,
    b"key \0BFM \x04\xff\xff\xff\x7f\x04\xff\xff\xff\x7f",
    b"key \0B\x04\xff\xff\xff\x7f" + b"\x04\0\0\0\0" * 100,
    b"\0BContextDependency \x04\3\0\0\0\x04\1\0\0\0ToPdf " + b"TE \x04\0\0\0\0\xfc\1\0\0\0( " * 5000,
    b"ContextDependency 3 1 ToPdf " + b"SE 0 [ 1 ]\n{ " * 5000,
    b"\0B<TransitionModel> <Topology> \x04\xff\xff\xff\x7f",
    b"\xff\xfe" + "text in UTF-16".encode("utf-16-le"),
    bytes(range(256)) * 40,
    gzip.compress(bytes(1 << 26), 9, mtime=0),
    gzip.compress(b"key [ " + b"1 " * (1 << 25), 9, mtime=0),
    gzip.compress(b"key [\n" + b"1 2 3\n" * (1 << 17), 9, mtime=0),
    gzip.compress(gzip.compress(b"key 1 2 3\n", mtime=0), mtime=0),
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """make: write a whole file, and what has to lie beside it, into an empty folder, and return its path; read: read
    it, and assert that what was read is possible; sealed: what is read is the same as of the whole file, or refused.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    sealed: bool = False


READERS: dict[str, Reader] = {}


def register(name: str, make: Callable[[Path], Path], read: Callable[[Path], object], *, sealed: bool = False) -> None:
    """Add a reader under a name of its own."""
    assert name not in READERS, name
    READERS[name] = Reader(make, read, sealed)


@dataclass
class Report:
    """How many cases were refused and how many read, the slowest one's seconds of CPU, and what went wrong by case."""

    refused: int = 0
    read: int = 0
    slowest: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.refused} refused, {self.read} read, slowest {self.slowest:.2f} s of CPU, "
            f"{len(self.failures)} failures"
        )


def case(name: str, number: int, content: bytes, donors: list[bytes]) -> bytes:
    """A damaged or hostile file made of a whole one and of whole files of other kinds; the first ones are the bombs."""
    if number < len(_BOMBS):
        return _BOMBS[number]
    random = Random(f"{name} {number}")
    kind = random.choices(range(8), [20, 25, 12, 10, 15, 10, 3, 3])[0]
    changed = bytearray(content)
    at = random.randrange(len(content) + 1)
    if kind == 0:
        return content[:at]
    if kind == 1:
        for _ in range(random.randint(1, 6)):
            changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif kind == 2:  # a stretch overwritten, inserted or taken out
        length = random.choice([1, 2, 4, 8, 64, 1000])
        changed[at : at + random.choice([0, length])] = random.randbytes(random.choice([0, length]))
    elif kind == 3:  # a stretch from elsewhere in the file, or from another kind of file
        source = random.choice([content, content, random.choice(donors)])
        begin = random.randrange(len(source) + 1)
        changed[at : at + random.choice([0, 20])] = source[begin : begin + random.randint(1, 200)]
    elif kind == 4:  # a whole number of a binary file
        size = random.choice([1, 4, 4, 4, 8])
        value = random.choice(_HOSTILE_LONGS) % (1 << (8 * size))
        changed[at : at + size] = value.to_bytes(size, random.choice(["little", "little", "big"]))
    elif kind == 5:  # a number of a text
        found = [match.span() for match in _NUMBER.finditer(content[max(0, at - 2000) : at + 2000])]
        if found:
            begin, end = (max(0, at - 2000) + place for place in random.choice(found))
            changed[begin:end] = random.choice(_HOSTILE_WORDS).encode()
    elif kind == 6:  # lines in another order, or twice
        lines = content.split(b"\n")
        chosen = random.randrange(len(lines))
        lines.insert(random.randrange(len(lines) + 1), lines[chosen] if random.random() < 0.5 else lines.pop(chosen))
        return b"\n".join(lines)
    else:
        return random.choice(donors)
    return bytes(changed)


def run(name: str, num_cases: int, *, donors: list[bytes], first: int = 0, keep: Path | None = None) -> Report:
    """Put `num_cases` cases, from number `first` on, to a reader; the same numbers are the same cases.

    donors: whole files of other kinds; keep: folder for the files of cases that failed.
    """
    report, number = Report(), first
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        path = READERS[name].make(Path(folder))
        content = path.read_bytes()
        right = READERS[name].read(path)
        while number < first + num_cases:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(theirs, name, path, content, right, donors, range(number, first + num_cases))
            )
            process.start()
            theirs.close()
            number = _follow(ours, process, report, number)
    for failed in report.failures if keep is not None else ():
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name.replace('/', '_')}.{failed}").write_bytes(case(name, failed, content, donors))
    return report


def whole_files() -> list[bytes]:
    """One whole file of every reader, as donors."""
    contents = []
    for reader in READERS.values():
        with tempfile.TemporaryDirectory() as folder:
            contents.append(reader.make(Path(folder)).read_bytes())
    return contents


def _follow(ours: Connection, process: multiprocessing.Process, report: Report, number: int) -> int:
    """Take in what a process reports; returns the case to go on with after it ended, or was ended."""
    while True:
        try:
            if not ours.poll(WALL_SECONDS):
                process.kill()
                process.join()
                report.failures[number] = f"hangs: no answer in {WALL_SECONDS} s"
                return number + 1
            outcome, seconds = ours.recv()
        except EOFError:
            process.join()
            if process.exitcode == 0:
                return number
            report.failures[number] = f"crash: the process ended with {process.exitcode}"
            return number + 1
        report.slowest = max(report.slowest, seconds)
        if outcome == "refused":
            report.refused += 1
        elif outcome == "read":
            report.read += 1
        else:
            report.failures[number] = outcome
        number += 1
        if "MemoryError" in outcome:
            process.kill()  # what else it holds may be spoilt
            process.join()
            return number


def _work(
    theirs: Connection, name: str, path: Path, content: bytes, right: object, donors: list[bytes], numbers: range
) -> None:
    """In the forked process: read case after case and tell what came of it."""
    _limit_memory()
    hdf5_guard.CPU_SECONDS = 2  # the files here are small; some thousands of those that never end would take days
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    reader = READERS[name]
    for number in numbers:
        path.write_bytes(case(name, number, content, donors))
        start = time.process_time()
        try:
            found = reader.read(path)
            outcome = "read" if not reader.sealed or found == right else "silent: another result than of the whole file"
        except AsrKdError:
            outcome = "refused"
        except BaseException:
            outcome = traceback.format_exc()
        seconds = time.process_time() - start
        if seconds > CPU_SECONDS:
            outcome = f"slow: {seconds:.0f} s of CPU"
        theirs.send((outcome, seconds))


def _limit_memory() -> None:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):  # not Linux: there, memory is not limited
        pass
