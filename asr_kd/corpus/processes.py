"""Tasks that each need a process of their own, and processes that take many tasks and may die at one."""

import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

from asr_kd.cli_common import sentence_of
from asr_kd.errors import AsrKdError


def run_apart(function: Callable, tasks: Sequence[tuple], nj: int, preload: Sequence[str], progress: Callable) -> None:
    """Call `function(*task)` for every task, each in a fresh process, at most `nj` at a time.

    Unlike a pool, no process does two tasks, so that state in a C library cannot pass from one to the next, and one
    that dies is noticed. The processes are forked from a server that has imported the modules of `preload` and done
    nothing else. `progress(num_done)` is called after each task.

    Raises AsrKdError: the function's own, or one that tells how a process died. The others are ended then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    _run(context, function, [(f"the process for {task}", task) for task in tasks], nj, progress)


def run_forked(function: Callable, tasks: Mapping[str, tuple], nj: int) -> None:
    """As run_apart, in processes forked from this one: with all that it holds, and none of its threads.

    tasks: by what they are called where one's process dies.
    """
    _run(multiprocessing.get_context("fork"), function, list(tasks.items()), nj, lambda num_done: None)


def _run(
    context: BaseContext, function: Callable, tasks: Sequence[tuple[str, tuple]], nj: int, progress: Callable
) -> None:
    waiting, running, num_done = list(reversed(tasks)), {}, 0
    try:
        while waiting or running:
            while waiting and len(running) < max(1, nj):
                name, task = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_call, args=(sender, function, task), daemon=True)
                process.start()
                sender.close()
                running[process.sentinel] = (process, receiver, name)
            for sentinel in wait(list(running)):
                process, receiver, name = running.pop(sentinel)
                process.join()
                _raise_failure(process.exitcode, receiver, name)
                num_done += 1
                progress(num_done)
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()


def end_with_parent() -> None:
    """Let this process end when its parent does, however that ends: the `initializer` of a pool of processes.

    The workers of a pool wait for work on a pipe that they hold open for each other, so those of a parent that is
    killed would wait for ever.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _call(sender: Connection, function: Callable, task: tuple) -> None:
    try:
        function(*task)
    except KeyboardInterrupt:  # the parent has it too
        sys.exit(130)
    except Exception as error:
        sentence = sentence_of(error)
        sender.send(sentence or traceback.format_exc())
        if sentence is None:
            raise


def _raise_failure(exit_code: int | None, receiver: Connection, name: str) -> None:
    message = None
    if receiver.poll():
        try:
            message = receiver.recv()
        except EOFError:  # the other end is closed and nothing was sent: no error
            message = None
    receiver.close()
    if message is not None:
        raise AsrKdError(message)
    if exit_code != 0:
        how = f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with the status {exit_code}"
        raise AsrKdError(f"{name} {how}")


# Results of each process that may wait for one of an earlier task.
_MAX_WAITING = 8


class WorkerDied(AsrKdError):
    """A worker ended while it was at a task, as on a crash in a C library."""


class Workers:
    """Processes that do one task after the other with what they have made once; use it in a `with`.

    make(*args) is called in each process, and what it returns is called with each task. With nj of 1 there is no other
    process. They are spawned, not forked: neither threads nor open files of this process go along.
    """

    def __init__(self, nj: int, make: Callable[..., Callable[[Any], Any]], *args: Any) -> None:
        self._nj, self._make, self._args = nj, make, args
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[multiprocessing.Process, Connection]] = []
        self._here: Callable[[Any], Any] | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._workers:
            connection.close()  # at which an idle worker ends
            process.terminate()
            process.join()
        self._workers.clear()

    def results(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(task, result) in the order of `tasks`, each as soon as all before it are done.

        The result is the AsrKdError where the call raised one, and a WorkerDied where its process ended; another one
        takes its place. Any other exception in a worker is raised here as an AsrKdError that holds its traceback.
        """
        if self._nj <= 1:
            self._here = self._here or self._make(*self._args)
            for task in tasks:
                try:
                    yield task, self._here(task)
                except AsrKdError as error:
                    yield task, error
            return
        while len(self._workers) < self._nj:
            self._workers.append(self._start())
        queue, idle = enumerate(tasks), list(range(self._nj))
        at_work: dict[int, tuple[int, Any]] = {}
        done: dict[int, tuple[Any, Any]] = {}
        next_one = 0
        while True:
            # No further ahead of the slowest than this, so that what is done and waits for it is not much.
            while idle and len(done) < _MAX_WAITING * self._nj and (numbered := next(queue, None)) is not None:
                at_work[idle[-1]] = numbered
                self._send(idle.pop(), numbered[1])
            if not at_work:
                return
            ready = wait([self._workers[worker][1] for worker in at_work])
            for worker in [w for w in at_work if self._workers[w][1] in ready]:
                number, task = at_work.pop(worker)
                done[number] = task, self._receive(worker)
                idle.append(worker)
            while next_one in done:
                yield done.pop(next_one)
                next_one += 1

    def _start(self) -> tuple[multiprocessing.Process, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(there, self._make, self._args), daemon=True)
        process.start()
        there.close()
        return process, here

    def _send(self, number: int, task: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # a worker that is gone is noticed when its answer is waited for
            self._workers[number][1].send(task)

    def _receive(self, number: int) -> Any:
        process, connection = self._workers[number]
        try:
            failure, result = connection.recv()
        except (EOFError, ConnectionResetError):
            connection.close()
            process.join()
            self._workers[number] = self._start()
            return WorkerDied(f"its process ended with the status {process.exitcode}")
        if failure is not None and not isinstance(failure, AsrKdError):
            raise AsrKdError(f"a worker failed:\n{failure}")
        return result if failure is None else failure


def _work(connection: Connection, make: Callable[..., Callable[[Any], Any]], args: tuple) -> None:
    """A worker: answers tasks until the other end is closed, or its process is gone."""
    try:
        function = make(*args)
        while True:
            task = connection.recv()
            try:
                connection.send((None, function(task)))
            except AsrKdError as error:
                connection.send((error, None))
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        connection.send((traceback.format_exc(), None))
