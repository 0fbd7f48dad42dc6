"""Where an output goes, and what is never put into the place of something else."""

import stat
from pathlib import Path

from asr_kd.errors import AsrKdError


def place_of_file(path: str | Path) -> Path:
    """Where a file that is named `path` is written: where a symbolic link leads, else `path` itself.

    Raises AsrKdError where there is something that is no plain file (a folder, a device, a pipe), or a link to itself:
    a rename would put a file into its place.
    """
    path = Path(path)
    try:
        place = path.resolve(strict=False) if path.is_symlink() else path
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "not a plain file"
            raise AsrKdError(f"{path}: is {what}, and is not written over; name a file")
    except FileNotFoundError:
        return place
    except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError before Python 3.13
        raise AsrKdError(f"{path}: could not be written ({getattr(error, 'strerror', None) or error})") from error
    return place


def has_h5_signature(path: Path) -> bool:
    """Whether there is a file that begins as HDF5 does; raises AsrKdError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_H5_SIGNATURE)) == _H5_SIGNATURE
    except FileNotFoundError:
        return False
    except OSError as error:
        raise AsrKdError(f"{path}: cannot be read, and is not written over ({error.strerror})") from error


_H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def place_of_folder(path: str | Path) -> Path:
    """As place_of_file, for an output that is a folder; raises AsrKdError where there is something else."""
    path = Path(path)
    if path.name in ("", ".."):
        raise AsrKdError(f"{path}: is replaced as a whole, so that it must have a name of its own")
    place = path.resolve() if path.is_symlink() else path
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise AsrKdError(f"{path}: is not a folder, and is not written over; name a folder")
    return place
