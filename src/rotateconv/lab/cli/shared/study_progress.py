"""What is reported of the runs of a study while they are done."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rotateconv.lab.cli.shared.console import duration, facts, say
from rotateconv.lab.cli.shared.progress import data_line, recipe_line
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.naming import counted
from rotateconv.lab.study import events
from rotateconv.lab.train.events import EpochEnd, RunEnd, RunStart, RunWarning, StepEnd


class StudyProgress:
    """An event callback of `compare`, `search` and `shrink`, to be closed: bars on a terminal, a line a run elsewhere.

    The number of seeds is that of each configuration; None where all runs have that of the recipe.
    """

    def __init__(self, console: Console, base: RunConfig, seeds: int | None, data: DataDescription, out: Path) -> None:
        self.console, self.base, self.seeds, self.data, self.out = console, base, seeds, data, out
        name, message = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[message]"))
        self.bar = Progress(
            name, BarColumn(None), message, console=console, expand=True, disable=not console.is_terminal
        )
        self.total = self.bar.add_task("all runs", message="")
        self.tasks: dict[str, TaskID] = {}
        self.accuracy: dict[str, str] = {}
        self.runs = self.finished = self.began_with = 0
        self.began_at = time.monotonic()

    def close(self) -> None:
        """Take the bars away."""
        self.bar.stop()

    def __call__(self, event: events.StudyEvent | events.SearchEvent) -> None:
        """Show an event."""
        match event:
            case events.StudyStart():
                self._plan(event)
            case events.RunEvent(run, RunStart() as start):
                self._remove(run)  # it may begin a second time, on another node
                self.tasks[run] = self.bar.add_task(run, total=start.steps, completed=start.step, message="")
            case events.RunEvent(run, StepEnd() as step) if run in self.tasks:
                loss = "" if step.loss is None else f"loss {step.loss:.3f}"
                message = f"epoch {step.epoch + 1}/{self.base.epochs} {loss}{self.accuracy.get(run, '')}"
                self.bar.update(self.tasks[run], completed=step.step, message=message)
            case events.RunEvent(run, EpochEnd(record)) if record.validation_accuracy is not None:
                self.accuracy[run] = f"  acc {record.validation_accuracy:.1f} %"
            case events.RunEvent(run, RunWarning(message)):
                say(self.console, f"warning: {run}: {message}")
            case events.RunEvent(run, RunEnd(summary)):
                self._end(run, f"test accuracy {summary.test_accuracy:.2f} % in {duration(summary.seconds)}")
            case events.RunTrained(run, record):
                self._end(run, f"validation accuracy {record.validation_accuracy:.2f} %")
            case events.RunPruned(run, record):
                self._end(run, f"stopped at {record.validation_accuracy:.2f} % after epoch {record.epoch}")
            case events.RunDiverged(run, message):
                self._end(run, f"diverged: {message}")
            case events.RunDied(run, message):
                self._end(run, message)

    def _plan(self, plan: events.StudyStart) -> None:
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
        self.bar.update(self.total, total=self.runs, completed=self.finished, message=self._left())
        if self.finished < self.runs:
            self.bar.start()

    def _end(self, run: str, text: str) -> None:
        self.finished += 1
        say(self.console, f"{self.finished:{len(str(self.runs))}} of {self.runs} runs  {run}  {text}")
        self._remove(run)
        self.bar.update(self.total, completed=self.finished, message=self._left())

    def _remove(self, run: str) -> None:
        if run in self.tasks:
            self.bar.remove_task(self.tasks.pop(run))

    def _left(self) -> str:
        """Return how far it is, and the time left once a run has shown how long one takes."""
        done = self.finished - self.began_with
        if not done:
            return f"{self.finished} of {self.runs}"
        left = (time.monotonic() - self.began_at) / done * (self.runs - self.finished)
        return f"{self.finished} of {self.runs}, about {duration(left)} left"
