"""Laws of what a comparison leaves: its files hold the statistics of the runs, and the records read them back."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest

from rotateconv.lab.config import make_config
from rotateconv.lab.report.comparison import write_comparison
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.study_record import read_comparison
from rotateconv.lab.train.environment import Stage
from study_runs import ACCURACIES, write_run
from study_runs import write_comparison as write_runs

CONTROLS = {"rotate4": ("rotate4-fixed",)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A comparison's folder, with a run that diverged."""
    return write_runs(tmp_path / "digits")


@pytest.fixture
def runs(out: Path) -> tuple[RunRecord, ...]:
    return read_comparison(out).runs


def test_rows_are_the_statistics_of_the_runs(runs: tuple[RunRecord, ...], out: Path) -> None:
    write_comparison(runs, CONTROLS, out)
    rows = json.loads((out / "comparison.json").read_text())
    dense = rows[0]
    assert [row["label"] for row in rows][:3] == ["conv3x3", "rotate4", "conv3x3 x0.69"]
    for row in rows:
        if row["conv"] == "rotate2p":
            continue
        accuracies = ACCURACIES[row["conv"], row["width"]]
        assert row["accuracies"] == list(accuracies)
        assert row["accuracy_mean"] == pytest.approx(statistics.fmean(accuracies))
        assert row["accuracy_std"] == pytest.approx(statistics.stdev(accuracies))
        assert (row["n"], row["seeds"], row["seconds_per_epoch"]) == (3, [0, 1, 2], 3.0)
        assert all((out / run / "summary.json").is_file() for run in row["runs"])
        if row is dense:
            assert (row["difference"], row["difference_interval"], row["p_value"]) == (None, None, None)
            continue
        assert row["difference"] == pytest.approx(row["accuracy_mean"] - dense["accuracy_mean"])
        low, high = row["difference_interval"]
        assert low < row["difference"] < high
        assert 0 < row["p_value"] <= 1
    assert (rows[2]["equal_to"], rows[2]["parameters"]) == ("rotate4", 127_486)
    failed = next(row for row in rows if row["conv"] == "rotate2p")
    assert (failed["n"], failed["failed"], failed["accuracy_mean"]) == (0, {"0": "the loss became NaN"}, None)


def test_the_records_read_what_was_written(runs: tuple[RunRecord, ...], out: Path) -> None:
    write_comparison(runs, CONTROLS, out)
    again = read_comparison(out)
    assert {run.name: run for run in again.runs} == {run.name: run for run in runs}
    assert again.contrasts == CONTROLS


def test_a_narrow_study_keeps_its_baseline_and_its_controls(tmp_path: Path) -> None:
    for conv, accuracy in (("conv3x3", 90.0), ("rotate4", 91.0), ("rotate4-fixed", 89.0)):
        for seed in (0, 1):
            config = make_config("digits", changes={"conv": conv, "width": 0.25, "seed": seed})
            write_run(tmp_path / "runs" / f"{conv}-{seed}", config, accuracy + seed)
    write_comparison(read_comparison(tmp_path).runs, CONTROLS, tmp_path)
    rows = {row["conv"]: row["difference"] for row in json.loads((tmp_path / "comparison.json").read_text())}
    assert rows == {"conv3x3": None, "rotate4": 1.0, "rotate4-fixed": -1.0}
    text = (tmp_path / "comparison.md").read_text()
    assert "| rotate4 x0.25 | conv3x3 x0.25 | not decided |" in text
    assert "| rotate4 x0.25 | rotate4-fixed x0.25 | not decided |" in text
    assert read_comparison(tmp_path).contrasts == CONTROLS


def test_a_failed_run_is_found_by_the_name_that_was_written(runs: tuple[RunRecord, ...], out: Path) -> None:
    (failed,) = [run for run in runs if run.failed]
    (out / "runs" / failed.name).rename(out / "runs" / "mine")
    write_comparison([dataclasses.replace(run, name="mine") if run is failed else run for run in runs], {}, out)
    assert [run.name for run in read_comparison(out).runs if run.failed] == ["mine"]


def test_the_markdown_holds_every_number(runs: tuple[RunRecord, ...], out: Path) -> None:
    groups = write_comparison(runs, CONTROLS, out)
    text = (out / "comparison.md").read_text()
    for group in groups:
        if group.accuracy is not None:
            assert f"| {group.label} | {group.parameters:,} | 2.52 M | {group.accuracy.mean:.2f} ± " in text
    assert "| rotate4 | rotate4-fixed | wins |" in text
    assert "- resnet20, rotate2p, seed 0: the loss became NaN" in text
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_one_seed_has_no_deviation_and_nothing_to_compare_with_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one", make_config("digits", changes={"conv": "rotate4"}), 98.0)
    write_comparison(read_comparison(tmp_path).runs, {}, tmp_path)
    (row,) = json.loads((tmp_path / "comparison.json").read_text())
    assert (row["accuracy_std"], row["difference"], row["p_value"]) == (None, None, None)
    assert "| 98.00 | - | 1 | 3 |" in (tmp_path / "comparison.md").read_text()


def test_every_machine_of_every_run_is_named(runs: tuple[RunRecord, ...], out: Path) -> None:
    run = next(run for run in runs if run.name == "resnet20-rotate2-seed1")
    moved = Stage(5, dataclasses.replace(run.environment.began, gpu="a GPU"))
    environment = dataclasses.replace(run.environment, stages=(*run.environment.stages, moved))
    changed = dataclasses.replace(run, environment=environment)
    write_comparison([changed if one is run else one for one in runs], {}, out)
    rows = {row["label"]: row for row in json.loads((out / "comparison.json").read_text())}
    assert len(rows["conv3x3"]["machines"]) == 1
    assert rows["rotate2"]["machines"] == [*rows["conv3x3"]["machines"], "a GPU"]
    assert f" {rows['conv3x3']['machines'][0]} and a GPU; torch 2;" in (out / "comparison.md").read_text()


def test_failed_runs_alone_can_be_written(runs: tuple[RunRecord, ...], tmp_path: Path) -> None:
    (failed,) = [run for run in runs if run.failed]
    write_comparison([failed], {}, tmp_path / "digits")
    text = (tmp_path / "digits" / "comparison.md").read_text()
    assert "| 0 of 1 |" in text
    assert "None" not in text
    assert write_comparison([], {}, tmp_path / "nothing") == []
    assert not (tmp_path / "nothing").exists()
