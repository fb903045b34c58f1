"""Laws of a search: the validation split decides, the test split changes nothing, no trial is lost or done twice."""

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from commands import invoke
from image_folders import write_folder
from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.config import RunConfig, make_config, to_toml
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.exit_codes import Failure
from rotateconv.lab.study import search as library
from rotateconv.lab.study.events import RunDiverged, RunEvent, RunPruned, RunStopped, RunTrained, TaskEvent
from rotateconv.lab.study.search import BEST, default_ranges, search
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train import fit as training
from rotateconv.lab.train import loop
from rotateconv.lab.train.events import EpochEnd
from rotateconv.lab.train.run_folder import read_records
from rotateconv.lab.train.run_results import EpochRecord
from small import small_digits, tiny_config

optuna = pytest.importorskip("optuna", reason="Optuna is not installed")
DIGITS = DataDescription.of(small_digits())
RANGES = {"lr": (0.01, 1.0), "weight_decay": (1e-5, 1e-2)}


def epoch(number: int, accuracy: float) -> EpochRecord:
    return EpochRecord(number, number, 1.0, 50.0, 1.0, accuracy, {}, None, None, None, 1.0, 1.0, 1.0, 1, None)


class FakeExecutor:
    """Trains nothing: the accuracy of a configuration follows from its learning rate, best at 0.3."""

    jobs, threads = 2, 1

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.tasks: list[Task] = []
        self.cancelled: set[str] = set()
        self.done: list[Task] = []
        self.stop_after = stop_after

    def submit(self, task: Task) -> None:
        assert not task.tested
        self.tasks.append(task)

    def events(self) -> Iterator[TaskEvent | Failure]:
        task = self.tasks.pop(0)
        self.done.append(task)
        if self.stop_after is not None and len(self.done) > self.stop_after:
            yield RunStopped(task.name)
            return
        if task.config.lr > 0.95:
            yield RunDiverged(task.name, "the loss became infinite")
            return
        accuracy = 90 - 50 * abs(task.config.lr - 0.3)
        for number in range(1, task.config.epochs + 1):
            yield RunEvent(task.name, EpochEnd(epoch(number, accuracy)))
            if task.name in self.cancelled:
                yield RunStopped(task.name)
                return
        yield RunTrained(task.name, epoch(task.config.epochs, accuracy))

    def cancel(self, run: str) -> None:
        self.cancelled.add(run)

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_the_best_of_the_trials_is_the_one_that_is_written(tmp_path: Path) -> None:
    config, executor = make_config("digits"), FakeExecutor()
    heard: list[Any] = []
    found = search(config, RANGES, tmp_path, trials=30, executor=executor, on_event=heard.append)
    assert len({task.name for task in executor.done}) == len(executor.done) == found.trials == 30
    assert executor.done[0].config == config
    pruned = [event for event in heard if isinstance(event, RunPruned)]
    diverged = [event for event in heard if isinstance(event, RunDiverged)]
    assert len(pruned) == len(executor.cancelled) > 0
    assert found.pruned == len(pruned) + len(diverged)
    best = min((task.config for task in executor.done), key=lambda tried: abs(tried.lr - 0.3))
    assert found.config == best
    assert found.accuracy == pytest.approx(90 - 50 * abs(best.lr - 0.3))
    assert found.accuracy > found.start_accuracy
    assert make_config(file=tmp_path / BEST) == best
    assert all(
        low <= getattr(task.config, key) <= high for task in executor.done for key, (low, high) in RANGES.items()
    )


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_with_its_trials(tmp_path: Path) -> None:
    config = make_config("digits")
    first = FakeExecutor(stop_after=5)
    assert search(config, RANGES, tmp_path, trials=6, executor=first, prune=False).trials == 5
    second = FakeExecutor()
    assert search(config, RANGES, tmp_path, trials=10, executor=second, prune=False).trials == 10
    assert [task.name for task in second.done] == [f"trial-{number:04d}" for number in range(5, 10)]
    assert second.done[0].config == first.done[5].config
    proposed = [task.config.lr for task in (*first.done[:5], *second.done)]
    assert len(set(proposed)) == 10  # it does not begin with the same proposals again
    third = FakeExecutor()
    assert search(config, RANGES, tmp_path, trials=10, executor=third).trials == 10
    assert third.done == []


@pytest.mark.parametrize(
    ("changes", "ranges", "sentence"),
    [
        ({}, {"lr": (0.2, 0.1)}, "a range must be two rising numbers above 0, not 0.2,0.1 of lr"),
        ({}, {"momentum": (0.1, 0.9)}, "momentum is not searched: choose from lr, weight_decay"),
        ({}, {"weight_bits": (2, 4)}, "a range of weight_bits is of training with qat"),
        ({"qat": True}, {"weight_bits": (2, 40)}, "weight_bits"),
        ({"validation": False}, RANGES, "a search chooses by the validation split"),
        ({}, {}, "there is nothing to search"),
    ],
)
def test_what_cannot_be_searched(tmp_path: Path, changes: Any, ranges: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        search(make_config("digits", changes=changes), ranges, tmp_path / "out", executor=FakeExecutor())
    assert not (tmp_path / "out").exists()


def test_another_configuration_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    search(make_config("digits"), RANGES, tmp_path, trials=1, executor=FakeExecutor())
    with pytest.raises(RunError, match="has epochs 20, not 3: go on with it unchanged or choose another folder"):
        search(make_config("digits", changes={"epochs": 3}), RANGES, tmp_path, executor=FakeExecutor())
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / library.TRIALS).write_text("no database" * 100)
    with pytest.raises(RunError, match="holds no search that can go on"):
        search(make_config("digits"), RANGES, tmp_path / "foreign", executor=FakeExecutor())


