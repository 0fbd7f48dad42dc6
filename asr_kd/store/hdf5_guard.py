"""libhdf5 crashes on some damaged files and never returns from others; here it tries each file in a process apart."""

import contextlib
import faulthandler
import os
import signal
import sys
import warnings
from pathlib import Path

import h5py

from asr_kd.errors import AsrKdError

WHOLE_BYTES = 1 << 22  # data sets up to this size are read as a whole; of larger ones, where their chunks lie
CPU_SECONDS = 30
WALL_SECONDS = 600  # in case the disk is slow, or a lock was held when the process was forked
MEMORY_BYTES = 2 << 30

_TOO_LARGE = 3
_readable: set[tuple[int, ...]] = set()


def require_readable(path: Path) -> None:
    """Raise AsrKdError where libhdf5 crashes on a file, does not come to an end with it, or floods the memory.

    Tried once for each file that does not change, on Linux; a few milliseconds. What h5py itself refuses passes: it is
    refused again, with its reason, by whoever reads it.
    """
    if sys.platform != "linux":
        return
    identity = identity_of(path)
    if identity in _readable:
        return
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; the child calls libhdf5 and nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(_try(path))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == _TOO_LARGE:
        raise AsrKdError(f"{path}: is damaged: to read it, HDF5 would take more than {MEMORY_BYTES >> 30} GiB")
    if status in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
        raise AsrKdError(f"{path}: is damaged: HDF5 does not come to an end with it")
    if status:
        raise AsrKdError(f"{path}: is damaged: HDF5 crashes on it (exit status {status})")
    _readable.add(identity)


def written_here(path: Path) -> None:
    """Tell that this process wrote a file: it need not be tried."""
    _readable.add(identity_of(path))


def identity_of(file: Path | int) -> tuple[int, ...]:
    """What changes when a file is written to, or another takes its place; an open one is named by its number."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _try(path: Path) -> int:
    """In the forked process: its exit status."""
    try:
        faulthandler.disable()
        _limit()
        with h5py.File(path, "r") as file:
            file.visititems(_touch)
            _touch("/", file)
    except MemoryError:
        return _TOO_LARGE
    except BaseException:
        return 0
    return 0


def _touch(name: str, member: h5py.Group | h5py.Dataset) -> None:
    """Read what can be read in little time, so that libhdf5 goes through all of its tables."""
    dict(member.attrs)
    if not isinstance(member, h5py.Dataset) or member.is_virtual or member.external:
        return
    if member.nbytes <= WHOLE_BYTES:
        member[()]
    elif member.chunks:
        member.id.get_num_chunks()
    with contextlib.suppress(ValueError):
        member.id.get_offset()


def _limit() -> None:
    import resource

    for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(WALL_SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    for number, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS + 5),
        (resource.RLIMIT_AS, memory, memory),
    ):
        most = resource.getrlimit(number)[1]  # of `ulimit` perhaps: what is above it is refused
        hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(number, (min(soft, hard), hard))
