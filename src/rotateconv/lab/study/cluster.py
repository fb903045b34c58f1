"""Training runs on the nodes of a Ray cluster: each is a task of Ray, and goes on elsewhere when its node dies."""

import contextlib
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rotateconv.errors import FAULT, MISTAKE, ConfigError, first_line, needing
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.exit_codes import Failure
from rotateconv.lab.files import make_folder, write_bytes
from rotateconv.lab.parts import ImageSource
from rotateconv.lab.study.events import RunDied, RunEvent, RunStopped, TaskEvent
from rotateconv.lab.study.executor import POLL
from rotateconv.lab.study.worker import Result, Task, do_task
from rotateconv.lab.train.device import VARIABLE
from rotateconv.lab.train.events import RunWarning
from rotateconv.lab.train.lock import ATTEMPT, held_by_another, take_over
from rotateconv.lab.train.process_memory import keep_freed_memory

_ATTEMPTS = 4
"""Times that a run is begun or gone on with, before it is left for the next call of the same command."""
TOKEN = ".study-token"
"""File in the folder of a study whose content a node must be able to read."""
_LIMIT = 1024  # bytes of a token that anybody may have put there


@dataclass(frozen=True)
class Attempt:
    """What a task of Ray gets: a run, and what its node must know of the command that wants it.

    Attributes:
        task: The run.
        token: Folder and content of the file that proves a shared disk.
        name: Of this attempt, in the lock of the run folder.
        before: Names of the attempts whose node or process is dead.
        command, folder: Of the command.
        threads: Of the run.
        gpu: Whether it has one, or a part of one.
    """

    task: Task
    token: tuple[Path, str]
    name: str
    before: tuple[str, ...]
    command: str
    folder: str
    threads: int
    gpu: bool


class Channel:
    """An actor of Ray between tasks and the command: events one way, runs to be stopped the other."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self.stops: frozenset[str] = frozenset()

    def send(self, event: RunEvent) -> bool:
        """Keep an event of a run, and return whether the run shall stop."""
        self.events.append(event)
        return event.run in self.stops

    def stopped(self, run: str) -> bool:
        """Return whether a run shall stop before it begins."""
        return run in self.stops

    def exchange(self, stops: frozenset[str]) -> list[RunEvent]:
        """Return the events since the last call, and take the names of the runs that shall stop."""
        events, self.events, self.stops = self.events, [], stops
        return events


class RayExecutor:
    """An `Executor` of tasks on a Ray cluster: on that of RAY_ADDRESS or of this machine, or a new one here.

    Args:
        out: folder of the study, which every node sees under the same path.
        address: ray://HOST:PORT of another cluster's client server, or None.
        cpus: cores of a run, and its threads.
        gpus: GPUs of a run, such as 0.25; None for one where the cluster has any.
        jobs: runs at a time; None for as many as fit at once.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or nothing of it can hold a run.
    """

    def __init__(
        self,
        out: Path,
        address: str | None = None,
        *,
        cpus: int = 1,
        gpus: float | None = None,
        jobs: int | None = None,
    ) -> None:
        if cpus < 1 or (gpus is not None and gpus < 0) or (jobs is not None and jobs < 1):
            raise ConfigError(
                f"a run needs 1 core or more and no less than 0 GPUs, and jobs must be 1 or more, not {cpus}, {gpus} "
                f"and {jobs}"
            )
        self.ray: Any = _ray()
        self.out, self.threads, self.asked = out.resolve(), cpus, jobs
        where = address or os.environ.get("RAY_ADDRESS", "")
        host, _, port = where.removeprefix("ray://").rpartition(":")
        try:
            if host and port.isdigit():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            self.ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise ConfigError(f"no Ray cluster can be reached at {where or 'this machine'}: {reason}") from None
        self.gpus = gpus if gpus is not None else float(self._resources().get("GPU", 0) >= 1)
        if not self._capacity():
            has = ", ".join(f"{self._resources().get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
            self.ray.shutdown()
            raise ConfigError(f"no run fits in the cluster: it has {has}, a run wants {cpus} CPU and {self.gpus:g} GPU")
        self.token = secrets.token_hex(16)
        self.channel = self.ray.remote(Channel).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        self.work = self.ray.remote(attempt_run).options(num_cpus=cpus, num_gpus=self.gpus, max_retries=0)
        self.running: dict[Any, Attempt] = {}
        self.stops: frozenset[str] = frozenset()
        self.begun: set[str] = set()
        self.proof: Path | None = None

    @property
    def jobs(self) -> int:
        """Runs at a time: as asked, or as many as the cluster of now can hold."""
        return self.asked or max(1, self._capacity())

    def submit(self, task: Task) -> None:
        """Let Ray find a node for a run."""
        if self.proof is None:
            self.proof = self.out / TOKEN
            make_folder(self.out)
            write_bytes(self.proof, self.token.encode())
        self._start(
            Attempt(
                task=replace(task, out=task.out.resolve()),
                token=(self.out, self.token),
                name=f"{self.token}-1",
                before=(),
                command=shlex.join(sys.argv),
                folder=str(Path.cwd()),
                threads=self.threads,
                gpu=self.gpus > 0,
            )
        )

    def events(self) -> Iterator[TaskEvent | Failure]:
        """Yield what the runs have sent, then how those ended that did; begin again those whose node has died."""
        ready, _ = self.ray.wait(list(self.running), timeout=POLL)
        for event in self.ray.get(self.channel.exchange.remote(self.stops)):
            self.begun.add(event.run)
            yield event
        for reference in ready:
            attempt = self.running.pop(reference)
            name = attempt.task.name
            try:
                result: Result = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:  # what happens before, and around, `do_task`
                reason = str(error).strip().splitlines()[-1]
                yield Failure(FAULT, f"the task of {name} failed on its node, which needs rotateconv too: {reason}")
            except self.ray.exceptions.TaskCancelledError:
                yield RunStopped(name)
            except self.ray.exceptions.RayError as error:  # its process or its node is gone
                reason = f"{name} lost its process or its node ({type(error).__name__})"
                if name in self.stops:
                    yield RunDied(name, f"{reason} before it was saved: the same command goes on where it stopped")
                elif len(attempt.before) + 1 == _ATTEMPTS:
                    yield RunDied(
                        name, f"{reason}, for the {_ATTEMPTS}th time: the same command goes on where it stopped"
                    )
                else:
                    yield RunEvent(name, RunWarning(f"{reason}: going on from its last checkpoint"))
                    before = (*attempt.before, attempt.name)
                    self._start(replace(attempt, name=f"{self.token}-{len(before) + 1}", before=before))
            else:
                self.stops -= {name}
                yield result

    def cancel(self, run: str) -> None:
        """Let a run stop at its next event, or never begin."""
        self.stops |= {run}
        if run not in self.begun:  # it may wait for its turn for long
            for reference, attempt in self.running.items():
                if attempt.task.name == run:
                    self.ray.cancel(reference)

    def close(self) -> None:
        """Leave the cluster, which ends what still runs there for this command."""
        if self.proof is not None:
            self.proof.unlink(missing_ok=True)
            self.proof = None
        self.ray.shutdown()

    def _start(self, attempt: Attempt) -> None:
        self.running[self.work.remote(attempt, self.channel)] = attempt

    def _resources(self) -> dict[str, float]:
        found: dict[str, float] = self.ray.cluster_resources()
        return found

    def _capacity(self) -> int:
        """Return how many runs the nodes that are alive can hold, each whole on one node."""
        count = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                count += int(min(has.get("CPU", 0) / self.threads, has.get("GPU", 0) / self.gpus if self.gpus else 1e9))
        return count


def _ray() -> Any:
    """Return the module; nothing of it is imported where no cluster is asked for."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send statistics to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning less; a run without a GPU says "cpu"
    with needing("ray", "--on ray needs a package that does not import"):
        import ray
    return ray


