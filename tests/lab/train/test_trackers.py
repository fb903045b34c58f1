"""Laws of trackers: they hold every epoch's numbers once, also of a run that goes on; unasked, none is loaded."""

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from commands import invoke
from rotateconv.errors import ConfigError, RunInterrupted
from rotateconv.lab.train.events import Event
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.run_folder import read_records
from rotateconv.lab.train.trackers import TRACKERS, Trackers
from small import StopAt, small_digits, tiny_config

KEYS = ("train_loss", "validation_accuracy", "angle_movement_mean", "learning_rate/angles", "test_accuracy")


pytestmark = pytest.mark.usefixtures("tiny")


Found = dict[str, list[tuple[int, float]]]


def in_tensorboard(run: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {key: [(scalar.step, scalar.value) for scalar in events.Scalars(key)] for key in KEYS}


def in_wandb(run: Path) -> Found:
    """The values in wandb's own format, in no order: a key, and behind it the text of a number."""
    files = b"".join(file.read_bytes() for file in (run / "wandb").glob("offline-run-*/*.wandb"))
    found = {key: re.findall(re.escape(key.encode()) + rb"\x82\x01.([-+.\de]+)", files, re.DOTALL) for key in KEYS}
    return {key: sorted({(0, float(value)) for value in values}) for key, values in found.items()}


def in_mlflow(run: Path) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (only,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    found = {key: client.get_metric_history(only.info.run_id, key) for key in KEYS}
    assert only.data.params["conv"] == "rotate4"
    return {key: sorted({(metric.step, metric.value) for metric in values}) for key, values in found.items()}


def in_trackio(run: Path) -> Found:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("rotateconv")
    logs = SQLiteStorage.get_logs("rotateconv", name)
    return {key: sorted({(log["step"], log[key]) for log in logs if key in log}) for key in KEYS}


READERS: dict[str, Callable[[Path], Found]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}


def test_each_tracker_is_read() -> None:
    assert READERS.keys() == TRACKERS.keys()


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_tracker_holds_the_records(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(TRACKERS[name], reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    data, run = small_digits(), tmp_path / "run"
    stop = StopAt(6)  # in the second of three epochs

    def on_event(event: Event) -> None:
        tracked(event)
        stop(event)

    with pytest.raises(RunInterrupted), closing(Trackers([name])) as tracked:
        fit(tiny_config(), run, data=data, on_event=on_event)
    with closing(Trackers([name])) as tracked:
        summary = fit(tiny_config(), run, data=data, resume=True, on_event=tracked)
    found = READERS[name](run)
    steps = (lambda step: 0) if name == "wandb" else (lambda step: step)
    for key in KEYS[:3]:
        expected = sorted({(steps(record.epoch), getattr(record, key)) for record in read_records(run)})
        assert [step for step, _ in found[key]] == [step for step, _ in expected], key
        assert [value for _, value in found[key]] == pytest.approx([value for _, value in expected]), key
    assert len(found["learning_rate/angles"]) == 3
    assert found["test_accuracy"] == [(steps(3), pytest.approx(summary.test_accuracy))]


def test_a_tracker_that_does_not_start_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: (tmp_path / "run" / "tensorboard").write_text(""))
    with (
        pytest.raises(ConfigError, match="the tracker tensorboard does not start"),
        closing(Trackers(["tensorboard"])) as one,
    ):
        fit(tiny_config(), tmp_path / "run", data=small_digits(), on_event=one)


@pytest.mark.slow
def test_a_comparison_hands_the_numbers_of_every_run_over(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    options = ["--width", "0.25", "--epochs", "1", "--lr", "0.01", "--seeds", "1", "--jobs", "1"]
    result = invoke(["compare", *options, "--convs", "conv3x3,rotate4", "--log-with", "tensorboard", "--out", tmp_path])
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("runs/*/tensorboard/events.*"))) == 2


@pytest.mark.slow
def test_unasked_no_tracker_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from rotateconv.lab import fit, make_config; "
        "fit(make_config('digits', overrides=['epochs=1', 'width=0.25']), 'run'); "
        f"print(*sorted(set({sorted(set(TRACKERS.values()) | {'tensorboard'})}) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
