"""Training runs in processes of their own: a few at a time, stopped together."""

import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from rotateconv.errors import RunInterrupted
from rotateconv.lab.exit_codes import CommandError, Failure
from rotateconv.lab.study.events import OnTaskEvent, RunDied, RunEvent, RunStopped
from rotateconv.lab.study.worker import Task, work
from rotateconv.lab.train.device import chosen_device, is_indexed
from rotateconv.lab.train.events import RunEnd
from rotateconv.lab.train.interrupts import Interrupts

_SPAWN = multiprocessing.get_context("spawn")  # a fork would share what CUDA and OpenMP have started


class Worker:
    """A process that does one task after another, and the connection to it.

    Over the connection go tasks and, once, None to stop; events come back. Its end is the end of the process: both
    when this one closes it and when this one dies.
    """

    def __init__(self, number: int, command: list[str]) -> None:
        self.task: Task | None = None
        self.connection, other = _SPAWN.Pipe()
        # Not as a daemon: those are killed at the end of their parent, without their last checkpoint.
        self.process = _SPAWN.Process(target=work, args=(other, command, _gpu(number)), daemon=False)
        with _no_sigint():
            self.process.start()
        other.close()

    def give(self, task: Task) -> None:
        """Let it begin a task."""
        self.task = task
        with contextlib.suppress(OSError):  # it has died, which the reading end reports
            self.connection.send(task)

    def stop(self) -> None:
        """Let it save its run and end."""
        with contextlib.suppress(OSError):
            self.connection.send(None)

    def close(self) -> None:
        """End it at once, if it still runs, and wait."""
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


@contextlib.contextmanager
def _no_sigint() -> Iterator[None]:
    """A process that starts inside never sees a terminal's Ctrl-C, also not while it imports: this one hands it on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets signals through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_tasks(tasks: Sequence[Task], jobs: int, threads: int, on_event: OnTaskEvent) -> None:
    """Do all tasks, `jobs` at a time, in processes of `threads` threads.

    A run that diverges, or whose process is killed, is reported and leaves the others alone; any other failure stops
    all.

    Args:
        tasks: the runs.
        jobs: number of processes.
        threads: of each process.
        on_event: called with the events.

    Raises:
        RunInterrupted: a first Ctrl-C; the runs have saved themselves. A second one leaves at once.
        CommandError: a run failed in another way.
    """
    waiting = deque(tasks)
    command = [shlex.join(sys.argv), "--jobs", str(jobs)]  # what the run folders name as the command that made them
    workers: dict[Connection, Worker] = {}
    started, finished, stopping = 0, 0, False
    with Interrupts() as interrupts, _threads_of_children(threads):
        try:
            while waiting or workers:
                while waiting and len(workers) < jobs:
                    worker = Worker(started, command)
                    started += 1
                    workers[worker.connection] = worker
                    worker.give(waiting.popleft())
                if interrupts.requested and not stopping:
                    stopping = True
                    waiting.clear()
                    for worker in workers.values():
                        worker.stop()
                for connection in wait(list(workers), timeout=0.2):
                    assert isinstance(connection, Connection)
                    worker = workers[connection]
                    assert worker.task is not None
                    try:
                        event = connection.recv()
                    except (EOFError, OSError):
                        del workers[connection]
                        if not stopping:
                            on_event(RunDied(worker.task.name, _how_it_ended(worker)))
                        worker.close()
                        continue
                    if isinstance(event, Failure):
                        raise CommandError(event)
                    on_event(event)
                    if isinstance(event, RunEvent) and not isinstance(event.event, RunEnd):
                        continue
                    finished += not isinstance(event, RunStopped)
                    if waiting:
                        worker.give(waiting.popleft())
                    else:
                        del workers[connection]
                        worker.close()
        finally:
            for worker in workers.values():
                worker.close()
    if stopping and finished < len(tasks):
        raise RunInterrupted(f"stopped after {finished} of {len(tasks)} runs; those that were running are saved")


def available_cores() -> int:
    """Return how many cores this process may use at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A container's share of time is no affinity: "200000 100000" are two cores.
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


@contextlib.contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Processes that start inside have so many threads: their libraries read the variables when they are loaded."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _gpu(number: int) -> str | None:
    """Return what the number-th process shall see as its only GPU, where there is more than one."""
    count, chosen = torch.cuda.device_count(), chosen_device()
    if count < 2 or chosen.type != "cuda" or is_indexed(chosen):
        return None
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return names.split(",")[number % count]


def _how_it_ended(worker: Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    assert worker.task is not None
    return (
        f"the process of {worker.task.name} ended without a word ({how}), perhaps for want of memory: "
        "try fewer jobs; the same command goes on where it stopped"
    )
