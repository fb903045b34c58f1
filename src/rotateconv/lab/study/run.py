"""Nets against each other: every configuration with every seed, and one row a configuration.

`compare` prints nothing: it hands the events of `rotateconv.lab.study.events` to a callback.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rotateconv.errors import ConfigError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.study.comparison import BASELINE, Entry, write_comparison
from rotateconv.lab.study.events import OnStudyEvent, RowsChanged, RunDied, RunDiverged, RunEvent, StudyStart, TaskEvent
from rotateconv.lab.study.pool import available_cores, run_tasks
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.build import build_configured
from rotateconv.lab.train.events import RunEnd
from rotateconv.lab.train.run_folder import Record, check_run
from rotateconv.models import equal_size_width
from rotateconv.nn.conv import RotateConv2d

__all__ = ["Study", "compare", "default_jobs", "plan"]


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        base: the recipe that all runs share; its model, conv and seed are not read.
        models: keys of `MODELS`.
        convs: keys of `CONVS`.
        seeds: number of runs of each configuration, with the seeds 0, 1, ...
        equal_params: add the dense net narrowed to the parameter count of each net with RotateConv2d.

    Raises:
        ConfigError: no model, no convolution, one of them twice, or no seed.
    """

    base: RunConfig
    models: tuple[str, ...] = ("resnet20",)
    convs: tuple[str, ...] = (BASELINE, "rotate4", "rotate2", "rotate2p")
    seeds: int = 3
    equal_params: bool = False

    def __post_init__(self) -> None:
        for key in ("models", "convs"):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names):
                raise ConfigError(f"{key} must be one name or more, each once, not {', '.join(names) or 'none'}")
        if self.seeds < 1:
            raise ConfigError(f"seeds must be 1 or more, not {self.seeds}")


def compare(
    study: Study,
    data: DataDescription,
    out: str | Path,
    *,
    jobs: int | None = None,
    overwrite: bool = False,
    on_event: OnStudyEvent | None = None,
) -> list[Record]:
    """Train what is not trained yet, below `out`/runs, and return the table's rows, the dense baseline first.

    Finished runs are kept, interrupted ones go on, a run that diverges leaves the others alone. After every run
    comparison.json, comparison.md and comparison.png are written in `out`.

    Args:
        study: what is compared.
        data: description of the images that `study.base` names; the processes load them themselves.
        out: folder of the comparison.
        jobs: runs at a time, each in a process with its share of the cores; None for one a core, or a GPU.
        overwrite: start again with every run.
        on_event: called with the events.

    Raises:
        RunInterrupted: asked to stop; what was running is saved.
        ValueError: a mistake in the study, before anything is written.
    """
    out = Path(out)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be 1 or more, not {jobs}")
    report = on_event if on_event is not None else _ignore
    entries = plan(study, data)
    tasks = _tasks(study, entries, out, overwrite)
    for task in tasks:
        check_run(task.out, task.config, resume=task.resume, overwrite=task.overwrite)
    waiting = [task for task in tasks if task.overwrite or not (task.out / "summary.json").is_file()]
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
        report(RowsChanged(write_comparison(entries, study.seeds, out, failed)))

    run_tasks(waiting, jobs, threads, on_task_event)
    return write_comparison(entries, study.seeds, out, failed)


def plan(study: Study, data: DataDescription) -> list[Entry]:
    """Return the configurations in the table's order: for each model the dense net, then the others as named.

    A narrowed dense net follows the first net that it is as large as.

    Raises:
        ValueError: an unknown name, or a net that cannot be built as configured.
    """
    entries: list[Entry] = []
    convs = sorted(study.convs, key=lambda conv: conv != BASELINE)
    for model in study.models:
        widths = {study.base.width}
        for conv in convs:
            config = dataclasses.replace(study.base, model=model, conv=conv, seed=0)
            entries.append(Entry(config))
            with torch.device("meta"):
                net = build_configured(config, data)
            if not study.equal_params or not any(isinstance(module, RotateConv2d) for module in net.modules()):
                continue
            width = _equal_width(model, net, data)
            if width not in widths:
                widths.add(width)
                narrow = dataclasses.replace(config, conv=BASELINE, width=width, growth=None)
                entries.append(Entry(narrow, equal_to=conv))
    return entries


def default_jobs() -> int:
    """Return how many runs go at a time where nobody says: one a GPU, or one a core.

    Small nets gain less from a second thread than two runs gain from a core each.
    """
    return torch.cuda.device_count() or available_cores()


def _equal_width(model: str, net: nn.Module, data: DataDescription) -> float:
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return equal_size_width(
        model, parameters, conv=BASELINE, num_classes=len(data.classes), in_channels=data.input_shape[0]
    )


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


def _ignore(event: object) -> None:
    """Report to nobody."""
