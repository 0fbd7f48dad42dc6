"""Fetching a public corpus: what a broken connection left is continued, and nothing appears before it is whole."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from asr_kd.errors import AsrKdError

_CHUNK = 1 << 16


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
            received = 0
            with open(partial, "ab" if continued else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    received += len(chunk)
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
