"""What `fit` reports while it trains: a callback gets one of these values at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rotateconv.lab.train.run_results import EpochRecord, RunSummary


@dataclass(frozen=True)
class RunStart:
    """A run begins, or goes on after so many epochs and steps; an epoch has so many training images."""

    run: Path
    device: str
    processes: int
    parameters: int
    num_samples: int
    epochs: int
    steps: int
    epoch: int
    step: int


@dataclass(frozen=True)
class StepEnd:
    """A training step is done, of the run's `steps`; `epoch` and `step` are finished.

    Images, mean loss (None where it was not read from the device yet) and seconds are of this epoch so far.
    """

    epoch: int
    step: int
    steps: int
    num_samples: int
    loss: float | None
    seconds: float


@dataclass(frozen=True)
class EpochEnd:
    """An epoch is trained, evaluated and written; `record` is its line of metrics.jsonl."""

    record: EpochRecord


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint was written to `path` after `step` steps."""

    path: Path
    step: int


@dataclass(frozen=True)
class RunWarning:
    """Something that the user should know, in one sentence."""

    message: str


@dataclass(frozen=True)
class RunEnd:
    """The run is finished; `summary` is its summary.json."""

    summary: RunSummary


Event = RunStart | StepEnd | EpochEnd | CheckpointSaved | RunWarning | RunEnd
OnEvent = Callable[[Event], None]


def ignore(event: object) -> None:
    """Report to nobody."""
