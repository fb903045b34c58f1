"""The records of a run in experiment trackers, through Accelerate's own: nothing of it happens without the option."""

import dataclasses
import hashlib
import importlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rotateconv.errors import ConfigError, first_line, nearest, needing
from rotateconv.lab.train.events import EpochEnd, Event, RunEnd, RunStart
from rotateconv.lab.train.run_folder import read_config
from rotateconv.lab.train.run_results import EpochRecord

TRACKERS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Trackers by the name of their extra, and the module that each needs."""
PROJECT = "rotateconv"
"""What runs are filed under where a tracker has projects."""
_KEYS = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("angle_movement_mean", "angle_movement_max", "images_per_second"),
)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that is none of `TRACKERS`, or whose package does not import."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"unknown tracker {name!r}: {nearest(name, TRACKERS)}")
        with needing(name, f"--log-with {name} needs a package that does not import"):
            importlib.import_module(TRACKERS[name])


class Trackers:
    """An event callback of `fit`, to be closed, that hands every epoch's numbers to trackers.

    TensorBoard's files lie in RUN/tensorboard, wandb's in RUN/wandb, MLflow's in RUN/mlflow.db unless
    MLFLOW_TRACKING_URI says where, trackio's where trackio keeps all of its own. A run that goes on does so there too.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.started: list[Any] = []
        self.epoch = 0

    def close(self) -> None:
        """Write what is not written yet."""
        for tracker in self.started:
            tracker.finish()
        self.started = []

    def __call__(self, event: Event) -> None:
        """Note an event of `fit`."""
        match event:
            case RunStart():
                self.close()  # of the stage before
                self.started = [_start(name, event) for name in self.names]
            case EpochEnd(record):
                self.epoch = record.epoch
                for tracker in self.started:
                    tracker.log(_numbers(record), step=record.epoch)
            case RunEnd(summary):
                found = {"test_loss": summary.test_loss, "test_accuracy": summary.test_accuracy}
                for tracker in self.started:
                    tracker.log(found, step=self.epoch)


def _numbers(record: EpochRecord) -> dict[str, float]:
    rates = {f"learning_rate/{group}": rate for group, rate in record.learning_rates.items()}
    values = {**{key: getattr(record, key) for key in _KEYS}, **rates}
    return {key: value for key, value in values.items() if value is not None}


def _start(name: str, start: RunStart) -> Any:
    """Return a tracker of Accelerate that is ready for a run's numbers."""
    from accelerate import tracking

    run = start.run.resolve()
    make = tracking.LOGGER_TYPE_TO_CLASS[name]
    try:
        match name:
            case "tensorboard":
                if start.step == 0:
                    shutil.rmtree(run / name, ignore_errors=True)
                # What an earlier, interrupted run wrote beyond its last checkpoint is hidden.
                tracker = make(name, run, purge_step=start.epoch + 1)
            case "wandb":
                tracker = make(PROJECT, name=run.name, dir=run, id=_identity(run), resume="allow")
            case "mlflow":
                elsewhere = "MLFLOW_TRACKING_URI" in os.environ
                tracker = make(PROJECT, None if elsewhere else (run / "mlflow").as_uri(), **_mlflow_run(run, elsewhere))
            case _:
                tracker = make(PROJECT, name=f"{run.name}-{_identity(run)}", resume="allow")
        tracker.start()
        if start.step == 0:
            values = dataclasses.asdict(read_config(run, trusting=True))
            tracker.store_init_configuration({key: str(value) for key, value in values.items()})
    except Exception as error:  # each has its own, and most are a mistake of the user's set-up
        raise ConfigError(f"the tracker {name} does not start: {first_line(error)}") from error
    return tracker


def _identity(run: Path) -> str:
    """Return a name of a run that stays when it goes on, and is another one when it is overwritten."""
    made = (run / "config.json").stat().st_mtime_ns
    return hashlib.sha256(f"{run} {made}".encode()).hexdigest()[:8]


def _mlflow_run(run: Path, elsewhere: bool) -> dict[str, Any]:
    """Return the number that MLflow gave a run which goes on, or the name of a new one."""
    import mlflow

    if not elsewhere:
        mlflow.set_tracking_uri(f"sqlite:///{run / 'mlflow.db'}")
    tag = _identity(run)
    found = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.rotateconv = '{tag}'", output_format="list"
    )
    return {"run_id": found[0].info.run_id} if found else {"run_name": run.name, "tags": {"rotateconv": tag}}
