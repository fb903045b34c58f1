"""What a study and a conversion report while they work: a callback gets one of these values at a time."""

from collections.abc import Callable
from dataclasses import dataclass

from rotateconv.convert.report import ConversionReport
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.shrink_record import Trial
from rotateconv.lab.train.events import Event, RunEnd, RunWarning
from rotateconv.lab.train.run_results import EpochRecord
from rotateconv.quantization.allocate import Allocation


@dataclass(frozen=True)
class StudyStart:
    """A study begins, or goes on: all runs, those finished before, runs at a time, and the threads of each."""

    runs: int
    finished: int
    jobs: int
    threads: int


@dataclass(frozen=True)
class RunEvent:
    """An event of `fit`, and the name of the run that it is of."""

    run: str
    event: Event


@dataclass(frozen=True)
class RunTrained:
    """A run is trained, and its test split was left alone; `record` is of its last epoch."""

    run: str
    record: EpochRecord


@dataclass(frozen=True)
class RunDiverged:
    """A run ended for good because its loss or a weight is no longer finite."""

    run: str
    message: str


@dataclass(frozen=True)
class RunDied:
    """The process of a run ended without a word; the same command goes on with the run."""

    run: str
    message: str


@dataclass(frozen=True)
class RunStopped:
    """A run saved itself because the study was asked to stop."""

    run: str


@dataclass(frozen=True)
class RunPruned:
    """A run of a search was stopped after an epoch that left it behind the others; `record` is of that epoch."""

    run: str
    record: EpochRecord


@dataclass(frozen=True)
class RecordsChanged:
    """What is known of the study's runs, after one of them ended."""

    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class LayerFitted:
    """A layer of a model that is converted is fitted; where images are looked at, there are two fits for each layer."""

    done: int
    total: int
    name: str


@dataclass(frozen=True)
class BitsAllocated:
    """The bits that a budget of bytes leaves a model are chosen."""

    allocation: Allocation


@dataclass(frozen=True)
class ModelFitted:
    """A trained model is converted and not trained yet: the report of its layers, and validation accuracies.

    They are of the trained model, of that with the nearest RotateConv layers, of this with its norms recalibrated, and
    of this with bits, where there are any.
    """

    source: float
    fitted: float
    calibrated: float
    report: ConversionReport
    quantized: float | None = None


@dataclass(frozen=True)
class StageStart:
    """A training run of a conversion begins, the `stage`-th of `stages`."""

    stage: int
    stages: int


@dataclass(frozen=True)
class RungStart:
    """A rung of `shrink` begins: what it does with so many candidates, and the epochs that each is trained."""

    what: str
    candidates: int
    epochs: int = 0


@dataclass(frozen=True)
class TrialEnd:
    """A candidate of `shrink` was tried in a rung; the budget is that of the search, in bytes."""

    trial: Trial
    budget: int


TaskEvent = RunEvent | RunTrained | RunDiverged | RunDied | RunStopped
StudyEvent = StudyStart | TaskEvent | RecordsChanged
SearchEvent = StudyStart | TaskEvent | RunPruned
ShrinkEvent = RungStart | TrialEnd | LayerFitted | StudyStart | TaskEvent | RunWarning
ConversionEvent = LayerFitted | BitsAllocated | ModelFitted | StageStart | Event
OnTaskEvent = Callable[[TaskEvent], None]
OnStudyEvent = Callable[[StudyEvent], None]
OnSearchEvent = Callable[[SearchEvent], None]
OnShrinkEvent = Callable[[ShrinkEvent], None]
OnConversionEvent = Callable[[ConversionEvent], None]


def is_last(event: TaskEvent) -> bool:
    """Whether an event is the last one of its run."""
    return not isinstance(event, RunEvent) or isinstance(event.event, RunEnd)
