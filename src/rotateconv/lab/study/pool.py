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
from rotateconv.lab.study.events import RunDied, TaskEvent, is_last
from rotateconv.lab.study.executor import POLL
from rotateconv.lab.study.worker import Task, work
from rotateconv.lab.train.device import chosen_device, is_indexed

_SPAWN = multiprocessing.get_context("spawn")  # a fork would share what CUDA and OpenMP have started


class Worker:
    """A process that does tasks, one or more at a time, and the connection to it.

    Over the connection go tasks and, to stop one, its name; events come back. Its end is the end of the process: both
    when this one closes it and when this one dies.
    """

    def __init__(self, number: int, command: list[str], together: int) -> None:
        self.tasks: set[str] = set()
        self.connection, other = _SPAWN.Pipe()
        # Not as a daemon: those are killed at the end of their parent, without their last checkpoint.
        self.process = _SPAWN.Process(target=work, args=(other, command, _gpu(number), together), daemon=False)
        with _no_sigint():
            self.process.start()
        other.close()

    def send(self, message: Task | str) -> None:
        """Let it begin a task, or save and stop the one of this name."""
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
    """An `Executor` of processes with so many threads, each of which does one run after another.

    More than one run `together` in a process take turns (`rotateconv.lab.study.turns`).
    """

    def __init__(self, jobs: int, threads: int, together: int = 1) -> None:
        self.jobs, self.threads, self.together = jobs, threads, together
        # What the run folders name as the command that made them.
        self.command = [*sys.argv, "--jobs", str(jobs)]
        self.workers: dict[Connection, Worker] = {}
        self.started = 0

    def submit(self, task: Task) -> None:
        """Give a run to a process that has room for it, or to a new one."""
        worker = next((worker for worker in self.workers.values() if len(worker.tasks) < self.together), None)
        if worker is None:
            with _threads_of_children(self.threads):
                worker = Worker(self.started, self.command, self.together)
            self.started += 1
            self.workers[worker.connection] = worker
        worker.tasks.add(task.name)
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
                for name in sorted(worker.tasks):
                    yield RunDied(name, _how_it_ended(name, worker))
                worker.close()
                continue
            if not isinstance(event, Failure) and is_last(event):
                worker.tasks.discard(event.run)
            yield event

    def cancel(self, run: str) -> None:
        """Let the process of a run stop it."""
        for worker in self.workers.values():
            if run in worker.tasks:
                worker.send(run)

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


def _default_jobs() -> int:
    """Return how many runs go at a time where nobody says: one per GPU, or one per core.

    Small models gain less from a second thread than two runs gain from a core each.
    """
    device = chosen_device()
    if device.type == "cpu":
        return available_cores()
    return 1 if is_indexed(device) else max(1, torch.cuda.device_count())


def local_executor(count: int, jobs: int | None = None, together: int = 1) -> LocalExecutor:
    """Return the executor of so many runs on this machine: `jobs` at a time, each with its share of the cores.

    Without `jobs` they are `together` in each of `_default_jobs` processes; ConfigError where a number is less than 1.
    """
    for name, number in (("jobs", jobs), ("together", together)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} must be 1 or more, not {number}")
    jobs = min(jobs if jobs is not None else together * _default_jobs(), max(1, count))
    together = min(together, jobs)
    return LocalExecutor(jobs, max(1, available_cores() // -(-jobs // together)), together)


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


def _how_it_ended(name: str, worker: Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return (
        f"the process of {name} ended without a word ({how}), perhaps for want of memory: "
        "try fewer jobs; the same command goes on where it stopped"
    )
