"""Runs that take turns in one process are the runs that each has one to itself."""

import multiprocessing
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rotateconv.lab.config import make_config
from rotateconv.lab.study.events import RunEvent, RunStopped, TaskEvent
from rotateconv.lab.study.executor import run_tasks
from rotateconv.lab.study.pool import LocalExecutor, local_executor
from rotateconv.lab.study.turns import Turns
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.checkpoint import load_checkpoint
from rotateconv.lab.train.events import EpochEnd, RunEnd
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.run_folder import CHECKPOINTS
from small import assert_same_run


def test_one_thread_at_a_time_each_with_its_own_random_numbers() -> None:
    turns, done = Turns(), list[int]()
    found: dict[int, list[Tensor]] = {}
    all_wait = threading.Event()

    def run(seed: int) -> None:
        with turns.taken():
            torch.manual_seed(seed)
            all_wait.wait()
            found[seed] = []
            for _ in range(3):
                turns.pass_on()
                found[seed].append(torch.rand(2))
                done.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (5, 6, 7)]
    for thread in threads:
        thread.start()
    while len(turns._order) < 3:
        pass
    all_wait.set()
    for thread in threads:
        thread.join()
    assert sorted(done[:3]) == [5, 6, 7]
    assert done == 3 * done[:3]
    for seed, numbers in found.items():
        torch.manual_seed(seed)
        assert all(torch.equal(number, torch.rand(2)) for number in numbers)


def test_a_thread_that_fails_lets_the_others_go_on() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.taken():
        raise ZeroDivisionError
    with turns.taken():
        turns.pass_on()


def test_processes_for_so_many_runs() -> None:
    executor = local_executor(6, 5, 2)
    assert (executor.jobs, executor.together) == (5, 2)
    assert local_executor(1, None, 4).together == 1


def tasks(folder: Path) -> list[Task]:
    """Two runs whose steps draw random numbers."""
    values = {"model": "densenet40", "growth": 2, "dropout": 0.3, "batch_size": 512, "epochs": 2, "lr": 0.01}
    return [
        Task(name, make_config("digits", changes={**values, "conv": conv, "seed": seed}), folder / name)
        for name, conv, seed in (("one", "rotate4", 0), ("other", "conv3x3", 1))
    ]


@pytest.mark.slow
def test_runs_are_bit_for_bit_those_alone(tmp_path: Path) -> None:
    heard: list[TaskEvent] = []
    processes: set[int | None] = set()

    def on_event(event: TaskEvent) -> None:
        heard.append(event)
        processes.update(child.pid for child in multiprocessing.active_children())

    run_tasks(tasks(tmp_path), LocalExecutor(2, 1, together=2), 2, on_event)
    assert len(processes) == 1
    ends = [event.run for event in heard if isinstance(event, RunEvent) and isinstance(event.event, EpochEnd)]
    assert sorted(ends[:2]) == ["one", "other"]
    for task in tasks(tmp_path / "alone"):
        fit(task.config, task.out)
        assert_same_run(tmp_path / task.name, task.out)


@pytest.mark.slow
def test_one_of_them_is_stopped(tmp_path: Path) -> None:
    heard: list[TaskEvent] = []
    executor = LocalExecutor(2, 1, together=2)
    small = {"width": 0.25, "batch_size": 512, "lr": 0.01}
    long, short = (
        Task(name, make_config("digits", changes={**small, "epochs": epochs}), tmp_path / name)
        for name, epochs in (("long", 500), ("short", 2))
    )

    def on_event(event: TaskEvent) -> None:
        heard.append(event)
        if event.run == "long" and isinstance(event, RunEvent) and isinstance(event.event, EpochEnd):
            executor.cancel("long")

    run_tasks([long, short], executor, 2, on_event)
    assert RunStopped("long") in heard
    assert load_checkpoint(long.out / CHECKPOINTS) is not None
    assert any(
        event.run == "short" and isinstance(event.event, RunEnd) for event in heard if isinstance(event, RunEvent)
    )
