"""Training runs in processes of this machine: a few at a time, stopped together."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from rotateconv.errors import ConfigError
from rotateconv.lab.exit_codes import Failure
from rotateconv.lab.study.events import RunDied, RunEvent, TaskEvent
from rotateconv.lab.study.executor import POLL
from rotateconv.lab.study.worker import Task, work
from rotateconv.lab.train.device import chosen_device, is_indexed
from rotateconv.lab.train.events import RunEnd

_SPAWN = multiprocessing.get_context("spawn")  # a fork would share what CUDA and OpenMP have started


class Worker:
    """A process that does one task after another, and the connection to it.

    Over the connection go tasks and, to stop the one that runs, None; events come back. Its end is the end of the
    process: both when this one closes it and when this one dies.
    """

    def __init__(self, number: int, command: list[str]) -> None:
        self.task: Task | None = None
        self.connection, other = _SPAWN.Pipe()
        # Not as a daemon: those are killed at the end of their parent, without their last checkpoint.
        self.process = _SPAWN.Process(target=work, args=(other, command, _gpu(number)), daemon=False)
        with _no_sigint():
            self.process.start()
        other.close()

    def send(self, message: Task | None) -> None:
        """Let it begin a task, or save and stop the one that it does."""
        with contextlib.suppress(OSError):  # it has died, which the reading end reports
            self.connection.send(message)

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


class LocalExecutor:
    """An `Executor` of processes, each of which does one run after another.

    Args:
        jobs: number of processes.
        threads: of each of them.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs, self.threads = jobs, threads
        # What the run folders name as the command that made them.
        self.command = [*sys.argv, "--jobs", str(jobs)]
        self.workers: dict[Connection, Worker] = {}
        self.started = 0

    def submit(self, task: Task) -> None:
        """Give a run to a process that has none, or to a new one."""
        worker = next((worker for worker in self.workers.values() if worker.task is None), None)
        if worker is None:
            with _threads_of_children(self.threads):
                worker = Worker(self.started, self.command)
            self.started += 1
            self.workers[worker.connection] = worker
        worker.task = task
        worker.send(task)

    def events(self) -> Iterator[TaskEvent | Failure]:
        """Yield what the processes send, one event of each."""
        for connection in wait(list(self.workers), timeout=POLL):
            assert isinstance(connection, Connection)
            worker = self.workers[connection]
            try:
                event = connection.recv()
            except (EOFError, OSError):
                del self.workers[connection]
                if worker.task is not None:
                    yield RunDied(worker.task.name, _how_it_ended(worker.task, worker))
                worker.close()
                continue
            if not isinstance(event, RunEvent) or isinstance(event.event, RunEnd):
                worker.task = None
            yield event

    def cancel(self, run: str) -> None:
        """Let the process of a run stop it."""
        for worker in self.workers.values():
            if worker.task is not None and worker.task.name == run:
                worker.send(None)

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()


def available_cores() -> int:
    """Return how many cores this process may use at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A container's share of time is no affinity: "200000 100000" are two cores.
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def default_jobs() -> int:
    """Return how many runs go at a time where nobody says: one per GPU, or one per core.

    Small models gain less from a second thread than two runs gain from a core each.
    """
    device = chosen_device()
    if device.type == "cpu":
        return available_cores()
    return 1 if is_indexed(device) else max(1, torch.cuda.device_count())


def local_executor(count: int, jobs: int | None = None) -> LocalExecutor:
    """Return the executor of so many runs on this machine: `jobs` at a time, each with its share of the cores.

    Raises:
        ConfigError: `jobs` is less than 1.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be 1 or more, not {jobs}")
    jobs = min(jobs if jobs is not None else default_jobs(), max(1, count))
    return LocalExecutor(jobs, max(1, available_cores() // jobs))


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


def _how_it_ended(task: Task, worker: Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return (
        f"the process of {task.name} ended without a word ({how}), perhaps for want of memory: "
        "try fewer jobs; the same command goes on where it stopped"
    )
