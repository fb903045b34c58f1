"""Laws of a comparison: its records are the runs', nothing is trained twice, one bad run leaves the others alone."""

import contextlib
import json
import multiprocessing
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from commands import invoke
from rotateconv.cost import cost
from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.config import make_config
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.exit_codes import CommandError
from rotateconv.lab.files import read_json
from rotateconv.lab.naming import counted, layers_label
from rotateconv.lab.study import compare as library
from rotateconv.lab.study import pool as workers
from rotateconv.lab.study.compare import compare
from rotateconv.lab.study.events import RecordsChanged, RunDied, RunDiverged, RunEvent, StudyEvent, TaskEvent
from rotateconv.lab.study.executor import Executor, run_tasks
from rotateconv.lab.study.plan import BASELINE, Study
from rotateconv.lab.study.pool import LocalExecutor, available_cores
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.checkpoint import load_checkpoint
from rotateconv.lab.train.events import EpochEnd, RunEnd
from rotateconv.lab.train.run_folder import read_config, read_records, read_summary
from rotateconv.models import build_model
from small import small_digits
from study_runs import write_run

DIGITS = DataDescription.of(small_digits(1295, 143, 359))
# Four channels and a step or two: what a process can do in a test.
OPTIONS = ["--width", "0.25", "--epochs", "1", "--batch-size", "512", "--set", "warmup=0", "--lr", "0.01"]


def study(*, models: tuple[str, ...] = ("resnet20",), seeds: int = 3, equal: bool = False, **changes: Any) -> Study:
    base = make_config("digits", changes=changes)
    return Study(base, models, ("rotate4", BASELINE, "rotate2", "rotate2p"), seeds, equal)


def accuracy_of(task: Task) -> float:
    """A number that differs from run to run."""
    return 90 + len(task.config.conv) + task.config.width + task.config.seed**2 / 3


def fake_runs(tasks: list[Task], executor: Executor, count: int, on_event: Any) -> None:
    """Do what `run_tasks` does as far as a table can see, without training; lr 9 diverges."""
    for task in tasks:
        if task.config.seed == 1 and task.config.conv == "rotate2" and task.config.lr == 9:
            on_event(RunDiverged(task.name, "the loss became infinite"))
            continue
        with_model = build_model(task.config.model, task.config.conv, 10, 1, task.config.width)
        found = cost(with_model, (1, 8, 8))
        counts = {"parameters": found.parameters, "multiply_adds": found.multiply_adds}
        write_run(task.out, task.config, accuracy_of(task), seconds_per_epoch=2.0 + task.config.seed, **counts)
        on_event(RunEvent(task.name, RunEnd(read_summary(task.out))))


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without training."""
    monkeypatch.setattr(library, "run_tasks", fake_runs)


@pytest.mark.slow
def test_every_run_has_a_record(tmp_path: Path, faked: None) -> None:
    records = compare(study(equal=True), DIGITS, tmp_path, jobs=1)
    assert len(records) == 6 * 3
    assert [record.config.seed for record in records[:3]] == [0, 1, 2]
    labels = list(dict.fromkeys((layers_label(record.config), record.equal_to) for record in records))
    assert labels == [
        *(("conv3x3", None), ("rotate4", None), ("conv3x3 x0.69", "rotate4"), ("rotate2", None)),
        *(("conv3x3 x0.50", "rotate2"), ("rotate2p", None)),
    ]
    for record in records:
        config = record.config
        assert record.result.test_accuracy == pytest.approx(90 + len(config.conv) + config.width + config.seed**2 / 3)
    assert {record.result.parameters for record in records if record.config.conv == "rotate4"} == {120_954}


@pytest.mark.slow
def test_a_diverged_run_is_reported_and_the_others_stand(tmp_path: Path, faked: None) -> None:
    records = compare(study(lr=9), DIGITS, tmp_path, jobs=1)
    (failed,) = [record for record in records if record.summary is None]
    assert (failed.name, failed.failed) == ("resnet20-rotate2-seed1", "the loss became infinite")
    assert len(records) == 12


@pytest.mark.slow
def test_records_are_reported_after_every_run(tmp_path: Path, faked: None) -> None:
    counts = []

    def listen(event: StudyEvent) -> None:
        if isinstance(event, RecordsChanged):
            counts.append(len(event.records))

    compare(study(seeds=1), DIGITS, tmp_path, jobs=1, on_event=listen)
    assert counts == [1, 2, 3, 4]


@pytest.mark.slow
def test_finished_runs_are_skipped(tmp_path: Path, faked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(study(seeds=1), DIGITS, tmp_path, jobs=1)
    done: list[str] = []

    def record(tasks: list[Task], *args: Any) -> None:
        done.extend(task.name for task in tasks)
        fake_runs(tasks, *args)

    monkeypatch.setattr(library, "run_tasks", record)
    assert compare(study(seeds=1), DIGITS, tmp_path, jobs=1) == first
    assert done == []
    compare(study(seeds=2), DIGITS, tmp_path, jobs=1)
    assert len(done) == 4
    assert all(name.endswith("seed1") for name in done)


@pytest.mark.slow
def test_runs_of_another_configuration_are_refused(tmp_path: Path, faked: None) -> None:
    compare(study(), DIGITS, tmp_path, jobs=1)
    with pytest.raises(RunError, match=r"seed0 has lr 0.\d, not 0.03: resume it unchanged, start again"):
        compare(study(lr=0.03), DIGITS, tmp_path, jobs=1)


def test_a_comparison_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs must be 1 or more, not 0"):
        compare(study(), DIGITS, tmp_path, jobs=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that two processes really made."""
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = ["compare", *OPTIONS, "--convs", "rotate2p,conv3x3", "--seeds", "2", "--jobs", "2", "--out", str(out)]
    result = invoke(arguments)
    assert result.exit_code == 0, result.output
    (out / "printed").write_text(result.stdout)
    return out


