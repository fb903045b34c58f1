"""What a comparison tells while it runs, and its table."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rotateconv.lab.cli.console import duration, facts, say, show_table
from rotateconv.lab.cli.progress import data_line, recipe_line
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.naming import counted
from rotateconv.lab.report.page import CAPTION, SIZES_CAPTION
from rotateconv.lab.report.statistics import Group
from rotateconv.lab.report.tables import COMPARISON, MODEL, group_table, sizes_table
from rotateconv.lab.study.events import (
    RunDied,
    RunDiverged,
    RunEvent,
    RunPruned,
    RunTrained,
    SearchEvent,
    StudyEvent,
    StudyStart,
)
from rotateconv.lab.study.sizes import SizesTable
from rotateconv.lab.train.events import EpochEnd, Event, RunEnd, RunStart, RunWarning, StepEnd


class ComparisonProgress:
    """An event callback of `compare` and `search`, to be closed: bars on a terminal, a line a run elsewhere.

    Args:
        console: where it is shown.
        base: the recipe that the runs share.
        seeds: of each configuration; None where all runs have that of the recipe.
        data: the images.
        out: the folder.
    """

    def __init__(self, console: Console, base: RunConfig, seeds: int | None, data: DataDescription, out: Path) -> None:
        self.console, self.base, self.seeds, self.data, self.out = console, base, seeds, data, out
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.accuracy: dict[str, str] = {}
        self.total: TaskID | None = None
        self.runs = self.finished = 0
        self.began_at, self.began_with = time.monotonic(), 0

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: StudyEvent | SearchEvent) -> None:
        """Show an event."""
        match event:
            case StudyStart():
                self._plan(event)
            case RunEvent(run, inner):
                self._show(run, inner)
            case RunTrained(run, record):
                self._end(run, f"validation accuracy {record.validation_accuracy:.2f} %")
            case RunPruned(run, record):
                self._end(run, f"stopped at {record.validation_accuracy:.2f} % after epoch {record.epoch}")
            case RunDiverged(run, message):
                self._end(run, f"diverged: {message}")
            case RunDied(run, message):
                self._end(run, message)

    def _show(self, run: str, event: Event) -> None:
        match event:
            case RunStart():
                self._start(run, event)
            case StepEnd():
                self._step(run, event)
            case EpochEnd(record):
                if record.validation_accuracy is not None:
                    self.accuracy[run] = f"  acc {record.validation_accuracy:.1f} %"
            case RunWarning(message):
                say(self.console, f"warning: {run}: {message}")
            case RunEnd(summary):
                self._end(run, f"test accuracy {summary.test_accuracy:.2f} % in {duration(summary.seconds)}")

    def _plan(self, plan: StudyStart) -> None:
        self.runs, self.finished = plan.runs, plan.finished
        self.began_at, self.began_with = time.monotonic(), self.finished
        done = f", {self.finished} finished already" if self.finished else ""
        together = f", {plan.jobs} at a time with {counted(plan.threads, 'thread')} each"
        facts(
            self.console,
            {
                "folder": str(self.out),
                "data": data_line(self.data),
                "recipe": recipe_line(self.base, seeds=self.seeds),
                "runs": f"{self.runs}{done}{together if self.finished < self.runs else ''}",
            },
        )
        if not self.console.is_terminal or self.finished == self.runs:
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(None),
            TextColumn("{task.fields[told]}", markup=False),
        )
        self.bar = Progress(*columns, console=self.console, expand=True)
        self.total = self.bar.add_task("all runs", total=self.runs, completed=self.finished, told=self._left())
        self.bar.start()

    def _start(self, run: str, start: RunStart) -> None:
        if self.bar is not None:
            if run in self.tasks:  # it begins a second time, on another node
                self.bar.remove_task(self.tasks.pop(run))
            self.tasks[run] = self.bar.add_task(run, total=start.steps, completed=start.step, told="")

    def _step(self, run: str, step: StepEnd) -> None:
        if self.bar is None or run not in self.tasks:
            return
        loss = "" if step.loss is None else f"loss {step.loss:.3f}"
        told = f"epoch {step.epoch + 1}/{self.base.epochs} {loss}{self.accuracy.get(run, '')}"
        self.bar.update(self.tasks[run], completed=step.step, told=told)

    def _end(self, run: str, text: str) -> None:
        self.finished += 1
        say(self.console, f"{self.finished:{len(str(self.runs))}} of {self.runs} runs  {run}  {text}")
        if self.bar is None or self.total is None:
            return
        if run in self.tasks:
            self.bar.remove_task(self.tasks.pop(run))
        self.bar.update(self.total, completed=self.finished, told=self._left())

    def _left(self) -> str:
        """Return how far it is, and the time left once a run has told how long one takes."""
        done = self.finished - self.began_with
        if not done:
            return f"{self.finished} of {self.runs}"
        left = (time.monotonic() - self.began_at) / done * (self.runs - self.finished)
        return f"{self.finished} of {self.runs}, about {duration(left)} left"


def show_groups(console: Console, groups: Sequence[Group]) -> None:
    """Print the table of a comparison, one per model, and what the numbers mean."""
    for model in dict.fromkeys(group.model for group in groups):
        own = [group for group in groups if group.model == model]
        run = (*own[0].runs, *own[0].failed)[0]
        title = f"{run.data.name}, {model}, {counted(run.config.epochs, 'epoch')} of {run.config.recipe}"
        show_table(console, group_table(own, [column for column in COMPARISON if column is not MODEL]), title)
    console.print(CAPTION, style="dim", width=min(100, console.width))
    for group in groups:
        for run in group.failed:
            say(console, f"{group.model} {group.label}, seed {run.config.seed}: {run.failed}")
    console.print()


def show_sizes(console: Console, table: SizesTable) -> None:
    """Print accuracy against bytes, and what the numbers mean."""
    show_table(console, sizes_table(table.rows, strong=""), f"{table.dataset}: accuracy against bytes")
    console.print(SIZES_CAPTION, style="dim", width=min(100, console.width))
