"""Nets against each other: every configuration with every seed, and one row a configuration.

`compare` prints nothing; it tells a callback what happens, by name and plain values:

    plan        runs, finished (before this call), jobs, threads
    start, step, epoch, warning, done    as of `fit`, and `run`: the name of the run
    diverged    run, message
    rows        rows: after every finished run
"""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rotateconv.config import ConfigError, RunConfig
from rotateconv.conv import RotateConv2d
from rotateconv.models import equal_size_width
from rotateconv.plots import draw_comparison
from rotateconv.runs import Record, check_run, read_json, write_bytes
from rotateconv.trained import DataDescription, build_net
from rotateconv.workers import Task, available_cores, run_tasks

__all__ = ["BASELINE", "CAPTION", "Study", "compare", "markdown", "read_rows"]

BASELINE = "conv3x3"
"""The dense convolution that the others are compared with."""

CAPTION = (
    "Test accuracy in percent, mean ± standard deviation (n - 1) over seeds, of the net after the last epoch. "
    "The difference, in points, is to the dense net of the same model and recipe; its standard error is "
    "√(s₁²/n₁ + s₂²/n₂), unpaired. Multiply-adds are of one image; seconds an epoch are medians."
)

OnEvent = Callable[[str, dict[str, Any]], None]


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


@dataclass(frozen=True)
class Entry:
    """A row of the table before its runs.

    Args:
        config: of the runs; the seed is set later.
        equal_to: the convolution that the narrowed dense net is as large as, or None.
    """

    config: RunConfig
    equal_to: str | None = None

    def run(self, seed: int) -> str:
        """Return the name of a run's folder."""
        width = "" if self.config.width == 1 else f"-w{self.config.width:g}"
        return f"{self.config.model}-{self.config.conv}{width}-seed{seed}"