@pytest.mark.slow
def test_a_comparison_trains_every_run_in_its_own_folder(finished: Path) -> None:
    rows = json.loads((finished / "comparison.json").read_text())
    assert [(row["conv"], row["n"], row["width"]) for row in rows] == [("conv3x3", 2, 0.25), ("rotate2p", 2, 0.25)]
    for row in rows:
        summaries = [read_json(finished / run / "summary.json") for run in row["runs"]]
        assert row["accuracies"] == [summary["test_accuracy"] for summary in summaries]
        assert row["accuracy_mean"] == pytest.approx(statistics.fmean(row["accuracies"]))
        assert {read_config(finished / run).seed for run in row["runs"]} == {0, 1}
        assert (row["dataset"], row["recipe"], row["epochs"]) == ("digits", "digits", 1)
        assert f", {counted(max(1, available_cores() // 2), 'thread')} a run" in row["machines"][0]
        assert row["versions"]["torch"]
    command = read_json(finished / rows[0]["runs"][0] / "environment.json")["command"]
    assert shlex.split(command)[1:] == [*sys.argv[1:], "--jobs", "2"]


@pytest.mark.slow
def test_what_a_comparison_prints(finished: Path) -> None:
    text = (finished / "printed").read_text()
    for row in json.loads((finished / "comparison.json").read_text()):
        assert f" {row['label']} " in text
        assert f"{row['parameters']:,}" in text
        assert f"{row['accuracy_mean']:.2f} ± {row['accuracy_std']:.2f}" in text
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["folder", "data", "recipe", "runs"]
    assert [line.split()[0] for line in lines[4:8]] == ["1", "2", "3", "4"]
    assert [Path(line.split()[1]).name for line in lines[-3:]] == [f"comparison.{end}" for end in ("md", "json", "png")]
    assert all(Path(line.split()[1]).is_file() for line in lines[-3:])


@pytest.mark.slow
def test_the_second_time_shows_the_table_alone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(workers, "Worker", refuse)
    before = (finished / "comparison.json").read_bytes()
    arguments = [*OPTIONS, "--convs", "rotate2p,conv3x3", "--seeds", "2", "--out", str(finished)]
    result = invoke(["compare", *arguments])
    assert result.exit_code == 0, result.output
    assert "4, 4 finished already" in result.stdout
    assert "rotate2p" in result.stdout
    assert (finished / "comparison.json").read_bytes() == before


@pytest.mark.slow
def test_a_study_from_a_file(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'convs = ["conv3x3", "rotate2p"]\nmodels = ["resnet20"]\nseeds = 3\nequal_params = true\n'
        'recipe = "digits"\nwidth = 0.25\nepochs = 1\nbatch_size = 512\nwarmup = 0\nlr = 0.01\n'
    )
    arguments = ["--config", str(file), "--out", str(finished), "--seeds", "2", "--set", "clip_grad_norm=1"]
    result = invoke(["compare", *arguments])
    # What the file says arrives, as far as the runs that are there: only the key that differs is named.
    assert result.exit_code == 2
    assert "has clip_grad_norm None, not 1.0: resume it unchanged" in result.stderr


