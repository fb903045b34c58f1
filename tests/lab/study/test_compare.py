"""Laws of a comparison: its rows are the runs', nothing is trained twice, one bad run leaves the others alone."""

import dataclasses
import json
import math
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
from typer.testing import CliRunner

from rotateconv.cost import cost
from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.cli import app
from rotateconv.lab.config import make_config
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.exit_codes import CommandError
from rotateconv.lab.study import comparison
from rotateconv.lab.study import pool as workers
from rotateconv.lab.study import run as library
from rotateconv.lab.study.comparison import BASELINE, Entry, cells, markdown, read_rows, write_comparison
from rotateconv.lab.study.events import RowsChanged, RunDied, RunDiverged, RunEvent, StudyEvent, TaskEvent
from rotateconv.lab.study.pool import available_cores, run_tasks
from rotateconv.lab.study.run import Study, compare, plan
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.checkpoint import load_checkpoint
from rotateconv.lab.train.events import EpochEnd, RunEnd
from rotateconv.lab.train.run_folder import read_config, read_json, read_records, read_summary
from rotateconv.models import build_model
from small import small_digits
from study_runs import write_run

DIGITS = DataDescription.of(small_digits(1295, 143, 359))
CIFAR = dataclasses.replace(DIGITS, name="cifar10", input_shape=(3, 32, 32))
# Four channels and a step or two: what a process can do in a test.
OPTIONS = ["--width", "0.25", "--epochs", "1", "--batch-size", "512", "--set", "warmup=0", "--lr", "0.01"]
KEYS = {
    *("model", "conv", "dataset", "parameters", "multiply_adds", "accuracy_mean", "accuracy_std", "n"),
    *("seconds_per_epoch", "width", "seeds", "accuracies", "validation_accuracies", "difference"),
    *("difference_standard_error", "epochs", "recipe", "hardware", "machines", "versions"),
}


def study(*, models: tuple[str, ...] = ("resnet20",), seeds: int = 3, equal: bool = False, **changes: Any) -> Study:
    base = make_config("digits", changes=changes)
    return Study(base, models, ("rotate4", BASELINE, "rotate2", "rotate2p"), seeds, equal)


def accuracy_of(task: Task) -> float:
    """A number that differs from run to run."""
    return 90 + len(task.config.conv) + task.config.width + task.config.seed**2 / 3


