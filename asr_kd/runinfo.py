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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from asr_kd import __version__
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_json
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
    """SHA-256 over the contents of `paths` in order; folders count with every file below them."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _stamp_path(output: Path) -> Path:
    if output.name in ("", ".."):
        raise AsrKdError(f"{output}: name the output itself, with a stamp of what it was made from beside it")
    return output.with_name(f".{output.name}.stamp.json")


def up_to_date(output: str | Path, made_from: str) -> bool:
    """Whether `output` exists and was made from the same fingerprint."""
    stamp = _stamp_path(Path(output))
    try:
        found = json.loads(stamp.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    return found is not None and found == made_from and Path(output).exists()


def _write_stamp(stamp: Path, digest: str | None, command: str | None = None) -> None:
    """digest: the fingerprint of a complete output; None for one that is ours, and made anew by whoever asks for it."""
    write_json(stamp, {"fingerprint": digest, **run_info(command)})


def require_ours(output: str | Path, mark: str | None = None) -> None:
    """Raise AsrKdError where `output` is there and nothing says that this program wrote it, so that it may replace it.

    Ours is what has a stamp beside it, what is empty, and a folder that has the file `mark`.
    """
    output = Path(output)
    stamp = _stamp_path(output)
    if not output.exists() or stamp.exists() or (mark and (output / mark).exists()):
        return
    if any(output.iterdir()) if output.is_dir() else output.stat().st_size:
        raise AsrKdError(
            f"{output}: exists, and is not replaced, since nothing says that it was written by asr_kd (there is no "
            f"{stamp.name} beside it); name another, or remove it"
        )


@contextlib.contextmanager
def _marked(output: Path, command: str) -> Iterator[None]:
    """Let the block write `output`, which has a stamp without a fingerprint from the start.

    So after a kill it is known as ours, and not taken for complete.
    """
    stamp = _stamp_path(output)
    if output.parent.is_dir():
        _write_stamp(stamp, None, command)
    try:
        yield
    finally:
        if not output.exists():
            stamp.unlink(missing_ok=True)
        elif not stamp.exists():
            _write_stamp(stamp, None, command)


@contextlib.contextmanager
def claimed(outputs: Mapping[Path, str | None], command: str) -> Iterator[None]:
    """Let the block write `outputs`, each of which has a stamp beside it afterwards, by which it is known as ours.

    For what `make` does not make. outputs: with the `mark` of each, if it is a folder that has one. Raises AsrKdError
    where require_ours does, before anything is done. A device or a pipe is left to whoever writes it.
    """
    plain: dict[Path, str | None] = {}
    for path, mark in outputs.items():
        if path.is_file() or path.is_dir() or not path.exists():
            plain[Path(os.path.abspath(path)) if path.name in ("", "..") else path] = mark
    for output, mark in plain.items():
        require_ours(output, mark)
    with contextlib.ExitStack() as stack:
        for output in plain:
            stack.enter_context(_marked(output, command))
        yield


def make(
    output: str | Path,
    work: Callable[[], Any],
    *,
    command: str,
    besides: Sequence[Path] = (),
    world: World = ALONE,
    **made_from: Any,
) -> bool:
    """Let `work` write `output`, unless it is there already, complete and made from the same; returns whether it ran.

    made_from: everything that the output depends on (digests of inputs, configuration); see fingerprint. besides: what
    `work` writes besides, without which the output is not complete. world: the processes that all call this, and that
    all `work` then. Raises AsrKdError for a file of someone else's; what is in a folder, or of HDF5, `work` looks at
    itself.
    """
    output, digest = Path(output), fingerprint(**made_from)
    for each in (output, *besides):
        if each.is_file() and not has_h5_signature(each):
            require_ours(each)
    world.require_same(digest, f"{output}: not all processes have the same inputs, options and version")
    if world.first(lambda: up_to_date(output, digest) and all(each.exists() for each in besides)):
        world.log(f"{output}: up to date")
        return False
    with contextlib.ExitStack() as stack:
        for each in (output, *besides) if world.is_first else ():
            stack.enter_context(_marked(each, command))
        work()
    if world.is_first:
        _write_stamp(_stamp_path(output), digest, command)
    return True
