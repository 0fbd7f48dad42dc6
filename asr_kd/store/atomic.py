"""Outputs are written beside their place and renamed into it when complete, so a kill leaves no half file."""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
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


def place_of_folder(path: str | Path) -> Path:
    """As place_of_file, for an output that is a folder; raises AsrKdError where there is something else."""
    path = Path(path)
    if path.name in ("", ".."):
        raise AsrKdError(f"{path}: is replaced as a whole, so that it must have a name of its own")
    place = path.resolve() if path.is_symlink() else path
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise AsrKdError(f"{path}: is not a folder, and is not written over; name a folder")
    return place


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The file is flushed to the disk before the rename: after a power cut there is the old file or the new one.
    A leftover of a killed process is overwritten, since the temporary name depends on `path` alone. A symbolic link
    stays, and what it leads to is written.

    Raises AsrKdError where the disk is full, the folder cannot be written, or `path` is there and no plain file.
    """
    path = place_of_file(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise AsrKdError(f"{path}: could not be written ({error.strerror or error})") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, atomically; NaN is refused (JSON has none)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def require_replaceable(path: str | Path, mark: str) -> None:
    """Raise AsrKdError where `path` is a folder of something else: not empty, but without the file `mark`.

    A folder is replaced as a whole, and what somebody else keeps there would be lost.
    """
    path = Path(path)
    if path.is_dir() and not (path / mark).exists() and any(path.iterdir()):
        raise AsrKdError(
            f"{path}: exists and holds something else than what would replace it (it has no {mark}); choose another "
            "folder, or remove it"
        )


@contextlib.contextmanager
def atomic_dir(path: str | Path, mark: str | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` that replaces `path` as a whole on success.

    mark: a file that every output of this kind has, in subfolders perhaps. Raises AsrKdError where the folder cannot be
    written, and where `path` is there and no folder, or one that require_replaceable refuses.
    """
    path = place_of_folder(path)
    if mark is not None:
        require_replaceable(path, mark)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise AsrKdError(f"{path}: could not be written ({error.strerror or error})") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
