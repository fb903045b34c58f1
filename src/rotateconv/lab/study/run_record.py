"""What a run is and what it found, in one frozen dataclass: what reports are made of."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotateconv.errors import ConfigError, RunError
from rotateconv.lab import config as configuration
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.plain import Plain, from_json, to_json
from rotateconv.lab.study.angles import RunAnalysis, analysis_from_json
from rotateconv.lab.train.environment import EnvironmentHistory
from rotateconv.lab.train.run_results import EpochRecord, RunSummary

SHARED_KEYS = ("config", "environment", "data")
"""Of a run's JSON: what the runs of a study have mostly in common."""
PLACES = ("data_dir", "checkpoint_seconds", "checkpoint_steps", "cuda_graph")
"""Keys of a configuration that are a machine's: they say nothing on another."""

_KEYS = {"run", *SHARED_KEYS, "summary", "metrics", "equal_to", "failed", "analysis"}
_DIGITS = 6  # of curves and analysis: more than a picture or a table shows


@dataclass(frozen=True)
class Curves(Plain):
    """Quantities of `EpochRecord`, an entry per epoch.

    Attributes:
        train_loss, train_accuracy, validation_loss, validation_accuracy: In nats and percent.
        angle_movement_mean, angle_movement_max: In radians; None without angles.
        seconds: Spent in training.
        angle_movement_layers: The mean of each layer, only of an analysed run, for its picture.
    """

    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    validation_loss: tuple[float | None, ...]
    validation_accuracy: tuple[float | None, ...]
    angle_movement_mean: tuple[float | None, ...]
    angle_movement_max: tuple[float | None, ...]
    seconds: tuple[float, ...]
    angle_movement_layers: tuple[tuple[float, ...] | None, ...] = ()

    @classmethod
    def of(cls, records: Sequence[EpochRecord], *, layers: bool) -> "Curves":
        """Return the curves of a run's records."""
        names = [field.name for field in dataclasses.fields(cls)][: None if layers else -1]
        columns = {name: short([getattr(record, name) for record in records]) for name in names}
        return cls(**{name: tuple(column) for name, column in columns.items()})


@dataclass(frozen=True)
class RunRecord:
    """What a run is and what it found.

    Attributes:
        name: Of its folder.
        config: Its configuration, without what says where files lie.
        environment: Where it was made, without what no number depends on.
        data: The images.
        summary: What it found in the end, without the confusion matrix; None where it has no result.
        curves: What its epochs found.
        equal_to: The convolution whose size a narrowed dense model has, or None.
        failed: Why the run has no result, or None.
        analysis: What `rotateconv.lab.study.angles` found, or None.
    """

    name: str
    config: RunConfig
    environment: EnvironmentHistory
    data: DataDescription
    summary: RunSummary | None
    curves: Curves
    equal_to: str | None = None
    failed: str | None = None
    analysis: RunAnalysis | None = None

    @property
    def result(self) -> RunSummary:
        """The summary of a run that has one."""
        if self.summary is None:
            raise RunError(f"the run {self.name} has no result: {self.failed}")
        return self.summary

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str | Path) -> "RunRecord":
        """Return what `to_json` described; RunError for anything else."""
        if value.keys() != _KEYS:
            raise RunError(
                f"{where} has a run with {', '.join(sorted(value))}, not {', '.join(sorted(_KEYS))}: write it again"
            )
        where = f"{where}, run {value['run']}"
        summary, analysis = value["summary"], value["analysis"]
        try:
            config = configuration.from_json(json.dumps(value["config"]))
        except ConfigError as error:
            raise RunError(f"{where}: {error}") from None
        return cls(
            name=str(value["run"]),
            config=config,
            environment=EnvironmentHistory.from_json(value["environment"], where),
            data=from_json(DataDescription, value["data"], where),
            summary=from_json(RunSummary, summary, where) if summary is not None else None,
            curves=from_json(Curves, value["metrics"], where),
            equal_to=value["equal_to"],
            failed=value["failed"],
            analysis=analysis_from_json(analysis, where) if analysis is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as `json.dumps` takes it."""
        config = json.loads(configuration.to_json(self.config))
        return {
            "run": self.name,
            "config": {key: value for key, value in config.items() if key not in PLACES},
            "environment": self.environment.to_json(),
            "data": to_json(self.data),
            "summary": to_json(self.summary) if self.summary is not None else None,
            "metrics": to_json(self.curves),
            "equal_to": self.equal_to,
            "failed": self.failed,
            "analysis": short(to_json(self.analysis)) if self.analysis is not None else None,
        }


def short(value: Any) -> Any:
    """Return a JSON value, tuples allowed, with its numbers rounded to what anybody reads."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list | tuple):
        return type(value)(short(item) for item in value)
    return {key: short(item) for key, item in value.items()} if isinstance(value, dict) else value
