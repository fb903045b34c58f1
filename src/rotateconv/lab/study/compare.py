"""Models against each other: every configuration with every seed.

`compare` prints nothing: it hands the events of `rotateconv.lab.study.events` to a callback.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from rotateconv.errors import RunError
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
from rotateconv.lab.study.executor import Executor, run_tasks
from rotateconv.lab.study.plan import PlannedRuns, Study, plan
from rotateconv.lab.study.pool import local_executor
from rotateconv.lab.study.run_record import Curves, RunRecord
from rotateconv.lab.study.study_record import portable, read_run
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.environment import Environment, EnvironmentHistory
from rotateconv.lab.train.events import RunEnd, ignore
from rotateconv.lab.train.run_folder import SUMMARY, check_run, going_on, is_run


def compare(
    study: Study,
    data: DataDescription,
    out: str | Path,
    *,
    jobs: int | None = None,
    together: int = 1,
    executor: Executor | None = None,
    overwrite: bool = False,
    trackers: tuple[str, ...] = (),
    on_event: OnStudyEvent | None = None,
) -> list[RunRecord]:
    """Train what is not trained yet, below `out`/runs, and return the records of all runs, finished or failed.

    Finished runs are kept, interrupted ones go on, a run that diverges leaves the others alone.

    Args:
        study: What is compared.
        data: Description of the images that `study.base` names; the processes load them themselves.
        out: Folder of the comparison.
        jobs: Runs at a time, in processes with a share of the cores each; None for a process per core, or per GPU.
        together: Runs at a time in one process, which take turns step by step: for small models on a GPU.
        executor: Does the runs, in place of processes of this machine; it is closed in the end.
        overwrite: Start again with every run.
        trackers: Of `rotateconv.lab.train.trackers`, which get the numbers of every run too.
        on_event: Called with the events.

    Raises:
        RunInterrupted: Asked to stop; what was running is saved.
        ConfigError, RunError: A mistake in the study, or the folder of a run as `out`, before anything is written.
    """
    out = Path(out)
    if is_run(out):
        raise RunError(f"{out} holds a run: choose another folder for a comparison")
    report = on_event if on_event is not None else ignore
    entries = plan(study, data)
    # Seed by seed, so that an early table has every configuration in it.
    tasks = [
        Task(entry.run(seed), entry.seeded(seed), out / "runs" / entry.run(seed), overwrite, trackers)
        for seed, entry in itertools.product(range(study.seeds), entries)
    ]
    for task in tasks:
        check_run(task.out, task.config, **going_on(task.out, overwrite))
    waiting = [task for task in tasks if overwrite or not (task.out / SUMMARY).is_file()]
    executor = executor if executor is not None else local_executor(len(waiting), jobs, together)
    at_once = min(executor.jobs, max(1, len(waiting)))
    report(StudyStart(len(tasks), len(tasks) - len(waiting), at_once, executor.threads))
    failed: dict[str, str] = {}

    def on_task_event(event: TaskEvent) -> None:
        report(event)
        if isinstance(event, RunDiverged | RunDied):
            failed[event.run] = event.message
        elif not (isinstance(event, RunEvent) and isinstance(event.event, RunEnd)):
            return
        report(RecordsChanged(tuple(_records(study, entries, out, data, failed))))

    run_tasks(waiting, executor, len(waiting), on_task_event)
    return _records(study, entries, out, data, failed)


def _records(
    study: Study, entries: Sequence[PlannedRuns], out: Path, data: DataDescription, failed: Mapping[str, str]
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
    if is_run(run):
        return read_run(run, failed=why)
    here = EnvironmentHistory.of(Environment.now().of_no_call())
    return RunRecord(name, portable(config), here, data, None, Curves.of([], layers=False), failed=why)
