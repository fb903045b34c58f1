"""What a process of a study does: it trains the tasks that it is sent, and sends back what happens."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from rotateconv.errors import INTERRUPTED, DivergedError, RunInterrupted
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.exit_codes import Failure, explain
from rotateconv.lab.parts import ImageSource
from rotateconv.lab.study.events import RunDiverged, RunEvent, RunStopped, RunTrained
from rotateconv.lab.study.turns import Turns
from rotateconv.lab.train.events import Event, RunEnd, StepEnd
from rotateconv.lab.train.process_memory import keep_freed_memory
from rotateconv.lab.train.run_folder import going_on
from rotateconv.lab.train.trackers import Trackers

_EVERY = 0.2  # seconds between two steps that are reported


@dataclass(frozen=True)
class Task:
    """A run to be done: `fit` with this configuration and start, or, where it is not `tested`, `train`.

    A run that is in `out` goes on, or is begun again with `overwrite`. `trackers` get its numbers too.
    """

    name: str
    config: RunConfig
    out: Path
    overwrite: bool = False
    trackers: tuple[str, ...] = ()
    tested: bool = True
    start: Path | None = None


Result = RunEvent | RunTrained | RunDiverged | RunStopped | Failure
"""How a run ends."""


def work(connection: Connection, command: list[str], gpu: str | None, together: int) -> None:
    """Do tasks until the other end of the connection closes, which ends the process whatever it does.

    The connection brings tasks, and names of runs that shall save themselves and stop; it takes events, and last a
    `Failure`. `command` is what the run folders name as the one which made them, `gpu` the only one to be seen, as
    CUDA_VISIBLE_DEVICES has it; where more than one task may run at a time, they take turns.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # a terminal's Ctrl-C reaches only the parent, which hands it on once
    os.dup2(2, 1)  # what libraries print is no event and no table
    sys.argv = command
    tasks: SimpleQueue[Task] = SimpleQueue()
    stopping: set[str] = set()
    threading.Thread(target=_listen, args=(connection, tasks, stopping), daemon=True).start()

    keep_freed_memory()
    images: dict[ImageSource, ImageData] = {}
    turns = Turns()

    def do(task: Task) -> None:
        with turns.taken():
            connection.send(do_task(task, connection.send, partial(stopped, task.name), images))

    def stopped(name: str) -> bool:  # asked after every step
        turns.pass_on()
        return name in stopping

    while True:
        task = tasks.get()
        if together == 1:
            do(task)
        else:
            threading.Thread(target=do, args=(task,), daemon=True).start()


def _listen(connection: Connection, tasks: SimpleQueue[Task], stopping: set[str]) -> None:
    """Take what the parent sends; when it closes its end, or dies, leave at once: checkpoints are whole at any time."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(INTERRUPTED)
        if isinstance(message, str):
            stopping.add(message)
        else:
            stopping.discard(message.name)  # it was for a task that was faster
            tasks.put(message)


def do_task(
    task: Task, send: Callable[[RunEvent], object], stopped: Callable[[], bool], images: dict[ImageSource, ImageData]
) -> Result:
    """Do a run and return its last event; the others are sent, a few times a second.

    At every step it is asked whether the run is stopped, to save itself and end. `images` are what the process has
    loaded before, by where they are from.
    """
    from rotateconv.lab.train.fit import fit, train  # with Accelerate, after the process knows which GPU is its own

    sent_at = 0.0

    def on_event(event: Event) -> None:
        nonlocal sent_at
        if stopped():
            raise KeyboardInterrupt
        tracked(event)
        if isinstance(event, RunEnd) or (isinstance(event, StepEnd) and time.monotonic() - sent_at < _EVERY):
            return
        sent_at = time.monotonic()
        send(RunEvent(task.name, event))

    tracked = Trackers(task.trackers)
    os.environ.setdefault("WANDB_SILENT", "true")  # many at a time would write over what the study shows
    try:
        source = task.config.images
        if source not in images:
            images.clear()  # the runs of a study share their images; two sets at a time may be too much
            images[source] = load_images(source)
        if stopped():
            return RunStopped(task.name)
        how, loaded = going_on(task.out, task.overwrite), images[source]
        if not task.tested:
            last = train(task.config, task.out, data=loaded, start=task.start, **how, on_event=on_event)
            return RunTrained(task.name, last)
        summary = fit(task.config, task.out, data=loaded, start=task.start, **how, on_event=on_event)
        return RunEvent(task.name, RunEnd(summary))
    except DivergedError as error:
        return RunDiverged(task.name, explain(error).sentence)
    except (RunInterrupted, KeyboardInterrupt):
        return RunStopped(task.name)
    except Exception as error:
        failure = explain(error)
        if failure.unexpected:
            traceback.print_exc()
        return Failure(failure.code, failure.sentence)
    finally:
        tracked.close()
