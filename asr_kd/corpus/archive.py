"""Corpora that are one archive: fetched, unpacked where we say, and kept only if they are what they should be."""

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from asr_kd.corpus.fetch import fetch
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import atomic_dir

_LARGEST_RECORDING = 10_000_000  # bytes; what an archive may make us write, for each of its files


def fetch_archive(
    target: Path,
    url: str,
    place: Callable[[PurePosixPath], PurePosixPath | None],
    check: Callable[[Path], object],
    log: Callable[[str], None],
) -> Path:
    """The folder `target`, unpacked from the .tar.gz at `url` unless it is there already.

    A broken download is continued where the server can. place: where a file of the archive goes in the folder, None
    for nowhere; paths and links of the archive itself have no say in that. check: raises AsrKdError for contents that
    must not be kept.

    Raises AsrKdError where the server cannot be reached, the archive is broken, or `check` does.
    """
    if target.is_dir():
        return target
    archive = target.with_name(f"{target.name}.tar.gz")
    if not archive.exists():
        fetch(url, archive, log)
    try:
        with atomic_dir(target) as work:
            _unpack(archive, work, place)
            check(work)
    except (tarfile.TarError, EOFError, OSError) as error:
        archive.unlink(missing_ok=True)
        raise AsrKdError(f"{archive}: is no complete archive ({error}), run again to fetch it anew") from error
    except AsrKdError as error:
        archive.unlink(missing_ok=True)
        raise AsrKdError(f"{url}: {error}") from error
    archive.unlink()
    return target


def _unpack(archive: Path, folder: Path, place: Callable[[PurePosixPath], PurePosixPath | None]) -> None:
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            path = place(PurePosixPath(member.name)) if member.isfile() else None
            if path is None:
                continue
            if member.size > _LARGEST_RECORDING:
                raise AsrKdError(f"{archive}: {member.name} has {member.size} bytes, too many for a recording")
            content = tar.extractfile(member)
            if content is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content.read())