def test_a_search_without_a_trial_that_ends_is_a_sentence(tmp_path: Path) -> None:
    config = make_config("digits", changes={"lr": 0.99})
    with pytest.raises(RunError, match=r"no trial in .* reached its end"):
        search(config, {"lr": (0.96, 1.0)}, tmp_path, trials=2, executor=FakeExecutor())


def test_optuna_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"a search needs a package that does not import .*'rotateconv\[search\]'"):
        search(make_config("digits"), RANGES, tmp_path)


def test_what_is_searched_where_nothing_is_said() -> None:
    ranges = default_ranges(make_config("digits"), DIGITS)
    assert ranges == {"lr": (0.02, 2.0), "weight_decay": pytest.approx((5e-5, 5e-3)), "angle_lr_scale": (0.1, 10.0)}
    for changes in ({"conv": "conv3x3"}, {"conv": "rotate4-fixed"}):
        assert "angle_lr_scale" not in default_ranges(make_config("digits", changes=changes), DIGITS)
    assert "weight_decay" not in default_ranges(make_config("digits", changes={"weight_decay": 0.0}), DIGITS)


@pytest.mark.parametrize("changes", [{}, {"lr": 1e-7, "milestones": (0.25, 0.5), "qat": True, "data_dir": 'a"b\\c'}])
def test_a_configuration_survives_its_file(tmp_path: Path, changes: Any) -> None:
    config: RunConfig = make_config("quick", changes=changes)
    (tmp_path / "file.toml").write_text(to_toml(config))
    assert make_config(file=tmp_path / "file.toml") == config


def test_a_run_without_a_test_evaluates_no_test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rotateconv.models import MODELS
    from small import Tiny

    monkeypatch.setitem(MODELS, "tiny", Tiny)
    data, seen = small_digits(), []
    evaluate = loop.evaluate

    def note(*args: Any) -> Any:
        seen.append(evaluate(*args))
        return seen[-1]

    monkeypatch.setattr(loop, "evaluate", note)
    last = training.train(tiny_config(), tmp_path / "run", data=data)
    assert [found.count for found in seen] == [len(data.validation)] * 3
    assert read_records(tmp_path / "run")[2:] == [last]
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = training.fit(tiny_config(), tmp_path / "run", data=data, resume=True)
    assert seen[-1].count == len(data.test)
    assert summary.test_accuracy == training.fit(tiny_config(), tmp_path / "other", data=data).test_accuracy


@pytest.mark.slow
def test_the_test_split_changes_nothing(tmp_path: Path) -> None:
    """Two folders with the same images to train on and others to test on: the same trials, bit for bit."""
    found = []
    for number in range(2):
        folder = tmp_path / f"data{number}"
        write_folder(folder)
        if number:
            for file in sorted((folder / "test").glob("*/*.png")):
                Image.effect_noise((6, 5), 50).convert("RGB").save(file)
        out = tmp_path / f"out{number}"
        options = ["--data", "folder", "--data-dir", folder, "--image-size", "8", "--width", "0.25", "--epochs", "2"]
        search_ = ["--trials", "3", "--jobs", "1", "--batch-size", "8", "--out", out]
        result = invoke(["search", *options, *search_])
        assert result.exit_code == 0, result.output
        assert not any(b"test_accuracy" in file.read_bytes() for file in out.rglob("*") if file.is_file())
        trials = sorted((out / "trials").iterdir())
        found.append([(record.validation_loss, record.train_loss) for run in trials for record in read_records(run)])
        found[-1].append((out / BEST).read_text().replace(str(folder), ""))
    assert len(found[0]) >= 4
    assert found[0] == found[1]


@pytest.mark.slow
def test_ctrl_c_saves_the_trials_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--width", "0.25", "--epochs", "6", "--trials", "2", "--jobs", "1", "--no-pruning", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "rotateconv", "search", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "trials" / "trial-0000" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.startswith(
        "stopped after 0 of 2 runs; those that were running are saved: go on with rotateconv search"
    )
    result = invoke(shlex.split(error.partition("go on with ")[2])[1:])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (out / "trials").iterdir()) == ["trial-0000", "trial-0001"]
    assert [len(read_records(path)) for path in sorted((out / "trials").iterdir())] == [6, 6]
    assert (out / BEST).read_text().startswith('recipe = "digits"')
    assert (out / BEST).read_text() in result.stdout
