"""A search for the recipe: Optuna proposes, runs are trained, the validation split decides; the test split waits.

`search` prints nothing: it hands the events of `rotateconv.lab.study.events` to a callback.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotateconv.errors import ConfigError, RunError, first_line, needing
from rotateconv.lab.config import RunConfig, changed, changed_keys, from_json, to_json, to_toml
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.files import make_folder, write_bytes
from rotateconv.lab.study.events import (
    OnSearchEvent,
    RunDiverged,
    RunEvent,
    RunPruned,
    RunStopped,
    RunTrained,
    StudyStart,
    TaskEvent,
)
from rotateconv.lab.study.executor import Executor, run_tasks
from rotateconv.lab.study.pool import local_executor
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.build import build_configured, rotate_layers
from rotateconv.lab.train.events import EpochEnd, ignore
from rotateconv.lab.train.run_results import EpochRecord

if TYPE_CHECKING:
    import optuna

TRIALS = "search.db"
"""SQLite file of the trials, below the folder of a search."""
BEST = "best.toml"
"""The best configuration so far, as `rotateconv train --config` takes it."""
_CONTINUOUS, BITS = ("lr", "weight_decay", "angle_lr_scale"), ("weight_bits", "angle_bits")
"""Keys that can be searched: on a logarithmic scale, and one by one."""
_NAME = "recipe"  # of the one study in the file
_CONFIG = "configuration"  # that its trials start from
_WARMUP_TRIALS = 4  # before anything is pruned; and a third of the epochs, while the learning rate still rises

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value by key."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        config: The best configuration.
        accuracy: Its validation accuracy in percent after the last epoch.
        start_accuracy: That of the configuration which the search started from; None where it has none.
        trials: Trials that ended, pruned ones among them.
        pruned: Trials that were stopped early, or diverged.
    """

    config: RunConfig
    accuracy: float
    start_accuracy: float | None
    trials: int
    pruned: int


def default_ranges(config: RunConfig, data: DataDescription) -> dict[str, tuple[float, float]]:
    """Return what is searched where nothing is said: a tenth to ten times of what the configuration has.

    A weight decay of 0 stays, and so does the angles' learning rate of a model without learned angles.
    """
    with torch.device("meta"):
        model = build_configured(config.architecture, data)
    turns = any(layer.learn_angle for layer in rotate_layers(model).values())
    values = {key: getattr(config, key) for key in _CONTINUOUS if turns or key != "angle_lr_scale"}
    return {key: (value / 10, value * 10) for key, value in values.items() if value > 0}


def search(
    config: RunConfig,
    ranges: Ranges,
    out: str | Path,
    *,
    trials: int = 30,
    prune: bool = True,
    jobs: int | None = None,
    executor: Executor | None = None,
    trackers: tuple[str, ...] = (),
    on_event: OnSearchEvent | None = None,
) -> SearchResult:
    """Train configurations below `out`/trials until there are so many, and return the best by validation accuracy.

    The first trial is the configuration itself. The same call goes on after an interruption: trials that ended are
    kept, those that were interrupted go on. The best one so far is in `out`/best.toml.

    Args:
        config: What all trials share; all have its seed.
        ranges: Lowest and highest value of what is searched, by key of `_CONTINUOUS` and, with `qat`, `BITS`.
        out: Folder of the search.
        trials: Number of them, with those of earlier calls.
        prune: Stop a trial whose validation accuracy is below the median of the others at the same epoch.
        jobs, executor: As of `compare`.
        trackers: As of `compare`.
        on_event: Called with the events.

    Raises:
        RunInterrupted: Asked to stop; what was running is saved.
        ConfigError: A range or a configuration that cannot be searched, or Optuna is not installed.
        RunError: `out` holds the search of another configuration, or no trial reached an end.
    """
    optuna = _optuna()
    distributions = _distributions(optuna, config, ranges)
    if trials < 1:
        raise ConfigError(f"trials must be 1 or more, not {trials}")
    if not config.validation:
        raise ConfigError("a search chooses by the validation split: leave validation=false out")
    out = Path(out)
    study = _open(optuna, out / TRIALS, config, prune)
    report = on_event if on_event is not None else ignore
    states = optuna.trial.TrialState
    if not study.trials:
        study.enqueue_trial({key: getattr(config, key) for key in distributions})
    ended = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
    left = max(0, trials - ended)
    executor = executor if executor is not None else local_executor(left, jobs)
    report(StudyStart(max(trials, ended), ended, min(executor.jobs, max(1, left)), executor.threads))
    running: dict[str, Any] = {}
    behind: dict[str, EpochRecord] = {}

    def tasks() -> Iterator[Task]:
        unfinished = study.get_trials(states=(states.RUNNING,))
        for place in range(left):
            trial = (
                optuna.Trial(study, unfinished[place]._trial_id)
                if place < len(unfinished)
                else study.ask(distributions)
            )
            name = f"trial-{trial.number:04d}"
            folder = out / "trials" / name
            running[name] = trial
            yield Task(name, changed(config, trial.params), folder, trackers=trackers, tested=False)

    def on_task_event(event: TaskEvent) -> None:
        trial = running[event.run]
        match event:
            case RunEvent(name, EpochEnd(record)):
                report(event)
                assert record.validation_accuracy is not None
                with warnings.catch_warnings(action="ignore"):  # of an epoch that is trained a second time
                    trial.report(record.validation_accuracy, record.epoch)
                if record.epoch < config.epochs and trial.should_prune():
                    behind[name] = record
                    executor.cancel(name)
                return
            case RunTrained(record=record):
                study.tell(trial, record.validation_accuracy)
                write_bytes(out / BEST, to_toml(changed(config, study.best_trial.params)).encode())
            case RunStopped(name) if name in behind:
                study.tell(trial, state=states.PRUNED)
                report(RunPruned(name, behind[name]))
                return
            case RunDiverged():
                study.tell(trial, state=states.PRUNED)  # not as a failure, which would teach the sampler nothing
        report(event)

    run_tasks(tasks(), executor, left, on_task_event)
    return _result(study, config, out)


