"""What a result must carry to be reproduced (version, commit, host, command), and what makes a step skippable."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from asr_kd import __version__
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import STAMP, files_below, has_mark, write_json
from asr_kd.store.places import has_h5_signature
from asr_kd.world import ALONE, World


def run_info(command: str | None = None, device: str | None = None) -> dict[str, Any]:
    """Version, git commit (with `-dirty`), host, thread count, library versions and time of this run.

    torch is not imported for it, which takes seconds: threads are those of a torch that the work has used.
    """
    torch = sys.modules.get("torch")
    return {
        "version": __version__,
        "git_commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__ if torch else importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
        "num_threads": torch.get_num_threads() if torch else None,
        "num_cores": os.cpu_count(),
        "device": device,
        "command": command,
    }


@cache
def git_commit() -> str | None:
    """The commit of the checkout that the package runs from, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def fingerprint(**parts: Any) -> str:
    """SHA-256 over what an output depends on: digests of its inputs, the configuration, and this program's version."""
    return hashlib.sha256(
        json.dumps({**parts, "version": __version__}, sort_keys=True, default=_plain).encode()
    ).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return str(value)


def file_digest(paths: Iterable[str | Path]) -> str:
    """SHA-256 over the contents of `paths` in order; folders count with every file below them but stamps."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(p for p in files_below(path) if p.is_file()) if path.is_dir() else [path]:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _stamp_beside(output: Path) -> Path:
    """Beside what a symbolic link leads to."""
    place = output.resolve()
    return place.parent / f".{place.name}{STAMP}"


def _stamp_path(output: Path) -> Path:
    """Of a folder, inside: it goes where the folder goes, and with it. Of a file, or what is not there yet, beside."""
    return output / STAMP if output.is_dir() else _stamp_beside(output)


def _read_stamp(output: Path) -> dict[str, Any] | None:
    """What the stamp of an output says, {} if it cannot be read, None if there is none.

    A folder that a run was killed over before it could write inside, or of version 0.15, has it beside.
    """
    for place in dict.fromkeys([_stamp_path(output), _stamp_beside(output)]):
        try:
            found = json.loads(place.read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
    return None


def _write_stamp(output: Path, digest: str | None, command: str, *, is_whole: bool = True) -> None:
    """digest: the fingerprint of what is up to date; None for what is ours, and made anew by whoever asks for it.

    A folder may be given to others, whom the names of this machine and of what lies on it do not concern.
    """
    size, info = output.stat().st_size if is_whole and output.is_file() else None, run_info(command)
    if output.is_dir():
        info = {key: info[key] for key in ("version", "git_commit", "date")}
    write_json(_stamp_path(output), {"fingerprint": digest, "size": size, **info})
    if is_whole and output.is_dir():
        _stamp_beside(output).unlink(missing_ok=True)


def _is_changed(output: Path, stamp: dict[str, Any]) -> bool:
    """Whether a file is not the one that the stamp was written for; a stamp of an unfinished one does not tell."""
    return stamp.get("size") is not None and not (output.is_file() and output.stat().st_size == stamp["size"])


def _up_to_date(output: Path, made_from: str) -> bool:
    """Whether `output` exists as it was made from the same fingerprint."""
    stamp = _read_stamp(output)
    return bool(stamp) and output.exists() and stamp.get("fingerprint") == made_from and not _is_changed(output, stamp)


def require_ours(output: str | Path, mark: str | None = None) -> None:
    """Raise AsrKdError where `output` is there and nothing says that this program wrote it, so that it may replace it.

    Ours is a folder with a stamp in it and a file with one beside it, of the size that the stamp names; an empty file,
    and a folder without one; and a folder that has_mark knows by its `mark`.
    """
    output = Path(output)
    if not output.exists() or not (any(files_below(output)) if output.is_dir() else output.stat().st_size):
        return
    stamp, name = _read_stamp(output), _stamp_path(output).name
    where = f"{name} in it" if output.is_dir() else f"{name} beside it"
    if stamp is None and not (mark and has_mark(output, mark)):
        raise AsrKdError(
            f"{output}: exists, and is not replaced, since nothing says that it was written by asr_kd (there is no "
            f"{where}, which versions before 0.15 did not always leave); name another, or remove it"
        )
    if stamp and _is_changed(output, stamp):
        raise AsrKdError(
            f"{output}: exists, and is not replaced, since it was changed after asr_kd wrote it (its size is not that "
            f"in {name}); name another, or remove it"
        )


@contextlib.contextmanager
def _marked(output: Path, command: str) -> Iterator[None]:
    """Let the block write `output`, which has a stamp without a fingerprint from the start.

    So after a kill it is known as ours, and not taken for complete. After an error there is no new stamp, unless what
    the block has begun to write is there. Where no stamp can be written, the block tells what it cannot write itself.
    """
    existed, stamp = output.exists(), _stamp_path(output)
    if existed and not (output.is_file() or output.is_dir()):  # a device or a pipe
        yield
        return
    was_stamped, new = stamp.exists(), [each for each in output.parents if not each.exists()]
    try:
        with contextlib.suppress(AsrKdError, OSError):
            output.parent.mkdir(parents=True, exist_ok=True)
            _write_stamp(output, None, command, is_whole=False)
        yield
    except BaseException:
        if not was_stamped and (existed or not output.exists()):
            stamp.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for folder in new:
                    folder.rmdir()
        raise


@contextlib.contextmanager
def claimed(outputs: Iterable[Path], command: str, mark: str | None = None) -> Iterator[None]:
    """Let the block write `outputs`, each of which has a stamp afterwards, by which it is known as ours.

    For what `make` does not make. Raises AsrKdError where require_ours does, before anything is done.
    """
    outputs = list(outputs)
    for output in outputs:
        if output.is_file() or output.is_dir():
            require_ours(output, mark)
    with contextlib.ExitStack() as stack:
        for output in outputs:
            stack.enter_context(_marked(output, command))
        yield
    for output in outputs:
        if output.is_file() or output.is_dir():
            with contextlib.suppress(AsrKdError):
                _write_stamp(output, None, command)


def make(
    output: str | Path,
    work: Callable[[], Any],
    *,
    command: str,
    besides: Sequence[Path] = (),
    holds: Sequence[Path] = (),
    world: World = ALONE,
    **made_from: Any,
) -> bool:
    """Let `work` write `output`, unless it is there already, complete and made from the same; returns whether it ran.

    made_from: everything that the output depends on (digests of inputs, configuration); see fingerprint. besides: what
    `work` writes besides; holds: files of an output that is a folder; without either it is not complete. world: the
    processes that all call this, and that all `work` then. Raises AsrKdError for a file of someone else's; what is in a
    folder, or of HDF5, `work` looks at itself.
    """
    outputs, digest = [Path(output), *besides], fingerprint(**made_from)
    if unnamed := [each for each in outputs if each.name in ("", "..")]:
        raise AsrKdError(f"{unnamed[0]}: name the output itself, not the folder that it is to be in")
    world.require_same(digest, f"{output}: not all processes have the same inputs, options and version")

    def is_complete() -> bool:
        return all(_up_to_date(each, digest) for each in outputs) and all(each.exists() for each in holds)

    if world.first(is_complete):
        world.log(f"{output}: up to date")
        return False
    for each in outputs:
        if each.is_file() and not has_h5_signature(each):
            require_ours(each)
    if (
        world.is_first
        and outputs[0].exists()
        and (_read_stamp(outputs[0]) or {}).get("fingerprint") not in (None, digest)
    ):
        world.log(f"{output}: was made from other inputs or options, or by another version, and is made again")
    with contextlib.ExitStack() as stack:
        for each in outputs if world.is_first else ():
            stack.enter_context(_marked(each, command))
        work()
    for each in outputs if world.is_first else ():
        _write_stamp(each, digest, command)
    return True
