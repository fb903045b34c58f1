"""What `rotateconv shrink` reports while candidates are tried."""

from pathlib import Path

from rich.console import Console

from rotateconv.lab.cli.shared.console import say
from rotateconv.lab.cli.shared.progress import FittingProgress
from rotateconv.lab.cli.shared.study_progress import StudyProgress
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.naming import counted
from rotateconv.lab.study.events import LayerFitted, RungStart, ShrinkEvent, TrialEnd
from rotateconv.lab.study.shrink_record import result
from rotateconv.lab.train.events import RunWarning


class ShrinkProgress:
    """An event callback of `shrink`, to be closed: a bar for each fit or rung, and a line for each trial."""

    def __init__(self, console: Console, settings: RunConfig, data: DataDescription, out: Path) -> None:
        self.console, self.settings, self.data, self.out = console, settings, data, out
        self.fitting: FittingProgress | None = None
        self.training: StudyProgress | None = None

    def close(self) -> None:
        """Take the bars away."""
        if self.training is not None:
            self.training.close()
        if self.fitting is not None:
            self.fitting.bar.stop()
        self.training = self.fitting = None

    def __call__(self, event: ShrinkEvent) -> None:
        """Show an event."""
        match event:
            case LayerFitted(done):
                if done == 1 or self.fitting is None:
                    self.fitting = FittingProgress(self.console)
                self.fitting.show(event)
            case RungStart(what, candidates, epochs):
                self.close()
                trained = f" for {counted(epochs, 'epoch')}" if epochs else ""
                say(self.console, f"{counted(candidates, 'candidate')} {what}{trained}")
                if epochs:
                    recipe = RunConfig(**{**vars(self.settings), "epochs": epochs})
                    self.training = StudyProgress(self.console, recipe, None, self.data, self.out)
            case TrialEnd(trial, limit):
                size = "" if trial.bytes is None else f"{trial.bytes:,} bytes  "
                after = f"{counted(trial.epochs, 'epoch')}  " if trial.epochs else ""
                say(self.console, f"  {trial.candidate.described:22}  {after}{size}{result(trial, limit)}")
            case RunWarning(message):
                say(self.console, f"warning: {message}")
            case _ if self.training is not None:
                self.training(event)