def compare(
    study: Study,
    data: DataDescription,
    out: str | Path,
    *,
    jobs: int | None = None,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
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
        on_event: called with the events of this module.

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
    counts = {"runs": len(tasks), "finished": len(tasks) - len(waiting), "jobs": jobs, "threads": threads}
    report("plan", counts)
    failed: dict[str, str] = {}

    def on_task_event(name: str, values: dict[str, Any]) -> None:
        report(name, values)
        if name == "diverged":
            failed[values["run"]] = values["message"]
        if name in ("done", "diverged"):
            report("rows", {"rows": _write(study, entries, out, failed)})

    run_tasks(waiting, jobs, threads, on_task_event)
    return _write(study, entries, out, failed)


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
                net = build_net(config, data)
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


def read_rows(path: str | Path) -> list[Record]:
    """Return the rows of a comparison.json."""
    rows: list[Record] = json.loads(Path(path).read_text(encoding="utf-8"))
    return rows


def markdown(rows: Sequence[Record]) -> str:
    """Return the rows as a table in Markdown, with the recipe above and the caption below."""
    head = ("model", "conv", "parameters", "multiply-adds", "test accuracy %", "difference", "n", "s/epoch")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    first = rows[0]
    hardware, versions = first["hardware"], first["versions"]
    machine = hardware.get("gpu") or f"{hardware.get('cpu')}, {hardware.get('threads')} threads a run"
    title = f"{first['dataset']}, recipe {first['recipe']}, {first['epochs']} epochs"
    made = f"{machine}; torch {versions.get('torch')}, rotateconv {versions.get('rotateconv')}."
    failures = [f"- {row['label']}, seed {seed}: {why}" for row in rows for seed, why in row["failed"].items()]
    told = ["", "Without a result:", *failures] if failures else []
    return "\n".join([f"**{title}**", "", *lines, "", f"{CAPTION} {made}", *told]) + "\n"


def cells(row: Record) -> tuple[str, ...]:
    """Return a row's cells as people read them."""
    mean, std, seconds = row["accuracy_mean"], row["accuracy_std"], row["seconds_per_epoch"]
    difference, error = row["difference"], row["difference_standard_error"]
    if difference is not None:
        difference = round(difference, 2) + 0.0  # no "-0.00"
    accuracy = "diverged" if mean is None else f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
    told = "-" if difference is None else f"{difference:+.2f}" if error is None else f"{difference:+.2f} ± {error:.2f}"
    count = f"{row['n']}" if not row["failed"] else f"{row['n']} of {row['n'] + len(row['failed'])}"
    return (
        row["model"],
        row["label"],
        _known(row["parameters"]),
        "-" if row["multiply_adds"] is None else f"{row['multiply_adds'] / 1e6:,.2f} M",
        accuracy,
        told,
        count,
        "-" if seconds is None else f"{seconds:.3g}",
    )


def _known(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


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


def _write(study: Study, entries: Sequence[Entry], out: Path, failed: dict[str, str]) -> list[Record]:
    """Write the table as far as it is known, and return its rows."""
    rows = [_row(study, entry, out, failed) for entry in entries]
    rows = [row for row in rows if row["n"] or row["failed"]]
    baselines = {row["model"]: row for row in rows if row["conv"] == BASELINE and row["equal_to"] is None}
    for row in rows:
        row.update(_difference(row, baselines.get(row["model"])))
    if rows:
        write_bytes(out / "comparison.json", (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())
        write_bytes(out / "comparison.md", markdown(rows).encode())
        draw_comparison(rows, out / "comparison.png")
    return rows


def _row(study: Study, entry: Entry, out: Path, failed: dict[str, str]) -> Record:
    """Return what the finished runs of a configuration found."""
    summaries: dict[int, Record] = {}
    environment: Record = {}
    for seed in range(study.seeds):
        folder = out / "runs" / entry.run(seed)
        if (folder / "summary.json").is_file() and (folder / "config.json").is_file():
            summaries[seed] = read_json(folder / "summary.json")
            environment = environment or read_json(folder / "environment.json")
    found = list(summaries.values())
    accuracies = [summary["test_accuracy"] for summary in found]
    validations = [summary["last"]["validation_accuracy"] for summary in found]
    config = entry.config
    return {
        "model": config.model,
        "conv": config.conv,
        "width": config.width,
        "equal_to": entry.equal_to,
        "label": config.conv if config.width == 1 else f"{config.conv} x{config.width:.2f}",
        "dataset": found[0]["dataset"] if found else config.data,
        "recipe": config.recipe,
        "epochs": config.epochs,
        "parameters": found[0]["parameters"] if found else None,
        "multiply_adds": found[0]["multiply_adds"] if found else None,
        "accuracy_mean": statistics.fmean(accuracies) if accuracies else None,
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "n": len(accuracies),
        "seeds": list(summaries),
        "accuracies": accuracies,
        "validation_accuracies": validations,
        "validation_accuracy_mean": statistics.fmean(validations) if validations and None not in validations else None,
        "seconds_per_epoch": statistics.median(s["seconds_per_epoch"] for s in found) if found else None,
        "runs": [os.path.join("runs", entry.run(seed)) for seed in summaries],  # noqa: PTH118
        "failed": {str(seed): failed[entry.run(seed)] for seed in range(study.seeds) if entry.run(seed) in failed},
        "hardware": {key: environment.get(key) for key in ("cpu", "physical_cores", "logical_cores", "threads", "gpu")},
        "versions": {"python": environment.get("python"), **environment.get("versions", {})},
    }


def _difference(row: Record, baseline: Record | None) -> Record:
    """Return the difference to the dense net in points, and its standard error √(s₁²/n₁ + s₂²/n₂)."""
    nothing = {"difference": None, "difference_standard_error": None}
    if baseline is None or baseline is row or row["accuracy_mean"] is None or baseline["accuracy_mean"] is None:
        return nothing
    difference = row["accuracy_mean"] - baseline["accuracy_mean"]
    if row["accuracy_std"] is None or baseline["accuracy_std"] is None:
        return {**nothing, "difference": difference}
    error = math.sqrt(sum(r["accuracy_std"] ** 2 / r["n"] for r in (row, baseline)))
    return {"difference": difference, "difference_standard_error": error}


def _ignore(name: str, values: dict[str, Any]) -> None:
    """Tell nobody."""
