"""Laws of a study's rows: they are the statistics of the runs, and a verdict needs two standard errors."""

import dataclasses
import math
import statistics
from pathlib import Path

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.config import make_config
from rotateconv.lab.report.statistics import Spread, contrasts, dense_of, make_rows
from rotateconv.lab.report.tables import accuracy_table, contrast_table, validation_table
from rotateconv.lab.study.records import read_comparison, read_run
from study_runs import ACCURACIES, write_comparison, write_run


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison's folder, with a run that diverged."""
    return write_comparison(tmp_path / "digits")


def test_rows_are_the_statistics_of_the_runs(comparison: Path) -> None:
    rows = make_rows(read_comparison(comparison))
    order = [(row.conv, row.width) for row in rows]
    assert order == [
        *(("conv3x3", 1.0), ("rotate4", 1.0), ("conv3x3", 0.6875), ("rotate2", 1.0)),
        *(("rotate2p", 1.0), ("rotate4-fixed", 1.0)),
    ]
    for key, accuracies in ACCURACIES.items():
        found = rows[order.index(key)].accuracy
        assert found is not None
        mean = sum(accuracies) / 3
        assert found.mean == pytest.approx(mean)
        assert found.std == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in accuracies) / 2))
    assert rows[1].validation == Spread.of([90.5, 91.0, 91.5])
    moved = rows[1].curve("angle_movement_mean")
    assert [(pytest.approx(spread.mean), spread.std, spread.n) for spread in moved] == [(0.1, 0.0, 3), (0.2, 0.0, 3)]
    assert rows[0].curve("angle_movement_mean") == []
    assert [run.config.seed for run in rows[1].runs] == [0, 1, 2]


def test_losses_stand_first(comparison: Path) -> None:
    found = contrasts(make_rows(read_comparison(comparison)))
    told = [(one.row.conv, one.other.label, one.verdict) for one in found]
    assert told == [
        ("rotate2", "conv3x3", "loses"),
        ("rotate4", "conv3x3", "not decided"),
        ("rotate4", "conv3x3 x0.69", "wins"),
        ("rotate4", "rotate4-fixed", "wins"),
    ]
    assert found[2].difference == pytest.approx(1.9)
    assert found[2].error == pytest.approx(math.sqrt((0.25 + statistics.variance([89.0, 89.1, 89.2])) / 3))
    table = contrast_table(make_rows(read_comparison(comparison)))
    assert "| resnet20 | rotate4 | conv3x3 x0.69 (dense net of rotate4's size) | wins | +1.90 ± 0.29 |" in table


@pytest.mark.parametrize(
    ("lead", "verdict"), [(-1.21, "loses"), (-1.19, "not decided"), (1.19, "not decided"), (1.21, "wins")]
)
def test_two_standard_errors_decide(lead: float, verdict: str, tmp_path: Path) -> None:
    spread = 0.6 * math.sqrt(1.5)  # three values 0 and ± it: a deviation of it, and a standard error of 0.6 together
    for conv, mean in (("conv3x3", 90.0), ("rotate4", 90.0 + lead)):
        for seed in range(3):
            config = make_config("digits", changes={"conv": conv, "seed": seed})
            write_run(tmp_path / f"{conv}-{seed}", config, mean + (seed - 1) * spread)
    (one,) = contrasts(make_rows([read_run(folder) for folder in sorted(tmp_path.iterdir())]))
    assert (one.error, one.verdict) == (pytest.approx(0.6), verdict)


def test_the_narrowed_net_of_the_nearest_size_is_the_rival(comparison: Path) -> None:
    runs = read_comparison(comparison)
    sizes = {"conv3x3-w0.5": 68_050, "conv3x3-w0.25": 17_000}
    template = next(run for run in runs if run.name == "resnet20-conv3x3-w0.6875-seed0")
    for name, size in sizes.items():
        config = dataclasses.replace(template.config, width=float(name.partition("-w")[2]))
        summary = dataclasses.replace(template.result, parameters=size)
        runs.append(dataclasses.replace(template, name=name, config=config, summary=summary, equal_to="rotate2"))
    pairs = {(one.row.conv, one.other.label) for one in contrasts(make_rows(runs)) if one.other.equal_to}
    assert pairs == {("rotate4", "conv3x3 x0.69"), ("rotate2", "conv3x3 x0.50")}
    without = [run for run in runs if run.name != "conv3x3-w0.5"]
    pairs = {(one.row.conv, one.other.label) for one in contrasts(make_rows(without)) if one.other.equal_to}
    assert pairs == {("rotate4", "conv3x3 x0.69")}  # a net of another size is no rival


def test_one_seed_decides_nothing(comparison: Path) -> None:
    runs = [run for run in read_comparison(comparison) if run.config.seed == 0]
    assert {one.verdict for one in contrasts(make_rows(runs))} == {"one seed: not decided"}
    assert "| rotate4 | 121,242 | 90.50 | +0.50 | 1 |" in accuracy_table(make_rows(runs))


def test_settings_are_told_where_they_differ(tmp_path: Path) -> None:
    for name, changes in {"recipe": {}, "unscaled": {"angle_grad_scale": 1.0}, "fast": {"angle_lr_scale": 3.0}}.items():
        for conv, accuracy in (("conv3x3", 90.0), ("rotate4", 80.0 + len(name))):
            config = make_config("digits", changes={"conv": conv, **changes})
            write_run(tmp_path / name / "runs" / f"resnet20-{conv}-seed0", config, accuracy)
    rows = make_rows([run for name in ("recipe", "unscaled", "fast") for run in read_comparison(tmp_path / name)])
    assert {row.setting for row in rows} == {"", "angle_grad_scale=1.0", "angle_lr_scale=3.0"}
    assert all(dense_of(row, rows).setting == row.setting for row in rows if row.conv == "rotate4")
    lines = [line for line in validation_table(rows).splitlines() if "| rotate4 |" in line]
    assert [line.split("|")[3].strip() for line in lines] == [
        "angle_grad_scale=1.0",
        "as the recipe",
        "angle_lr_scale=3.0",
    ]
    assert lines[0].endswith("| 88.00 | 1 |")
    assert "| rotate4 | as the recipe | 121,242 |" in accuracy_table(rows)


def test_the_same_seed_twice_is_refused(comparison: Path) -> None:
    runs = read_comparison(comparison)
    twice = next(run for run in runs if run.name == "resnet20-rotate4-seed1")
    with pytest.raises(RunError, match="resnet20-rotate4-seed1 and again have the same configuration and seed"):
        make_rows([*runs, dataclasses.replace(twice, name="again")])
