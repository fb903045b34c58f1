"""What a training run reports while it runs: a bar on a terminal, a line per epoch elsewhere."""

import dataclasses
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rotateconv.lab.cli.shared.console import duration, facts, printable, say
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.naming import counted, model_name
from rotateconv.lab.study.events import LayerFitted
from rotateconv.lab.train.events import EpochEnd, Event, RunStart, RunWarning, StepEnd

_EVERY = 0.1  # seconds between two updates of the bar


class TrainingProgress:
    """An event callback of `fit`, to be closed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(None),
            TextColumn("{task.fields[loss]}{task.fields[accuracy]}{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, expand=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("")
        self.accuracy = ""
        self.began_at = self.updated_at = time.monotonic()
        self.first_step = self.steps = self.epochs = 0

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show an event of `fit`."""
        match event:
            case RunStart():
                self._start(event)
            case StepEnd():
                self._step(event)
            case EpochEnd():
                self._epoch(event)
            case RunWarning():
                say(self.console, f"warning: {event.message}")

    def _start(self, start: RunStart) -> None:
        facts(self.console, _run_facts(start))
        self.began_at, self.first_step, self.steps = time.monotonic(), start.step, start.steps
        self.epochs = start.epochs
        epoch = f"{start.epoch + 1}/{start.epochs}"
        texts: dict[str, Any] = {"epoch": epoch, "loss": "", "accuracy": "", "speed": ""}
        self.bar.reset(self.task, total=start.steps, completed=start.step, **texts)
        self.bar.start()

    def _step(self, step: StepEnd) -> None:
        now = time.monotonic()
        if now - self.updated_at < _EVERY and step.step < step.steps:
            return
        self.updated_at = now
        self.bar.update(
            self.task,
            completed=step.step,
            epoch=f"{step.epoch + 1}/{self.epochs}",
            loss="" if step.loss is None else f"loss {step.loss:.3f}",
            accuracy=self.accuracy,
            speed=f"  {step.num_samples / step.seconds:,.0f} img/s",
        )

    def _epoch(self, event: EpochEnd) -> None:
        record = event.record
        kind, accuracy = "validation", record.validation_accuracy
        if accuracy is None:
            kind, accuracy = "train", record.train_accuracy
        self.accuracy = f"  acc {accuracy:.1f} %"
        if self.console.is_terminal:
            return
        passed = time.monotonic() - self.began_at
        left = passed / max(1, record.step - self.first_step) * (self.steps - record.step)
        epochs = str(self.epochs)
        say(
            self.console,
            f"epoch {record.epoch:{len(epochs)}}/{epochs}  loss {record.train_loss:.4f}  "
            f"{kind} accuracy {accuracy:.2f} %  {record.images_per_second:,.0f} images/s  {duration(left)} left",
        )


def _run_facts(start: RunStart) -> dict[str, str]:
    """Return what the first lines of a run say, by name; its folder has been written by then."""
    import torch

    from rotateconv.lab.train.run_folder import read_config, read_description

    config, data = read_config(start.run, trusting=True), read_description(start.run)
    threads = f", {counted(torch.get_num_threads(), 'thread')}" if start.device == "cpu" else ""
    processes = f", {start.processes} processes" if start.processes > 1 else ""
    rows = {
        "run": str(start.run),
        "device": f"{start.device}{threads}{processes}",
        "model": f"{model_name(config)}: {start.parameters:,} parameters",
        "data": data_line(dataclasses.replace(data, train=start.num_samples)),
        "recipe": recipe_line(config),
    }
    if start.step:
        rows["resumed"] = f"after step {start.step:,} of {start.steps:,}"
    return rows


def data_line(data: DataDescription) -> str:
    """Return what a model is trained on, in one line."""
    return (
        f"{data.name}: {data.train:,} training, {data.validation:,} validation, {data.test:,} test images, "
        f"{' x '.join(map(str, data.input_shape))}, {len(data.classes)} classes"
    )


def recipe_line(config: RunConfig, *, seeds: int | None = None) -> str:
    """Return a recipe in one line; with a number of seeds in place of the one."""
    seed = f"seed {config.seed}" if seeds is None else counted(seeds, "seed")
    return (
        f"{config.recipe}: {counted(config.epochs, 'epoch')} of batch {config.batch_size}, {config.optimizer}, "
        f"lr {config.lr:g}, {config.schedule}, {seed}"
    )


class FittingProgress:
    """A bar while the layers of a model are fitted, gone with the last of them."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("fitting {task.fields[layer]}", markup=False), BarColumn(None), MofNCompleteColumn())
        self.bar = Progress(*columns, console=console, expand=True, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", layer="")

    def show(self, fit: LayerFitted) -> None:
        """Show how far the fit is."""
        self.bar.start()
        self.bar.update(self.task, completed=fit.done, total=fit.total, layer=printable(fit.name))
        if fit.done == fit.total:
            self.bar.stop()
