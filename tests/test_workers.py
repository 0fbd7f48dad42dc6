"""Processes that do many tasks, and may die at one."""

import os

import pytest

from asr_kd.corpus.processes import WorkerDied, Workers
from asr_kd.errors import AsrKdError


class Answer:
    """What a worker makes once; a task is a number."""

    def __init__(self, shift: int) -> None:
        self._shift, self._pid = shift, os.getpid()

    def __call__(self, task: int) -> tuple[int, int]:
        if task == 13:
            os._exit(3)
        if task < 0:
            raise AsrKdError(f"task {task}")
        return task + self._shift, self._pid + 10 // (task + 1)


def test_a_worker_that_dies_costs_its_own_task_only():
    with Workers(2, Answer, 100) as workers:
        tasks = [1, 2, 13, 5, -1, 6, 7]
        results = list(workers.results(tasks))
        assert [task for task, _ in results] == tasks
        answers = [result for _, result in results]
        assert isinstance(answers[2], WorkerDied)
        assert str(answers[2]) == "its process ended with the status 3"
        assert type(answers[4]) is AsrKdError
        assert str(answers[4]) == "task -1"
        assert [answer[0] for answer in answers if isinstance(answer, tuple)] == [101, 102, 105, 106, 107]
        assert list(workers.results([])) == []
        assert [answer[0] for _, answer in workers.results([8, 9])] == [108, 109]


def test_alone_there_is_no_other_process():
    with Workers(1, Answer, 0) as workers:
        ((_, answer), (_, error)) = workers.results([20, -2])
    assert answer == (20, os.getpid())
    assert str(error) == "task -2"


def test_a_fault_of_ours_is_told_with_its_place():
    class Unmade:
        def __init__(self) -> None:
            raise ZeroDivisionError

    with Workers(1, Unmade) as workers, pytest.raises(ZeroDivisionError):
        list(workers.results([1]))
    with Workers(2, Answer) as workers, pytest.raises(AsrKdError, match="missing 1 required positional argument"):
        list(workers.results([1]))
