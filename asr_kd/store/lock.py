"""One process at a time writes an output; a second one is told so instead of tearing the work of the first."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.store.places import place_of_file

try:
    import fcntl
except ImportError:  # Windows has other locks; there, nobody is told
    fcntl = None


@contextlib.contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Hold the lock of an output while the block runs; it ends with the process, however that ends.

    Raises AsrKdError if another process holds it, the folder cannot be written, or `path` is there and no plain file.
    """
    path = place_of_file(path)
    with lock_of(path, path):
        yield


@contextlib.contextmanager
def lock_of(path: Path, output: Path) -> Iterator[None]:
    """Hold the lock of one of the files that an `output` is made by, whose folder is made where it is missing.

    Raises AsrKdError, which names the output, if another process holds it or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AsrKdError(f"{output}: could not be written ({error.strerror})") from error
    if fcntl is None:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    descriptor = None
    while descriptor is None:
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise AsrKdError(f"{output}: could not be written ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise AsrKdError(f"{output}: another run is writing it; wait for it to end, or stop it") from error
        except OSError:
            pass  # a file system without locks
        # A holder removes the lock when it is done; what we hold may then be a file that nobody finds any more.
        if os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            descriptor = None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