def fake_runs(tasks: list[Task], jobs: int, threads: int, on_event: Any) -> None:
    """Do what `run_tasks` does as far as a table can see, without training; lr 9 diverges."""
    for task in tasks:
        if task.config.seed == 1 and task.config.conv == "rotate2" and task.config.lr == 9:
            on_event(RunDiverged(task.name, "the loss became infinite"))
            continue
        with_net = build_model(task.config.model, task.config.conv, 10, 1, task.config.width)
        found = cost(with_net, (1, 8, 8))
        counts = {"parameters": found.parameters, "multiply_adds": found.multiply_adds}
        write_run(task.out, task.config, accuracy_of(task), seconds_per_epoch=2.0 + task.config.seed, **counts)
        on_event(RunEvent(task.name, RunEnd(read_summary(task.out))))


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without training, and without the pictures that take longer than all the rest."""
    monkeypatch.setattr(library, "run_tasks", fake_runs)
    monkeypatch.setattr(comparison, "draw_comparison", lambda rows, path: None)


def test_the_dense_net_stands_first_and_narrowed_ones_follow_what_they_match() -> None:
    entries = plan(study(models=("resnet20", "densenet40"), equal=True), CIFAR)
    told = [(e.config.model, e.config.conv, round(e.config.width, 4), e.equal_to) for e in entries]
    assert told[:6] == [
        ("resnet20", "conv3x3", 1.0, None),
        ("resnet20", "rotate4", 1.0, None),
        ("resnet20", "conv3x3", 11 / 16, "rotate4"),
        ("resnet20", "rotate2", 1.0, None),
        ("resnet20", "conv3x3", 8 / 16, "rotate2"),
        ("resnet20", "rotate2p", 1.0, None),  # its twin is rotate2's
    ]
    assert told[6][:2] == ("densenet40", "conv3x3")
    assert all(entry.config.model == "densenet40" for entry in entries[6:])


@pytest.mark.parametrize("model", ["resnet20", "densenet40"])
def test_no_other_width_is_nearer_to_the_size_that_a_narrowed_net_shall_have(model: str) -> None:
    base = study(models=(model,), equal=True)

    def size(conv: str, width: float) -> int:
        return sum(p.numel() for p in build_model(model, conv, 10, 3, width).parameters())

    narrowed = [entry for entry in plan(base, CIFAR) if entry.equal_to is not None]
    assert narrowed
    for entry in narrowed:
        target, step = size(entry.equal_to, 1.0), 1 / (16 if model == "resnet20" else 12)
        error = abs(size(BASELINE, entry.config.width) - target)
        for width in (entry.config.width - step, entry.config.width + step):
            assert error <= abs(size(BASELINE, width) - target)


def test_controls_without_a_line_get_no_narrowed_net() -> None:
    base = Study(make_config("digits"), ("resnet20",), (BASELINE, "mask4", "separable"), 1, True)
    assert [entry.equal_to for entry in plan(base, CIFAR)] == [None, None, None]


def test_rows_are_the_statistics_of_the_runs(tmp_path: Path, faked: None) -> None:
    rows = compare(study(equal=True), DIGITS, tmp_path, jobs=1)
    assert rows == read_rows(tmp_path / "comparison.json")
    assert [row["label"] for row in rows] == [
        *("conv3x3", "rotate4", "conv3x3 x0.69", "rotate2", "conv3x3 x0.50", "rotate2p"),
    ]
    dense = rows[0]
    for row in rows:
        assert row.keys() >= KEYS
        offset = 90 + len(row["conv"]) + row["width"]
        expected = [offset, offset + 1 / 3, offset + 4 / 3]
        assert row["accuracies"] == pytest.approx(expected)
        assert row["accuracy_mean"] == pytest.approx(sum(expected) / 3)
        squares = sum((value - sum(expected) / 3) ** 2 for value in expected)
        assert row["accuracy_std"] == pytest.approx(math.sqrt(squares / 2))
        assert (row["n"], row["seeds"], row["seconds_per_epoch"]) == (3, [0, 1, 2], 3.0)
        assert row["validation_accuracies"] == row["accuracies"]
        assert all((tmp_path / run / "summary.json").is_file() for run in row["runs"])
        if row is dense:
            assert (row["difference"], row["difference_standard_error"]) == (None, None)
            continue
        assert row["difference"] == pytest.approx(row["accuracy_mean"] - dense["accuracy_mean"])
        error = math.sqrt(row["accuracy_std"] ** 2 / 3 + dense["accuracy_std"] ** 2 / 3)
        assert row["difference_standard_error"] == pytest.approx(error)
    assert rows[1]["parameters"] == 120_954
    assert (rows[2]["equal_to"], rows[2]["parameters"]) == ("rotate4", 127_819)


def test_one_seed_has_no_deviation(tmp_path: Path, faked: None) -> None:
    dense, rotated, *_ = compare(study(seeds=1), DIGITS, tmp_path, jobs=1)
    assert (dense["accuracy_std"], rotated["accuracy_std"], rotated["difference_standard_error"]) == (None, None, None)
    assert rotated["difference"] == 0.0
    assert cells(rotated)[4:6] == ("98.00", "+0.00")


def test_without_the_dense_net_there_is_no_difference(tmp_path: Path, faked: None) -> None:
    rows = compare(Study(make_config("digits"), convs=("rotate4", "rotate2")), DIGITS, tmp_path, jobs=1)
    assert [row["difference"] for row in rows] == [None, None]


def test_a_diverged_run_is_told_and_the_others_stand(tmp_path: Path, faked: None) -> None:
    rows = {row["conv"]: row for row in compare(study(lr=9), DIGITS, tmp_path, jobs=1)}
    assert [row["n"] for row in rows.values()] == [3, 3, 2, 3]
    assert rows["rotate2"]["failed"] == {"1": "the loss became infinite"}
    assert rows["rotate2"]["seeds"] == [0, 2]
    assert cells(rows["rotate2"])[6] == "2 of 3"
    assert "- rotate2, seed 1: the loss became infinite" in (tmp_path / "comparison.md").read_text()
    alone = Study(make_config("digits", changes={"lr": 9, "seed": 1}), convs=("rotate2",), seeds=2)
    (row,) = compare(alone, DIGITS, tmp_path / "alone", jobs=1)
    assert row["n"] == 1


def test_every_machine_of_every_run_is_named(tmp_path: Path, faked: None) -> None:
    compare(study(), DIGITS, tmp_path, jobs=1)
    record = tmp_path / "runs" / "resnet20-rotate2-seed1" / "environment.json"
    record.write_text(json.dumps({**read_json(record), "resumed": [{"step": 5, "gpu": "a GPU"}]}))
    entries = [Entry(make_config("digits", changes={"conv": conv})) for conv in ("conv3x3", "rotate2")]
    dense, rotate2 = write_comparison(entries, 3, tmp_path, {})
    assert len(dense["machines"]) == 1
    assert rotate2["machines"] == [*dense["machines"], "a GPU"]
    assert f" {dense['machines'][0]} and a GPU; torch 2," in (tmp_path / "comparison.md").read_text()


def test_a_row_of_diverged_runs_alone_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(tasks: list[Task], jobs: int, threads: int, on_event: Any) -> None:
        for task in tasks:
            on_event(RunDiverged(task.name, "the loss became infinite"))

    monkeypatch.setattr(library, "run_tasks", diverge)
    (row,) = compare(Study(make_config("digits"), convs=("rotate4",), seeds=1), DIGITS, tmp_path, jobs=1)
    assert (row["n"], row["accuracy_mean"], row["parameters"]) == (0, None, None)
    assert "diverged" in markdown([row])
    assert "None" not in markdown([row])
    assert {path.name for path in tmp_path.iterdir()} == {f"comparison.{end}" for end in ("json", "md", "png")}


def test_files_are_written_after_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "run_tasks", fake_runs)
    counts = []

    def listen(event: StudyEvent) -> None:
        if isinstance(event, RowsChanged):
            counts.append([row["n"] for row in read_rows(tmp_path / "comparison.json")])
            assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"

    compare(study(seeds=1), DIGITS, tmp_path, jobs=1, on_event=listen)
    assert counts == [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1]]  # no row without a run


def test_the_markdown_holds_every_number(tmp_path: Path, faked: None) -> None:
    rows = compare(study(equal=True), DIGITS, tmp_path, jobs=1)
    lines = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("| resnet20")]
    for row, line in zip(rows, lines, strict=True):
        expected = [row["model"], row["label"], f"{row['parameters']:,}"]
        found = [cell.strip() for cell in line.strip("|").split("|")]
        assert found[:3] == expected
        assert found[4] == f"{row['accuracy_mean']:.2f} ± {row['accuracy_std']:.2f}"
        assert found[6] == "3"


def test_finished_runs_are_skipped(tmp_path: Path, faked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(study(seeds=1), DIGITS, tmp_path, jobs=1)
    done: list[str] = []

    def record(tasks: list[Task], *args: Any) -> None:
        done.extend(task.name for task in tasks)
        fake_runs(tasks, *args)

    monkeypatch.setattr(library, "run_tasks", record)
    assert compare(study(seeds=1), DIGITS, tmp_path, jobs=1) == first
    assert done == []
    (tmp_path / "comparison.json").unlink()
    compare(study(seeds=2), DIGITS, tmp_path, jobs=1)
    assert len(done) == 4
    assert all(name.endswith("seed1") for name in done)


def test_runs_of_another_configuration_are_refused(tmp_path: Path, faked: None) -> None:
    compare(study(), DIGITS, tmp_path, jobs=1)
    with pytest.raises(RunError, match=r"seed0 has lr 0.\d, not 0.03: resume it unchanged or choose another folder"):
        compare(study(lr=0.03), DIGITS, tmp_path, jobs=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ()}, "models must be one name or more, each once, not none"),
        ({"convs": ("line", "line")}, "convs must be one name or more, each once, not line, line"),
        ({"seeds": 0}, "seeds must be 1 or more, not 0"),
    ],
)
def test_a_study_without_runs_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(make_config("digits"), **values)


def test_a_comparison_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs must be 1 or more, not 0"):
        compare(study(), DIGITS, tmp_path, jobs=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that two processes really made."""
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = ["compare", *OPTIONS, "--convs", "rotate2p,conv3x3", "--seeds", "2", "--jobs", "2", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (out / "printed").write_text(result.stdout)
    return out


@pytest.mark.slow
def test_a_comparison_trains_every_run_in_its_own_folder(finished: Path) -> None:
    rows = read_rows(finished / "comparison.json")
    assert [(row["conv"], row["n"], row["width"]) for row in rows] == [("conv3x3", 2, 0.25), ("rotate2p", 2, 0.25)]
    for row in rows:
        summaries = [read_json(finished / run / "summary.json") for run in row["runs"]]
        assert row["accuracies"] == [summary["test_accuracy"] for summary in summaries]
        assert row["accuracy_mean"] == pytest.approx(statistics.fmean(row["accuracies"]))
        assert {read_config(finished / run).seed for run in row["runs"]} == {0, 1}
        assert (row["dataset"], row["recipe"], row["epochs"]) == ("digits", "digits", 1)
        assert row["hardware"]["threads"] == max(1, available_cores() // 2)
        assert row["versions"]["torch"]
    command = read_json(finished / rows[0]["runs"][0] / "environment.json")["command"]
    assert command.endswith("--jobs 2")


@pytest.mark.slow
def test_what_a_comparison_prints(finished: Path) -> None:
    text = (finished / "printed").read_text()
    for row in read_rows(finished / "comparison.json"):
        assert all(cell in text for cell in cells(row)[1:])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["folder", "data", "recipe", "runs"]
    assert [line.split()[0] for line in lines[4:8]] == ["1/4", "2/4", "3/4", "4/4"]
    assert [Path(line.split()[1]).name for line in lines[-3:]] == [f"comparison.{end}" for end in ("md", "json", "png")]
    assert all(Path(line.split()[1]).is_file() for line in lines[-3:])


@pytest.mark.slow
def test_the_second_time_shows_the_table_alone(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(workers, "Worker", refuse)
    before = (finished / "comparison.json").read_bytes()
    arguments = [*OPTIONS, "--convs", "rotate2p,conv3x3", "--seeds", "2", "--out", str(finished)]
    result = CliRunner().invoke(app, ["compare", *arguments])
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
    result = CliRunner().invoke(app, ["compare", *arguments])
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
    run_tasks(tasks, 1, 1, heard.append)
    wild, tame = (event for event in heard if isinstance(event, RunDiverged) or isinstance(event.event, RunEnd))
    assert isinstance(wild, RunDiverged)
    assert (wild.run, tame.run) == ("wild", "tame")
    assert tame.event.summary == read_summary(tmp_path / "tame")
    assert any(event.run == "tame" and isinstance(event.event, EpochEnd) for event in heard[1:])
    mistake = Task("odd", make_config("digits", changes={**changes, "teacher": "nowhere"}), tmp_path / "odd")
    with pytest.raises(CommandError, match="nowhere is no run folder") as found:
        run_tasks([mistake, tasks[1]], 1, 1, lambda event: None)
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

    run_tasks(tasks, 1, 1, kill)
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
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


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
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    assert [len(read_records(folder)) for folder in folders] == [8, 8]
