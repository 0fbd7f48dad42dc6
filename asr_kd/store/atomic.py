"""Outputs are written beside their place and renamed into it when complete, so a kill leaves no half file."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from asr_kd.errors import AsrKdError
from asr_kd.store.lock import lock_of
from asr_kd.store.places import has_h5_signature, place_of_file, place_of_folder

# What a folder was made from (asr_kd/runinfo.py), and the end of the name of the same beside a file.
STAMP = ".stamp.json"


def files_below(folder: Path) -> Iterator[Path]:
    """Everything in `folder`, however deep, but folders and stamps."""
    return (each for each in folder.rglob("*") if not (each.is_dir() or each.name.endswith(STAMP)))


@contextlib.contextmanager
def atomic_path(path: str | Path, *, is_h5: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The file is flushed to the disk before the rename: after a power cut there is the old file or the new one.
    A leftover of a killed process is overwritten, since the temporary name depends on `path` alone. A symbolic link
    stays, and what it leads to is written. is_h5: whether HDF5 is written; only that replaces such a file, which may
    hold the features or the soft targets of days.

    Raises AsrKdError where the disk is full, the folder cannot be written, `path` is there and no plain file, or HDF5
    and to be something else, or another process is writing it.
    """
    path = place_of_file(path)
    if not is_h5 and has_h5_signature(path):
        raise AsrKdError(f"{path}: is an HDF5 file, and what would replace it is none; name another file")
    temporary = path.with_name(f".{path.name}.partial")
    with lock_of(temporary, path):
        try:
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


def has_mark(folder: Path, mark: str) -> bool:
    """Whether `folder` has the file `mark`, which all outputs of one kind have; JSON must be what we write there.

    That is a record that names one of our formats, or a report's list of systems.
    """
    if not mark.endswith(".json"):
        return (folder / mark).is_file()
    try:
        record = json.loads((folder / mark).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and (str(record.get("format")).startswith("asr_kd") or "systems" in record)


def require_replaceable(path: str | Path, mark: str) -> None:
    """Raise AsrKdError where `path` is a folder of something else: not empty, but without the `mark` (see has_mark).

    A folder is replaced as a whole, and what somebody else keeps there would be lost.
    """
    path = Path(path)
    if path.is_dir() and not has_mark(path, mark) and any(each.name != STAMP for each in path.iterdir()):
        raise AsrKdError(
            f"{path}: exists and holds something else than what would replace it (it has no {mark} of asr_kd); choose "
            "another folder, or remove it"
        )


@contextlib.contextmanager
def atomic_dir(path: str | Path, mark: str | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` that replaces `path` as a whole on success.

    mark: a file that every output of this kind has, in subfolders perhaps. Raises AsrKdError where the folder cannot be
    written, another process is writing it, or `path` is there and no folder, or one that require_replaceable refuses.
    """
    path = place_of_folder(path)
    if mark is not None:
        require_replaceable(path, mark)
    temporary = path.with_name(f".{path.name}.partial")
    with lock_of(temporary, path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if (path / STAMP).is_file():  # so that a kill before the new one leaves it known as ours
                shutil.copyfile(path / STAMP, temporary / STAMP)
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise AsrKdError(f"{path}: could not be written ({error.strerror or error})") from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
