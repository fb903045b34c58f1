"""What `fit` reports while it trains: a callback gets one of these values at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rotateconv.lab.train.run_results import EpochRecord, RunSummary


@dataclass(frozen=True)
class RunStart:
    """A run begins, or goes on.

    Attributes:
        run: Its folder.
        device: That it trains on.
        processes: That train it together.
        parameters: Of the model.
        num_samples: Training images of an epoch.
        epochs, steps: Of the whole run.
        epoch, step: Finished already.
    """

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
    """A training step is done.

    Attributes:
        epoch: Finished epochs.
        step: Finished steps of the run.
        steps: Of the whole run.
        num_samples: Images of this epoch so far.
        loss: Mean of this epoch so far; None where it was not read from the device yet.
        seconds: Of this epoch so far.
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
