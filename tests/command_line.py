"""Commands as a user types them, and the one sentence that they fail with."""

import pytest

from asr_kd.cli import main


def run(*argv: object) -> int:
    """The exit status of `asr-kd ARGV`."""
    return main([str(arg) for arg in argv])


def error_of(capsys: pytest.CaptureFixture, *argv: object) -> str:
    """The line of a command that fails."""
    capsys.readouterr()
    assert run(*argv) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line
