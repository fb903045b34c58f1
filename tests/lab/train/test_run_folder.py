"""Laws of the run folder: whole files or none, nothing mixed by mistake, one sentence for a full disk."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from rotateconv._files import atomic_replace
from rotateconv.errors import InputError, RunError
from rotateconv.lab.config import RunConfig, make_config
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import load_data
from rotateconv.lab.files import read_json, write_bytes, write_json
from rotateconv.lab.train import run_folder as runs
from rotateconv.lab.train.environment import Environment
from rotateconv.lab.train.load import evaluate_model, load_run
from rotateconv.lab.train.run_folder import (
    append_record,
    check_run,
    create_run,
    keep_records,
    note_resumption,
    read_config,
    read_description,
    read_environment,
    read_records,
    read_summary,
)
from rotateconv.lab.train.run_results import EpochRecord

DATA = DataDescription("x", ("a", "b"), (0.5,), (0.25,), (1, 8, 8), False, 1, 1, 1)
EPOCH = EpochRecord(
    epoch=1,
    step=4,
    train_loss=2.0,
    train_accuracy=20.0,
    validation_loss=None,
    validation_accuracy=None,
    learning_rates={"weights": 0.1},
    angle_movement_mean=None,
    angle_movement_max=None,
    seconds=1.5,
    validation_seconds=0.5,
    images_per_second=100.0,
    peak_memory_bytes=2**30,
    peak_gpu_memory_bytes=None,
)
CONFIG = make_config("digits", overrides=["lr=0.125", "milestones=0.1,0.7"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    create_run(folder, CONFIG, DATA)
    return folder


def test_a_new_run_holds_its_configuration_data_and_environment(run: Path) -> None:
    assert read_config(run) == CONFIG
    assert read_description(run) == DATA
    assert read_json(run / "environment.json")["versions"]["torch"]
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "data.json", "environment.json"]


def test_only_another_environment_is_noted_on_resuming(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, gpu = read_environment(run).began, {"gpu": "H200", "gpu_count": 1}

    def resume(step: int, **changes: Any) -> Any:
        now = dataclasses.replace(began, command=f"other {step}", **changes)
        monkeypatch.setattr(Environment, "now", lambda: now)
        note_resumption(run, step)
        return read_json(run / "environment.json").get("resumed")

    assert resume(1) is None
    assert resume(2, **gpu) == [{"step": 2, **gpu}]
    assert resume(3, **gpu) == [{"step": 2, **gpu}]
    assert resume(4) == [{"step": 2, **gpu}, {"step": 4}]
    assert read_environment(run).began == began


def epoch(number: int, **changes: Any) -> EpochRecord:
    """The record of an epoch."""
    return dataclasses.replace(EPOCH, epoch=number, **changes)


def test_records_come_back_as_they_went(run: Path) -> None:
    records = [epoch(1, train_loss=1 / 3, learning_rates={"ü": 0.1}), epoch(2, angle_movement_layers=(0.1, 0.2))]
    for record in records:
        append_record(run, record)
    assert read_records(run) == records


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_last_line_is_dropped_and_the_rest_goes_on(run: Path, cut: int) -> None:
    append_record(run, epoch(1))
    append_record(run, epoch(2))
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_records(run) == [epoch(1)]
    keep_records(run, 1)
    append_record(run, epoch(2, seconds=9.0))
    assert read_records(run) == [epoch(1), epoch(2, seconds=9.0)]


def test_a_damaged_line_is_refused(run: Path) -> None:
    path = run / "metrics.jsonl"
    append_record(run, epoch(1))
    whole = path.read_text()
    for damaged, message in [
        ('{"ep\n', "is no JSON"),
        (whole.replace('"step": 4, ', ""), "expected the key step, found none"),
        (whole.replace('"step": 4', '"step": "4"'), "step must be a valid integer, found '4': restore the file"),
        (whole.replace('"step"', '"stop": 1, "step"'), "the key stop is unknown, expected epoch, step, "),
    ]:
        path.write_text(whole + damaged + whole)
        with pytest.raises(RunError, match=f"line 2 of .*metrics.jsonl.*{message}"):
            read_records(run)


def test_records_are_cut_back_but_never_invented(run: Path) -> None:
    for number in (1, 2, 3):
        append_record(run, epoch(number))
    keep_records(run, 2)
    assert read_records(run) == [epoch(1), epoch(2)]
    with pytest.raises(RunError, match=r"metrics.jsonl must have the epochs 1 to 3, not 1, 2: overwrite the run"):
        keep_records(run, 3)


def test_epochs_written_twice_are_noticed(run: Path) -> None:
    for number in (1, 1, 2, 2):
        append_record(run, epoch(number))
    with pytest.raises(RunError, match=r"metrics.jsonl must have the epochs 1 to 3, not 1, 1, 2: overwrite the run"):
        keep_records(run, 3)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 100_000, b"{"])
def test_a_line_of_anything_is_one_sentence(run: Path, line: bytes) -> None:
    (run / "metrics.jsonl").write_bytes(line + b"\n")
    with pytest.raises(RunError, match=r"line 1 of .*metrics.jsonl is no JSON: remove it or restore the file"):
        read_records(run)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b'{"lr": '])
@pytest.mark.parametrize("name", ["config.json", "data.json", "environment.json", "summary.json"])
def test_json_of_anything_is_one_sentence(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    read = {"config.json": read_config, "environment.json": read_environment, "summary.json": read_summary}
    with pytest.raises(InputError, match=r"no JSON|not JSON"):
        read.get(name, lambda run: read_json(run / name))(run)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "data.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    with pytest.raises(RunError, match=r"is no run folder: it has no readable config.json"):
        read_config(run)
    with pytest.raises(RunError, match=r"cannot read .*metrics.jsonl: it is no regular file"):
        read_records(run)
    with pytest.raises(RunError, match=r"cannot read .*data.json: it is no regular file"):
        read_json(run / "data.json")


def test_nan_never_becomes_json(run: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        append_record(run, epoch(1, train_loss=float("nan")))
    assert read_records(run) == []


def test_a_run_folder_of_version_0_1_is_read() -> None:
    run = Path(__file__).parents[2] / "fixtures" / "run-folder"
    (record,), summary, trained = read_records(run), read_summary(run), load_run(run)
    assert (record.epoch, record.step, summary.steps) == (1, 21, 21)
    assert summary.parameters == sum(parameter.numel() for parameter in trained.model.parameters()) == 4766
    assert len(record.angle_movement_layers or ()) == 18
    assert summary.test_confusion is not None
    assert 100 * sum(summary.test_confusion[i][i] for i in range(10)) / 359 == pytest.approx(summary.test_accuracy)
    assert read_environment(run).began.versions["torch"]
    found = evaluate_model(trained.model, trained.config.execution, trained.data, load_data("digits").test)
    assert found.accuracy == pytest.approx(summary.test_accuracy, abs=1.0)


def test_a_run_is_not_overwritten_by_mistake(run: Path) -> None:
    with pytest.raises(
        RunError, match=r"first holds a run already: go on with it .*, start again .* or choose another"
    ):
        check_run(run, CONFIG, resume=False, overwrite=False)
    check_run(run, CONFIG, resume=False, overwrite=True)
    check_run(run, CONFIG, resume=True, overwrite=False)
    with pytest.raises(RunError, match="expected one of resume and overwrite, not both"):
        check_run(run, CONFIG, resume=True, overwrite=True)


def test_a_folder_of_something_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("five years")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="exists and is no run folder"):
            check_run(tmp_path, CONFIG, resume=False, overwrite=overwrite)
    with pytest.raises(RunError, match=r"thesis.tex exists and is no run folder"):
        check_run(tmp_path / "thesis.tex", CONFIG, resume=False, overwrite=False)


def test_overwriting_removes_the_run_and_nothing_else(run: Path) -> None:
    append_record(run, epoch(1))
    write_json(run / "summary.json", {})
    (run / "notes.txt").write_text("keep me")
    create_run(run, RunConfig(), DATA)
    names = {"config.json", "data.json", "environment.json", "notes.txt"}
    assert {path.name for path in run.iterdir()} == names
    assert read_config(run) == RunConfig()


def test_a_creation_cut_off_can_be_done_again(run: Path) -> None:
    with atomic_replace(run / "config.json") as temporary:
        temporary.write_bytes(b"{")
    (run / "config.json").rename(temporary)  # what a process that is killed there leaves
    check_run(run, CONFIG, resume=False, overwrite=False)


def test_resume_names_every_key_that_differs(run: Path) -> None:
    other = make_config("digits", overrides=["lr=0.5", "milestones=0.1,0.7", "seed=3"])
    with pytest.raises(RunError, match=r"has lr 0\.125, not 0\.5, seed 0, not 3: resume it unchanged"):
        check_run(run, other, resume=True, overwrite=False)


def test_resume_may_move_the_data_and_save_more_often(run: Path) -> None:
    moved = ["data_dir=/elsewhere", "checkpoint_seconds=1", "checkpoint_steps=5"]
    other = make_config("digits", overrides=["lr=0.125", "milestones=0.1,0.7", *moved])
    check_run(run, other, resume=True, overwrite=False)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run to resume in .*nothing: no config.json"):
        check_run(tmp_path / "nothing", CONFIG, resume=True, overwrite=False)
    run = tmp_path / "study" / "runs" / "first"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"config.json; it is a comparison: name one of its runs, such as .*first$"):
        read_config(tmp_path / "study")
    with pytest.raises(RunError, match=r"nothing is not there: name the folder of a run$"):
        read_config(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "is no JSON"), ("[]", "must hold a JSON object, not list")],
)
def test_damaged_json_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=f"summary.json.*{message}"):
        read_json(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_one_sentence(run: Path) -> None:
    (run / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"the disk is full: .* could not be written; free some space, then resume"):
        append_record(run, epoch(1))


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "summary.json"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.os, "fsync", full)
    before = sorted(run.iterdir())
    with pytest.raises(RunError, match="the disk is full"):
        write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert sorted(run.iterdir()) == before


def test_a_folder_that_takes_no_files_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write in .*file: "):
        write_bytes(tmp_path / "file" / "summary.json", b"")
    if Path("/proc/self").is_dir():  # Linux says there that there is no such file
        with pytest.raises(RunError, match=r"cannot write in /proc: it takes no new files"):
            write_bytes(Path("/proc/page.html"), b"")
