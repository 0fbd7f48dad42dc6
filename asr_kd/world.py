"""Several processes as one run: which of them this one is, what it takes, and how it waits for the others.

torchrun starts them, tells each its place in the environment, and starts all again when one dies.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from asr_kd.cli_common import log
from asr_kd.errors import AsrKdError
from asr_kd.store.lock import only_writer

T = TypeVar("T")

# A process that died is noticed at once, by torchrun or a closed connection; one that is slow is waited for.
TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """`size` processes, of which this is number `rank`; on its machine it is number `local_rank`. Alone by default.

    name: what its lines of progress begin with, where others write in between.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    name: str = ""

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "World":
        """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; alone where it says nothing.

        Raises AsrKdError for what it would not say.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        given = {name: environment[name] for name in names if name in environment}
        if environment.get("WORLD_SIZE", "1") == "1":
            return cls()
        try:
            world = cls(*(int(given[name]) for name in names))
        except (KeyError, ValueError):
            world = cls(-1)
        if not 0 <= world.local_rank <= world.rank < world.size:
            said = " ".join(f"{name}={value}" for name, value in given.items())
            raise AsrKdError(
                f"the environment has {said}, which is not what torchrun sets ({', '.join(names)}); "
                "start several processes by torchrun, or unset WORLD_SIZE for one"
            )
        return world

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what all have in common."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`, whatever has a length and slices: the parts are neighbours, in rank order.

        Their lengths differ by 1 at most; some are empty where there are fewer items than processes.
        """
        num = len(items)
        return items[num * self.rank // self.size : num * (self.rank + 1) // self.size]

    def log(self, message: str) -> None:
        """One line of progress, of the first process alone: the others have the same to tell."""
        if self.is_first:
            log(f"{self.name}{message}")

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Let the processes reach each other while the block runs, over gloo, and NCCL between GPUs.

        Raises AsrKdError where they cannot. Nothing happens where there is only one.
        """
        if self.size == 1:
            yield
            return
        # The first of these, which optimisers import too, keeps the group of that moment as a default argument. Were
        # there one already, it would outlive its end, and a thread of it that still frees a tensor while Python exits
        # aborts the process.
        import torch.distributed.nn.functional  # noqa: F401
        from torch import cuda, distributed

        backend = "cpu:gloo,cuda:nccl" if cuda.is_available() and distributed.is_nccl_available() else "cpu:gloo"
        try:
            store, rank, size = next(distributed.rendezvous("env://", timeout=TIMEOUT))
            # torchrun keeps its store when it starts all again: under one name, a rank could find the addresses of
            # those that are gone.
            store = distributed.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            distributed.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank, world_size=size)
        except (RuntimeError, ValueError) as error:  # DistError is a RuntimeError
            raise AsrKdError(
                f"rank {self.rank} of {self.size} cannot reach the others ({_first_line(error)}); start them by "
                "torchrun, and where a machine has several networks, name the interface of the one between them in "
                "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
            ) from error
        yield
        distributed.destroy_process_group()  # not after an error: it would wait for others that are gone

    @contextlib.contextmanager
    def peers(self) -> Iterator[None]:
        """Turn what torch raises when another process is gone into an AsrKdError."""
        try:
            yield
        except RuntimeError as error:
            raise AsrKdError(
                f"rank {self.rank} of {self.size} lost another one, which has its own message ({_first_line(error)})"
            ) from error

    def first(self, function: Callable[[], T]) -> T:
        """What `function` returns in the first process, which alone calls it, in all of them."""
        found = [function() if self.is_first else None]
        if self.size > 1:
            from torch import distributed

            with self.peers():
                distributed.broadcast_object_list(found)
        return found[0]

    def all(self, value: T) -> list[T]:
        """The `value` of every process, by rank, in all of them."""
        values = [value] * self.size
        if self.size > 1:
            from torch import distributed

            with self.peers():
                distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.all(None)

    def require_same(self, value: Any, message: str) -> None:
        """Raise AsrKdError in all processes unless all have the same `value`."""
        if len(set(self.all(value))) > 1:
            raise AsrKdError(message)

    @contextlib.contextmanager
    def only_writer(self, path: str | Path) -> Iterator[None]:
        """Hold the lock of an output in the first process, for all; see asr_kd.store.lock.only_writer."""
        with only_writer(path) if self.is_first else contextlib.nullcontext():
            self.wait()
            yield


ALONE = World()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