@pytest.mark.slow
def test_one_run_diverges_and_the_next_one_is_done(tmp_path: Path) -> None:
    changes = {"width": 0.25, "epochs": 1, "batch_size": 512}
    tasks = [
        Task(name, make_config("digits", changes={**changes, "lr": lr}), tmp_path / name)
        for name, lr in (("wild", 1e30), ("tame", 0.01))
    ]
    heard: list[TaskEvent] = []
    run_tasks(tasks, LocalExecutor(1, 1), 2, heard.append)
    wild, tame = (event for event in heard if isinstance(event, RunDiverged) or isinstance(event.event, RunEnd))
    assert isinstance(wild, RunDiverged)
    assert (wild.run, tame.run) == ("wild", "tame")
    assert tame.event.summary == read_summary(tmp_path / "tame")
    assert any(event.run == "tame" and isinstance(event.event, EpochEnd) for event in heard[1:])
    mistake = Task("odd", make_config("digits", changes={**changes, "teacher": "nowhere"}), tmp_path / "odd")
    with pytest.raises(CommandError, match="nowhere is not there") as found:
        run_tasks([mistake, tasks[1]], LocalExecutor(1, 1), 2, lambda event: None)
    assert found.value.failure.code == 2


@pytest.mark.slow
def test_a_process_that_dies_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    changes = {"width": 0.25, "lr": 0.01}
    tasks = [
        Task(name, make_config("digits", changes={**changes, "epochs": epochs}), tmp_path / name)
        for name, epochs in (("long", 500), ("short", 1))
    ]
    heard: list[TaskEvent] = []

    def kill(event: TaskEvent) -> None:
        heard.append(event)
        if event.run == "long" and isinstance(event, RunEvent) and isinstance(event.event, EpochEnd):
            (child,) = (child for child in multiprocessing.active_children() if child.is_alive())
            child.kill()

    run_tasks(tasks, LocalExecutor(1, 1), 2, kill)
    (died,) = (event for event in heard if isinstance(event, RunDied))
    assert died.message.startswith("the process of long ended without a word (killed by signal 9)")
    assert any(event.run == "short" and isinstance(event.event, RunEnd) for event in heard if event is not died)


@pytest.mark.slow
@pytest.mark.parametrize("wait_for", ["start", "epoch"])
def test_processes_end_with_their_parent(tmp_path: Path, wait_for: str) -> None:
    arguments = ["--width", "0.25", "--epochs", "500", "--lr", "0.01", "--seeds", "1", "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rotateconv", "compare", *arguments, "--convs", "conv3x3", "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "runs" / "resnet20-conv3x3-w0.25-seed0" / "metrics.jsonl"
        while not (workers_of(process.pid) if wait_for == "start" else metrics.exists()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = workers_of(process.pid)
        process.kill()
        assert process.communicate()[1] == ""
        # One that is still importing notices at its first look, not within a moment.
        deadline = time.monotonic() + (20 if wait_for == "start" else 1)
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that train for a study."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
def test_ctrl_c_stops_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out put"
    long = ["--width", "0.25", "--epochs", "8", "--lr", "0.01", "--seeds", "1"]
    arguments = ["compare", *long, "--convs", "conv3x3,rotate4", "--jobs", "2", "--out", str(out), "--overwrite"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rotateconv", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    folders = [out / "runs" / f"resnet20-{conv}-w0.25-seed0" for conv in ("conv3x3", "rotate4")]
    deadline = time.monotonic() + 120
    while not all((folder / "metrics.jsonl").exists() for folder in folders):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.startswith("stopped after 0 of 2 runs; those that were running are saved: go on with rotateconv ")
    words = shlex.split(error.partition("go on with ")[2])
    assert words == ["rotateconv", *arguments[:-1]]
    epochs = [len(read_records(folder)) for folder in folders]
    assert all(0 < count < 8 for count in epochs)
    assert all(load_checkpoint(folder / "checkpoints").state["step"] > 0 for folder in folders)
    result = invoke(words[1:])
    assert result.exit_code == 0, result.output
    assert [len(read_records(folder)) for folder in folders] == [8, 8]
