"""Training runs in processes of their own: a few at a time, stopped together."""

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rotateconv.errors import FAULT, RunInterrupted
from rotateconv.lab.config import RunConfig, to_json
from rotateconv.lab.exit_codes import CommandError, Failure
from rotateconv.lab.train.interrupts import Interrupts

OnEvent = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """A run to be done.

    Args:
        name: of the run, in events.
        config, out, resume, overwrite: as of `fit`.
    """

    name: str
    config: RunConfig
    out: Path
    resume: bool = False
    overwrite: bool = False


class Worker:
    """A process that does one task after another; what it tells goes into a queue with itself."""

    def __init__(self, number: int, jobs: int, threads: int, events: "queue.Queue[tuple[Worker, Any]]") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if torch.cuda.device_count() > 1:
            names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
            devices = names.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        self.task: Task | None = None
        # In a process group of its own: a terminal's Ctrl-C reaches only the parent, which hands it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rotateconv.lab.study.worker", *_command(jobs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            process_group=0,
        )
        self.reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self.reader.start()

    def give(self, task: Task) -> None:
        """Let it begin the task."""
        self.task = task
        line = {
            "config": json.loads(to_json(task.config)),
            "out": str(task.out),
            "resume": task.resume,
            "overwrite": task.overwrite,
        }
        with contextlib.suppress(BrokenPipeError):  # it has died: its end tells
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """Let it end when it has nothing more to do."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def close(self) -> None:
        """End it at once, if it still runs, and wait."""
        self.process.kill()
        self.dismiss()
        self.process.wait()
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self, events: "queue.Queue[tuple[Worker, Any]]") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, None))


def run_tasks(tasks: Sequence[Task], jobs: int, threads: int, on_event: OnEvent) -> None:
    """Do all tasks, `jobs` at a time, in processes of `threads` threads.

    A run that diverges is reported as the event "diverged"; any other failure stops all.

    Args:
        tasks: the runs.
        jobs: number of processes.
        threads: of each process.
        on_event: called with the events of `fit`, to whose values the name of the run is added as "run".

    Raises:
        RunInterrupted: a first Ctrl-C; the runs have saved themselves. A second one leaves at once.
        CommandError: a run failed in another way.
    """
    waiting = deque(tasks)
    events: queue.Queue[tuple[Worker, Any]] = queue.Queue()
    workers: list[Worker] = []
    running: set[Worker] = set()
    stopping = False
    done = 0
    with Interrupts() as interrupts:
        try:
            for number in range(min(jobs, len(waiting))):
                worker = Worker(number, jobs, threads, events)
                workers.append(worker)
                running.add(worker)
                worker.give(waiting.popleft())
            while running:
                if interrupts.requested and not stopping:
                    stopping = True
                    waiting.clear()
                    for worker in running:
                        worker.dismiss()
                        worker.process.send_signal(signal.SIGINT)
                try:
                    worker, event = events.get(timeout=0.2)
                except queue.Empty:
                    continue
                if event is None:
                    running.discard(worker)
                    if worker.task is not None and not stopping:
                        raise CommandError(_silent_end(worker))
                    continue
                name, values = event["event"], event["values"]
                if name == "failed":
                    raise CommandError(Failure(**{**values, "unexpected": False}))  # it has shown its traceback
                assert worker.task is not None
                on_event(name, {**values, "run": worker.task.name})
                if name in ("done", "diverged", "interrupted"):
                    done += name == "done"
                    worker.task = None
                    if waiting:
                        worker.give(waiting.popleft())
                    else:
                        worker.dismiss()
        finally:
            for worker in workers:
                worker.close()
    if stopping and done < len(tasks):
        raise RunInterrupted(f"stopped after {done} of {len(tasks)} runs; those that were running are saved")


def available_cores() -> int:
    """Return how many cores this process may use at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A container's share of time is no affinity: "200000 100000" are two cores.
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _command(jobs: int) -> list[str]:
    """Return what the run folder shall name as the command that made it."""
    return [shlex.join(sys.argv), "--jobs", str(jobs)]


def _silent_end(worker: Worker) -> Failure:
    code = worker.process.wait()
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    assert worker.task is not None
    return Failure(
        FAULT,
        f"the process of {worker.task.name} ended without a word ({how}), perhaps for want of memory: "
        "try fewer jobs; the same command goes on where it stopped",
    )
