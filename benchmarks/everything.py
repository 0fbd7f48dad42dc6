#!/usr/bin/env python3
"""All benchmarks of a machine by one command, into one markdown file: every command as typed, and what it printed.

--suite cpu runs those that need no corpus, and with --exp (an experiment of recipes/mini) search and growth. --suite
gpu is what a machine with a GPU has to run: the paper's net at several batches as a share of its matrix products, a
student on 700 million synthetic frames, a streamed set against a resident one, stacked nets, soft targets and losses of
many states, filterbanks against a core. The commands are those of everything.yaml.

A benchmark that fails, or takes longer than --minutes, is noted, and the others go on; the command then fails. The file
is written anew with every line that is printed, so that what was measured is kept. --only runs a part, --tiny all at
sizes that show only that they work; with --device cpu the suite of a GPU runs without one.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from asr_kd.cli_common import log, run_main
from asr_kd.errors import AsrKdError
from asr_kd.runinfo import run_info
from asr_kd.store.atomic import write_text

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Benchmark:
    """An entry of everything.yaml."""

    subject: str
    command: str
    tiny: str
    aim: str = ""

    def words(self, args: argparse.Namespace) -> list[str]:
        """What is typed after `python benchmarks/`; as in a shell, the last of two equal options counts."""
        words = shlex.split(self.command.format(exp=shlex.quote(str(args.exp))))
        words += shlex.split(self.tiny) if args.tiny else []
        return words + (["--device", args.device] if args.device and "--device" in words else [])


def chosen(args: argparse.Namespace) -> list[Benchmark]:
    """What to run; raises AsrKdError where --only names none of it."""
    entries = yaml.safe_load((HERE / "everything.yaml").read_text())[args.suite]
    benchmarks = [Benchmark(**entry) for entry in entries]
    if args.only:
        known, wanted = dict.fromkeys(each.subject for each in benchmarks), args.only.split(",")
        if unknown := sorted(set(wanted) - set(known)):
            raise AsrKdError(f"--only {unknown[0]}: choose of {', '.join(known)}")
        benchmarks = [each for each in benchmarks if each.subject in wanted]
    for each in [each for each in benchmarks if "{exp}" in each.command and not args.exp]:
        log(f"{each.subject}: left out; give --exp, which recipes/mini/run.sh makes")
        benchmarks.remove(each)
    return benchmarks


def run(words: list[str], tell: Callable[[str], None], minutes: float | None) -> tuple[str, bool]:
    """What a benchmark printed, and whether it succeeded; else the last lines of its complaint are behind it.

    tell: called with all that it has printed so far, for every line.
    """
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / words[0]), *words[1:]]
    environment, printed, code = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}, "", None
    how = {"stdout": subprocess.PIPE, "text": True, "env": environment, "start_new_session": True}
    with tempfile.TemporaryFile("w+") as complaints, subprocess.Popen(command, stderr=complaints, **how) as process:

        def end() -> None:  # and what it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        limit = threading.Timer(60 * minutes if minutes else threading.TIMEOUT_MAX, end)
        limit.daemon = True
        limit.start()
        try:
            for line in process.stdout:
                printed += line
                tell(printed.strip())
            code = process.wait()
        finally:
            was_ended = limit.finished.is_set()
            limit.cancel()
            end()
        complaints.seek(0)
        complaint = "\n".join(complaints.read().splitlines()[-5:])
    if code and was_ended:
        complaint = f"ended after {minutes:g} minutes"
    return f"{printed}\n{complaint if code else ''}".strip(), code == 0


def section(benchmark: Benchmark, words: list[str], printed: str, seconds: float) -> str:
    """Of the markdown file: tables of markdown as they are, anything else as text that keeps its columns."""
    shown = printed if "\n|---" in printed else f"```\n{printed}\n```"
    aim = f"Aim: {benchmark.aim}.\n\n" if benchmark.aim else ""
    return f"## {benchmark.subject}\n\n    python benchmarks/{shlex.join(words)}\n\n{aim}{shown}\n\n({seconds:.0f} s)\n"


def main(args: argparse.Namespace) -> None:
    """Run all, one after the other."""
    benchmarks, failed, info = chosen(args), [], run_info()
    parts = [f"# Benchmarks\n\nVersion {info['version']}, commit {info['git_commit']}, {info['date']}.\n"]
    for each in benchmarks:
        words, begin = each.words(args), time.monotonic()
        log(f"{each.subject}: {shlex.join(words)}")

        def told(printed: str, each: Benchmark = each, words: list[str] = words, begin: float = begin) -> str:
            return "\n".join([*parts, section(each, words, printed, time.monotonic() - begin)])

        printed, succeeded = run(words, lambda printed, told=told: write_text(args.out, told(printed)), args.minutes)
        write_text(args.out, told(printed))
        parts.append(section(each, words, printed, time.monotonic() - begin))
        if not succeeded:
            failed.append(words[0])
            log(f"failed: {printed.splitlines()[-1] if printed else 'without a word'}")
    log(f"{args.out}: {len(benchmarks) - len(failed)} of {len(benchmarks)} benchmarks")
    if failed:
        raise AsrKdError(f"{', '.join(failed)} failed; {args.out} has what they said")


def build_parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    parser.add_argument("--suite", choices=["cpu", "gpu"], default="cpu", help="(default cpu)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="in place of the suite's own, to try it with --tiny")
    parser.add_argument("--exp", type=Path, help="what recipes/mini/run.sh left, of stages 1 to 4 at least")
    parser.add_argument("--minutes", type=float, help="that a benchmark may take (default: as many as it does)")
    parser.add_argument("--only", help="subjects, comma-separated")
    parser.add_argument("--tiny", action="store_true", help="sizes of a test: numbers mean nothing")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main, build_parser()))
