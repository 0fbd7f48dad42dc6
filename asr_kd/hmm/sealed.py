"""Folders that are complete or absent, and whose parts belong together: a JSON record names format and digest.

Models and graphs are kept so. The digest is computed by what was read, not over the files, so that a file changed by
hand is found but a renamed folder is not.
"""

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_dir
from asr_kd.store.parsing import parse_json


@contextlib.contextmanager
def sealed_folder(
    path: str | Path, record_name: str, file_format: str, version: int, record: dict[str, Any]
) -> Iterator[Path]:
    """Yield a folder to write files into that becomes `path` as a whole; `record`, which has a digest, goes beside.

    Raises AsrKdError as atomic_dir does, and for a folder with something in it but no record.
    """
    with atomic_dir(path, record_name) as folder:
        yield folder
        record = {"format": file_format, "version": version, **record}
        (folder / record_name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def format_of(path: str | Path, record_name: str) -> str | None:
    """The format that a sealed folder says it has; None where it has no record, or one that says nothing."""
    try:
        return parse_json((Path(path) / record_name).read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        return None


def read_record(
    path: str | Path, record_name: str, file_format: str, versions: Collection[int], what: str
) -> dict[str, Any]:
    """The record of a sealed folder; raises AsrKdError where there is none of this format and one of these versions."""
    file = Path(path) / record_name
    try:
        record = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AsrKdError(f"{path}: no {what} here ({record_name} is missing)") from error
    except (OSError, ValueError) as error:
        raise AsrKdError(f"{path}: not a readable {what} folder ({error})") from error
    if not isinstance(record, dict) or record.get("format") != file_format or record.get("version") not in versions:
        known = " or ".join(map(str, versions))
        found = f" (but {record.get('format')})" if isinstance(record, dict) else ""
        raise AsrKdError(f"{file}: is not of format {file_format} version {known}{found}; make it again")
    return record


def require_seal(path: str | Path, record_name: str, record: dict[str, Any], digest: str) -> None:
    """Raise AsrKdError unless `digest`, of what was read from `path`, is that of its record."""
    if record.get("digest") != digest:
        raise AsrKdError(f"{path}: its files do not match the digest in {record_name}; they were changed or mixed")
