"""Where the runs of a study are done: what every executor offers, and the loop that keeps one busy.

`rotateconv.lab.study.pool` has the processes of this machine, `rotateconv.lab.study.cluster` the nodes of a cluster.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from rotateconv.errors import RunInterrupted
from rotateconv.lab.exit_codes import CommandError, Failure
from rotateconv.lab.study.events import OnTaskEvent, RunDied, RunStopped, TaskEvent, is_last
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.interrupts import Interrupts

POLL = 0.2
"""Seconds that `Executor.events` waits for the first event, at most."""


class Executor(Protocol):
    """Processes that do runs."""

    @property
    def jobs(self) -> int:
        """Runs at a time, as of now: a cluster may grow."""

    @property
    def threads(self) -> int:
        """Threads of each run."""

    def submit(self, task: Task) -> None:
        """Begin a run, or let it wait for its turn; at most `jobs` are submitted at a time."""

    def events(self) -> Iterator[TaskEvent | Failure]:
        """Yield what has happened since the last call, each run's last event last; waits `POLL` seconds for it."""

    def cancel(self, run: str) -> None:
        """Let a run save itself and end: `RunStopped` follows, or the last event of a run that was faster."""

    def close(self) -> None:
        """End what still runs, at once."""


def run_tasks(tasks: Iterable[Task], executor: Executor, count: int, on_event: OnTaskEvent) -> None:
    """Do all tasks, and close the executor.

    A run that diverges, or whose process is killed, is reported and leaves the others alone; any other failure stops
    all.

    Raises:
        RunInterrupted: a first Ctrl-C; the runs have saved themselves. A second one leaves at once.
        CommandError: a run failed in another way.
    """
    waiting = iter(tasks)
    running: set[str] = set()
    finished, stopping = 0, False
    with Interrupts() as interrupts:
        try:
            while True:
                while not stopping and len(running) < executor.jobs and (task := next(waiting, None)) is not None:
                    running.add(task.name)
                    executor.submit(task)
                if not running:
                    break
                if interrupts.requested and not stopping:
                    stopping = True
                    for name in running:
                        executor.cancel(name)
                for event in executor.events():
                    if isinstance(event, Failure):
                        raise CommandError(event)
                    if is_last(event):
                        running.discard(event.run)
                        finished += not isinstance(event, RunStopped | RunDied)
                    if not (stopping and isinstance(event, RunDied)):
                        on_event(event)
        finally:
            executor.close()
    if stopping and finished < count:
        raise RunInterrupted(f"stopped after {finished} of {count} runs; those that were running are saved")
