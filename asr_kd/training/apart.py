"""Several nets at a time on a CPU, each by a process of its own with its share of the threads.

A small net keeps a core or two busy, however many there are: between two products its threads wait for each other
longer than they work. The processes are forked when everything is loaded, and so share frames, labels and targets.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from asr_kd.corpus.processes import end_with_parent, run_forked
from asr_kd.training.loop import train_net
from asr_kd.training.run import Run


@dataclass(frozen=True)
class Apart:
    """At most `nj` nets at a time, by processes that share so many threads."""

    nj: int
    num_threads: int


@contextlib.contextmanager
def nets_apart(nj: int, device: torch.device) -> Iterator[Apart | None]:
    """How nets may be trained that are loaded meanwhile; None where one is trained after the other.

    That is so on a GPU, which one net keeps busy, and where processes cannot be forked. Else this process has one
    thread until the end: those of OpenMP do not live on in a forked one, which would wait for them for ever.
    """
    num_threads = torch.get_num_threads()
    if nj == 1 or device.type != "cpu" or sys.platform != "linux":
        yield None
        return
    torch.set_num_threads(1)
    try:
        yield Apart(nj, num_threads)
    finally:
        torch.set_num_threads(num_threads)


def train_apart(runs: Sequence[Run], apart: Apart) -> None:
    """Train every run, as train_net does, with so many threads as its share is; raises AsrKdError where one does.

    The others are ended then, and go on from their last checkpoint when the same is asked for again.
    """
    num_threads = max(1, apart.num_threads // min(apart.nj, len(runs)))
    width = max(len(run.out.name) for run in runs)

    def train(run: Run) -> None:
        end_with_parent()
        torch.set_num_threads(num_threads)
        train_net(replace(run, world=replace(run.world, name=f"{run.out.name:{width}}  ")))

    run_forked(train, {f"{run.out}: its process": (run,) for run in runs}, apart.nj)
