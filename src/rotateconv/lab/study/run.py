"""Models against each other: every configuration with every seed.

`compare` prints nothing: it hands the events of `rotateconv.lab.study.events` to a callback.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rotateconv.errors import ConfigError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.study.events import (
    OnStudyEvent,
    RecordsChanged,
    RunDied,
    RunDiverged,
    RunEvent,
    StudyStart,
    TaskEvent,
)
from rotateconv.lab.study.plan import Entry, Study, plan
from rotateconv.lab.study.pool import available_cores, run_tasks
from rotateconv.lab.study.records import portable, read_run
from rotateconv.lab.study.run_record import Curves, RunRecord
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.device import chosen_device, is_indexed
from rotateconv.lab.train.environment import Environment, EnvironmentHistory
from rotateconv.lab.train.events import RunEnd
from rotateconv.lab.train.run_folder import SUMMARY, check_run

__all__ = ["compare", "default_jobs"]


def compare(
    study: Study,
    data: DataDescription,
    out: str | Path,
    *,
    jobs: int | None = None,
    overwrite: bool = False,
    on_event: OnStudyEvent | None = None,
) -> list[RunRecord]:
    """Train what is not trained yet, below `out`/runs, and return the records of all runs, finished or failed.

    Finished runs are kept, interrupted ones go on, a run that diverges leaves the others alone.

    Args:
        study: What is compared.
        data: Description of the images that `study.base` names; the processes load them themselves.
        out: Folder of the comparison.
        jobs: Runs at a time, each in a process with its share of the cores; None for one per core, or per GPU.
        overwrite: Start again with every run.
        on_event: Called with the events.

    Raises:
        RunInterrupted: Asked to stop; what was running is saved.
        ConfigError: A mistake in the study, before anything is written.
    """
    out = Path(out)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be 1 or more, not {jobs}")
    report = on_event if on_event is not None else _ignore
    entries = plan(study, data)
    tasks = _tasks(study, entries, out, overwrite)
    for task in tasks:
        check_run(task.out, task.config, resume=task.resume, overwrite=task.overwrite)
    waiting = [task for task in tasks if task.overwrite or not (task.out / SUMMARY).is_file()]
    jobs = min(jobs if jobs is not None else default_jobs(), max(1, len(waiting)))
    threads = max(1, available_cores() // jobs)
    report(StudyStart(len(tasks), len(tasks) - len(waiting), jobs, threads))
    failed: dict[str, str] = {}

    def on_task_event(event: TaskEvent) -> None:
        report(event)
        if isinstance(event, RunDiverged | RunDied):
            failed[event.run] = event.message
        elif not (isinstance(event, RunEvent) and isinstance(event.event, RunEnd)):
            return
        report(RecordsChanged(tuple(_records(study, entries, out, data, failed))))

    run_tasks(waiting, jobs, threads, on_task_event)
    return _records(study, entries, out, data, failed)


def default_jobs() -> int:
    """Return how many runs go at a time where nobody says: one per GPU, or one per core.

    Small models gain less from a second thread than two runs gain from a core each.
    """
    device = chosen_device()
    if device.type == "cpu":
        return available_cores()
    return 1 if is_indexed(device) else max(1, torch.cuda.device_count())


def _tasks(study: Study, entries: Sequence[Entry], out: Path, overwrite: bool) -> list[Task]:
    """Return all runs, seed by seed, so that an early table has every configuration in it."""
    tasks = []
    for seed in range(study.seeds):
        for entry in entries:
            folder = out / "runs" / entry.run(seed)
            exists = (folder / "config.json").is_file()
            config = dataclasses.replace(entry.config, seed=seed)
            tasks.append(Task(entry.run(seed), config, folder, exists and not overwrite, exists and overwrite))
    return tasks


def _records(
    study: Study, entries: Sequence[Entry], out: Path, data: DataDescription, failed: Mapping[str, str]
) -> list[RunRecord]:
    """Return what is known of the study's runs so far."""
    found = []
    for entry, seed in itertools.product(entries, range(study.seeds)):
        name = entry.run(seed)
        run = out / "runs" / name
        if (run / SUMMARY).is_file():
            found.append(read_run(run))
        elif name in failed:
            found.append(_failed(entry.seeded(seed), name, run, data, failed[name]))
        else:
            continue
        found[-1] = dataclasses.replace(found[-1], equal_to=entry.equal_to)
    return found


def _failed(config: RunConfig, name: str, run: Path, data: DataDescription, why: str) -> RunRecord:
    """Return the record of a run without a result, which may have died before it left a file."""
    if (run / "config.json").is_file():
        return read_run(run, failed=why)
    here = EnvironmentHistory.of(Environment.now().of_no_call())
    return RunRecord(name, portable(config), here, data, None, Curves.of([], layers=False), failed=why)


def _ignore(event: object) -> None:
    """Report to nobody."""
