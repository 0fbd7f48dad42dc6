"""Fetching a public corpus: what a broken connection left is continued, and nothing appears before it is whole."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from asr_kd.errors import AsrKdError

_CHUNK = 1 << 16
_PROGRESS_S = 10.0


def fetch(url: str, path: Path, log: Callable[[str], None]) -> None:
    """Fetch `url` into `path`, going on where an earlier attempt broke off, if the server can.

    Raises AsrKdError where the server cannot be reached or does not send the whole file.
    """
    partial = path.with_name(path.name + ".part")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        have = partial.stat().st_size if partial.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        log(f"fetching {url}" + (f" from byte {have}" if have else ""))
        with urllib.request.urlopen(request, timeout=60) as response:
            continued = have > 0 and getattr(response, "status", None) == 206
            announced = response.headers.get("Content-Length")
            received, told = 0, time.monotonic()
            with open(partial, "ab" if continued else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    received += len(chunk)
                    if time.monotonic() - told > _PROGRESS_S:
                        told = time.monotonic()
                        log(f"{path.name}: {_megabytes(received)} of {_megabytes(announced)} MB")
        if announced is not None and received < int(announced):
            raise AsrKdError(f"{url}: the connection ended after {received} of {announced} bytes, run again to go on")
        os.replace(partial, path)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch, or another file lies there now
            partial.unlink(missing_ok=True)
        raise AsrKdError(
            f"{url}: the server answered {error.code} {error.reason}, run again or use --corpus"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AsrKdError(f"{url}: could not be fetched ({error}), run again or give the corpus by --corpus") from error


def _megabytes(num_bytes: int | str | None) -> str:
    return "?" if num_bytes is None else f"{int(num_bytes) / 1e6:,.0f}"


def fetch_from_any(urls: Sequence[str], path: Path, log: Callable[[str], None]) -> None:
    """Fetch the first of `urls`, mirrors of one file, that can be had; raises AsrKdError as fetch does for the last."""
    for url in urls[:-1]:
        try:
            return fetch(url, path, log)
        except AsrKdError as error:
            log(f"{error}; trying another mirror")
    fetch(urls[-1], path, log)


def fetch_checked(urls: Sequence[str], path: Path, md5: str, log: Callable[[str], None]) -> None:
    """Fetch a file into `path`, which appears only if its MD5 sum is `md5`, the published one.

    What was fetched and is something else goes away. Raises AsrKdError then, and as fetch_from_any does.
    """
    unchecked = path.with_name(f"{path.name}.unchecked")
    if not unchecked.exists():
        fetch_from_any(urls, unchecked, log)
    digest = hashlib.md5(usedforsecurity=False)
    with open(unchecked, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != md5:
        unchecked.unlink()
        raise AsrKdError(
            f"{urls[0]}: what was fetched has the MD5 sum {digest.hexdigest()}, not {md5} as published; run again"
        )
    os.replace(unchecked, path)
