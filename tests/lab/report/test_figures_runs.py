"""The pictures of a study: every row is in them, and nothing else but what is said to be published."""

import math
import statistics
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from rotateconv.lab.report.figures_runs import PUBLISHED, draw_angles, draw_curves, draw_parameters, draw_study
from rotateconv.lab.report.page import fill_page
from rotateconv.lab.report.statistics import make_rows
from rotateconv.lab.study.records import read_comparison
from study_runs import ACCURACIES, analysis_of, write_analysis, write_comparison


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison's folder, with a run that diverged."""
    return write_comparison(tmp_path / "digits")


def test_curves_show_every_row_over_epochs(comparison: Path, axes: list[Axes], tmp_path: Path) -> None:
    rows = make_rows(read_comparison(comparison))
    draw_curves(rows, tmp_path / "curves.png")
    loss, accuracy, moved = axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1.23457, 0.617284]] * 5
    expected = [
        [mean - 1, mean] for mean in (statistics.fmean(ACCURACIES[row.conv, row.width]) for row in rows if row.runs)
    ]
    assert [list(line.get_ydata()) for line in accuracy.lines] == [pytest.approx(pair) for pair in expected]
    assert [list(line.get_xdata()) for line in moved.lines] == [[1, 2]] * 2  # rotate4 and rotate2 learn angles
    assert [len(drawn.collections) for drawn in axes] == [0, 5, 2]  # bands


def test_points_of_the_rows_and_published_ones(comparison: Path, axes: list[Axes], tmp_path: Path) -> None:
    rows = make_rows(read_comparison(comparison))
    draw_parameters(rows, tmp_path / "ours.png")
    draw_parameters(rows, tmp_path / "all.png", PUBLISHED)
    ours, both = axes
    points = [(bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in ours.containers]
    assert points == [(row.parameters, row.accuracy.mean) for row in rows if row.runs]
    hollow = [bars[0].get_markerfacecolor() == "white" for bars in ours.containers]
    assert hollow == [row.equal_to is not None for row in rows if row.runs]
    crosses = [line for line in both.lines if line.get_marker() == "x"]
    assert [line.get_ydata()[0] for line in crosses] == [point.accuracy for point in PUBLISHED]
    legends = [[text.get_text() for text in drawn.figure.legends[0].texts] for drawn in axes]
    assert [name for name in legends[1] if name not in legends[0]] == ["published: true CIFAR-10,\nother recipes"]


def test_bars_of_an_analysed_run(axes: list[Axes], tmp_path: Path) -> None:
    draw_angles(analysis_of(crowded=True), tmp_path / "angles.png")
    moved, lost, spread = axes
    assert [bar.get_height() for bar in moved.patches] == [0.3] * 3
    assert [bar.get_height() for bar in lost.patches] == pytest.approx([8.0, 10.0, 9.0])
    assert [list(patch.get_data().values) for patch in spread.patches] == [[1, 2, 3, 4], [4, 3, 2, 1]]
    assert spread.patches[0].get_data().edges[-1] == pytest.approx(math.pi)


def test_lines_of_the_epochs_that_were_recorded(axes: list[Axes], tmp_path: Path) -> None:
    epochs = [[0.1, 0.1, 0.2], None, [0.3, 0.3, 0.3]]
    draw_angles(analysis_of(crowded=True), tmp_path / "angles.png", epochs)
    moved = axes[0]
    assert [list(line.get_ydata()) for line in moved.get_lines()] == [epochs[0], epochs[2]]
    assert [text.get_text() for text in moved.get_legend().get_texts()] == ["epoch 1", "epoch 3"]


def test_a_study_draws_what_its_page_names(comparison: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_analysis(comparison / "runs" / f"resnet20-rotate4-seed{seed}", analysis_of(crowded=True))
    rows = make_rows(read_comparison(comparison))
    expected = ["a-b-curves.png", "a-b-parameters.png", "a-b-resnet20-rotate4-seed1-angles.png"]
    assert draw_study("a/b", rows, tmp_path) == expected
    assert sorted(path.name for path in tmp_path.glob("*.png")) == expected
    page = fill_page("<!-- report: pictures a/b -->\n<!-- end -->", {"a/b": read_comparison(comparison)})
    assert all(f"](results/{name})" in page for name in expected)