_images: dict[ImageSource, ImageData] = {}  # of a process of Ray, which does one task after another


def attempt_run(attempt: Attempt, channel: Any) -> Result:
    """Do a run, or go on with it, in a process of a node."""
    import ray

    task = attempt.task
    missing = unseen(*attempt.token)
    if missing is not None:
        return Failure(MISTAKE, missing)
    keep_freed_memory()
    torch.set_num_threads(attempt.threads)
    os.environ[ATTEMPT] = attempt.name
    os.environ.pop(VARIABLE, None)
    if not attempt.gpu:
        os.environ[VARIABLE] = "cpu"
    sys.argv = shlex.split(attempt.command)
    with contextlib.suppress(OSError):  # where data or a teacher are named by a path from there
        os.chdir(attempt.folder)
    if attempt.before:
        task = replace(task, overwrite=False)  # it was begun again once already, if at all
        take_over(task.out, attempt.before)
    sent: list[Any] = []
    stop: bool = ray.get(channel.stopped.remote(task.name))

    def send(event: RunEvent) -> None:
        nonlocal stop
        if held_by_another(task.out, attempt.name):
            os._exit(FAULT)  # this node was taken for dead, and the run goes on elsewhere
        sent.append(channel.send.remote(event))
        while sent and ray.wait(sent[:1], timeout=0)[0]:
            stop = ray.get(sent.pop(0)) or stop

    result = do_task(task, send, lambda: stop, _images)
    ray.get(sent)  # what is sent has arrived before the end is known
    return result


def unseen(folder: Path, token: str) -> str | None:
    """Return the sentence about a folder that is not the same here and where the study was started; None if it is."""
    try:
        with (folder / TOKEN).open(encoding="utf-8", errors="replace") as file:
            found = file.read(_LIMIT)
    except OSError:
        found = ""
    if found == token:
        return None
    return (
        f"the node {socket.gethostname()} does not see the folder {folder} of the machine that started the study: "
        "give --out a path that is the same disk on every node"
    )
