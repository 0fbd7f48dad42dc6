"""Tasks that each need a process of their own."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

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
    waiting, running, num_done = list(reversed(tasks)), {}, 0
    try:
        while waiting or running:
            while waiting and len(running) < max(1, nj):
                task = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_call, args=(sender, function, task), daemon=True)
                process.start()
                sender.close()
                running[process.sentinel] = (process, receiver, task)
            for sentinel in wait(list(running)):
                process, receiver, task = running.pop(sentinel)
                process.join()
                _raise_failure(process.exitcode, receiver, task)
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
    except AsrKdError as error:
        sender.send(str(error))
    except BaseException:
        sender.send(traceback.format_exc())
        raise


def _raise_failure(exit_code: int | None, receiver: Connection, task: tuple) -> None:
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
        raise AsrKdError(f"the process for {task} ended with the status {exit_code}")