def _optuna() -> Any:
    with needing("search", "a search needs a package that does not import"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distributions(optuna: Any, config: RunConfig, ranges: Ranges) -> dict[str, Any]:
    """Return the ranges as Optuna has them; ConfigError where one has no meaning."""
    if not ranges:
        raise ConfigError("there is nothing to search: leave a range to one key at least")
    found: dict[str, Any] = {}
    for key, (low, high) in ranges.items():
        if key not in (*_CONTINUOUS, *BITS):
            raise ConfigError(f"{key} is not searched: choose from {', '.join((*_CONTINUOUS, *BITS))}")
        if key in BITS and not config.qat:
            raise ConfigError(f"a range of {key} is of training with qat: set qat=true (--qat) too, or leave it out")
        if not 0 < low < high:
            raise ConfigError(f"a range must be two rising numbers above 0, not {low:g},{high:g} of {key}")
        for value in (low, high):  # the other keys may forbid one
            changed(config, {key: int(value) if key in BITS else value})
        found[key] = (
            optuna.distributions.IntDistribution(int(low), int(high))
            if key in BITS
            else optuna.distributions.FloatDistribution(low, high, log=True)
        )
    return found


def _open(optuna: Any, file: Path, config: RunConfig, prune: bool) -> "optuna.Study":
    """Return the study in a file, which is made where there is none; RunError where it is of another configuration."""
    make_folder(file.parent)
    pruners = optuna.pruners
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        names = optuna.study.get_all_study_names(storage)
        count = len(optuna.load_study(study_name=_NAME, storage=storage).trials) if _NAME in names else 0
        study: optuna.Study = optuna.create_study(
            study_name=_NAME,
            storage=storage,
            load_if_exists=True,
            direction="maximize",
            # Another seed for every call, or what goes on would propose again what it proposed in the beginning.
            sampler=optuna.samplers.TPESampler(seed=config.seed + count, constant_liar=True),
            pruner=pruners.MedianPruner(_WARMUP_TRIALS, max(1, config.epochs // 3)) if prune else pruners.NopPruner(),
        )
        before = study.user_attrs.get(_CONFIG)
        if before is None:
            study.set_user_attr(_CONFIG, to_json(config))
    except Exception as error:  # of Optuna, SQLAlchemy or SQLite
        raise RunError(f"{file} holds no search that can go on ({first_line(error)}): choose another folder") from error
    if before is not None and (other := changed_keys(from_json(before), config)):
        raise RunError(f"the search in {file.parent} has {other}: go on with it unchanged or choose another folder")
    return study


def _result(study: "optuna.Study", config: RunConfig, out: Path) -> SearchResult:
    states = [trial.state.name for trial in study.trials]
    if "COMPLETE" not in states:
        raise RunError(f"no trial in {out} reached its end: search lower learning rates, or run more trials")
    first = study.trials[0]
    return SearchResult(
        config=changed(config, study.best_trial.params),
        accuracy=study.best_value,
        start_accuracy=first.value if first.state.name == "COMPLETE" else None,
        trials=states.count("COMPLETE") + states.count("PRUNED"),
        pruned=states.count("PRUNED"),
    )
