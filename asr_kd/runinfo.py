"""What a result must carry to be reproduced (version, commit, host, command), and what makes a step skippable."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from asr_kd import __version__
from asr_kd.errors import AsrKdError
from asr_kd.store.atomic import write_json
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
    """Whether `output` exists and was made from the same fingerprint.

    If not, its stamp is removed: what is about to be overwritten must not be taken for complete after a kill.
    """
    output = Path(output)
    try:
        current = output.exists() and json.loads(_stamp_path(output).read_text())["fingerprint"] == made_from
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    if not current:
        _stamp_path(output).unlink(missing_ok=True)
    return current


def make(output: str | Path, work: Callable[[], Any], *, command: str, world: World = ALONE, **made_from: Any) -> bool:
    """Let `work` write `output`, unless it is there already, complete and made from the same; returns whether it ran.

    made_from: everything that the output depends on (digests of inputs, configuration); see fingerprint. world: the
    processes that all call this, and that all `work` then.
    """
    digest = fingerprint(**made_from)
    world.require_same(digest, f"{output}: not all processes have the same inputs, options and version")
    if world.first(lambda: up_to_date(output, digest)):
        world.log(f"{output}: up to date")
        return False
    work()
    if world.is_first:
        write_json(_stamp_path(Path(output)), {"fingerprint": digest, **run_info(command)})
    return True
