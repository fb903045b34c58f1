"""The pictures of a study: every group is in them with its own numbers, and nothing else but what is published."""

import dataclasses
import math
import statistics
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from rotateconv.lab.report.colors import COLORS
from rotateconv.lab.report.figures import draw_curves, draw_parameters, draw_sizes, draw_study
from rotateconv.lab.report.page import fill_page
from rotateconv.lab.report.published import Published
from rotateconv.lab.report.run_figures import draw_angles, draw_confusion
from rotateconv.lab.report.statistics import Group, make_groups
from rotateconv.lab.study.sizes import BITS, FLOAT, SizeRow, SizesTable
from rotateconv.lab.study.study_record import read_comparison
from rotateconv.models import CONVS
from study_runs import ACCURACIES, analysis_of, write_analysis, write_comparison


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison's folder, with a run that diverged."""
    return write_comparison(tmp_path / "digits")


@pytest.fixture
def groups(comparison: Path) -> list[Group]:
    return make_groups(read_comparison(comparison).runs)


def test_every_convolution_has_a_color_of_its_own() -> None:
    assert CONVS.keys() <= COLORS.keys()
    assert len(set(COLORS.values())) == len(COLORS)


def test_curves_show_every_group_over_epochs(groups: list[Group], axes: list[Axes], tmp_path: Path) -> None:
    draw_curves(groups, tmp_path / "curves.png")
    loss, accuracy, moved = axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1.23457, 0.617284]] * 5
    means = [statistics.fmean(ACCURACIES[group.config.conv, group.config.width]) for group in groups if group.runs]
    assert [list(line.get_ydata()) for line in accuracy.lines] == [pytest.approx([mean - 1, mean]) for mean in means]
    assert [list(line.get_xdata()) for line in moved.lines] == [[1, 2]] * 2  # rotate4 and rotate2 learn angles
    assert [line.get_color() for line in moved.lines] == [COLORS["rotate4"], COLORS["rotate2"]]
    assert [len(drawn.collections) for drawn in axes] == [0, 5, 2]  # bands
    assert accuracy.get_ylim()[0] < min(means) < max(means) < accuracy.get_ylim()[1] <= 100.5


def test_many_curves_get_a_panel_each(groups: list[Group], axes: list[Axes], tmp_path: Path) -> None:
    several = [dataclasses.replace(group, setting=f"lr={n}") for n in range(2) for group in groups if group.runs]
    draw_curves(several, tmp_path / "curves.png")
    panels = [drawn for drawn in axes if drawn.get_visible()]
    assert len(panels) == len(several) == 10
    for drawn, group in zip(panels, several, strict=True):
        assert len(drawn.lines) == len(several) + 1  # all of them pale, and its own
        own = drawn.lines[-1]
        assert list(own.get_ydata()) == [sample.mean for sample in group.curve("validation_accuracy")]
        assert drawn.get_title(loc="left").startswith(f"{group.label} {group.setting}\n{own.get_ydata()[-1]:.2f} ± ")
    assert len({drawn.get_ylim() for drawn in panels}) == 1


def test_no_band_goes_below_nothing(groups: list[Group], axes: list[Axes], tmp_path: Path) -> None:
    rotated = next(group for group in groups if group.label == "rotate4")
    runs = [
        dataclasses.replace(run, curves=dataclasses.replace(run.curves, angle_movement_mean=(0.0, seed)))
        for seed, run in enumerate(rotated.runs)
    ]
    draw_curves([dataclasses.replace(rotated, runs=tuple(runs[::2]))], tmp_path / "curves.png")
    (band,) = axes[2].collections
    assert band.get_paths()[0].vertices[:, 1].min() >= 0


POINT = Published("ResNet-20", 0.27e6, 91.25, "He et al.", ("digits",), "published elsewhere")


def test_points_of_the_groups_and_published_ones(groups: list[Group], axes: list[Axes], tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(POINT, data=("cifar10",))
    for name, published in (("ours", ()), ("all", (POINT, elsewhere))):
        draw_parameters(groups, tmp_path / f"{name}.png", published)
    ours, both = axes
    drawn = [group for group in groups if group.accuracy is not None]
    points = [(bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in ours.containers]
    assert points == [(group.parameters, group.accuracy.mean) for group in drawn if group.accuracy]
    hollow = [bars[0].get_markerfacecolor() == "white" for bars in ours.containers]
    assert hollow == [group.equal_to is not None for group in drawn]
    crosses = [line for line in both.lines if line.get_marker() == "x"]
    assert [line.get_ydata()[0] for line in crosses] == [POINT.accuracy]
    legends = [[text.get_text() for text in one.figure.legends[0].texts] for one in axes]
    assert [name for name in legends[1] if name not in legends[0]] == ["published elsewhere"]


def test_no_bar_goes_beyond_what_is_possible(groups: list[Group], axes: list[Axes], tmp_path: Path) -> None:
    (dense,) = [group for group in groups if group.dense]
    high = [
        dataclasses.replace(run, summary=dataclasses.replace(run.result, test_accuracy=accuracy))
        for run, accuracy in zip(dense.runs, (99.0, 100.0, 100.0), strict=True)
    ]
    draw_parameters([dataclasses.replace(dense, runs=tuple(high))], tmp_path / "picture.png")
    (bars,) = axes[0].containers
    low, top = bars[2][0].get_segments()[0][:, 1]
    mean, std = 299 / 3, statistics.stdev([99, 100, 100])
    assert (low, top) == (pytest.approx(mean - std), 100.0)


def test_bars_of_an_analysed_run(axes: list[Axes], tmp_path: Path) -> None:
    epochs = [[0.1, 0.1, 0.2], None, [0.3, 0.3, 0.3]]
    draw_angles(analysis_of(crowded=True), tmp_path / "angles.png", epochs, color="#0072b2")
    moved, lost, spread = axes
    blue = to_rgb("#0072b2")
    assert {bar.get_facecolor()[:3] for bar in (*moved.patches, *lost.patches)} == {blue}
    assert spread.patches[1].get_edgecolor()[:3] == blue
    assert [bar.get_width() for bar in moved.patches] == [0.3] * 3
    assert [bar.get_width() for bar in lost.patches] == pytest.approx([8.0, 10.0, 9.0])
    assert [list(patch.get_data().values) for patch in spread.patches] == [[1, 2, 3, 4], [4, 3, 2, 1]]
    assert spread.patches[0].get_data().edges[-1] == pytest.approx(math.pi)
    assert [list(line.get_xdata()) for line in moved.get_lines()] == [epochs[0], epochs[2]]
    assert [text.get_text() for text in moved.get_legend().get_texts()] == ["epoch 1", "epoch 3"]
    assert [tick.get_text() for tick in moved.get_yticklabels()] == ["stages.2", "stages.0", "stages.1"]
    assert moved.get_ylim()[0] > moved.get_ylim()[1], "the input is on top"


@pytest.mark.parametrize("number", [2, 21, 41])
def test_a_confusion_matrix_has_the_parts_of_its_rows(number: int, axes: list[Axes], tmp_path: Path) -> None:
    counts = [[3 if row == column else 1 for column in range(number)] for row in range(number - 1)] + [[0] * number]
    draw_confusion(counts, [f"class {n}" for n in range(number)], tmp_path / "confusion.png")
    (image,) = axes[0].images
    shares = image.get_array()
    assert shares[0, 0] == pytest.approx(3 / (number + 2))
    assert shares[-1].sum() == 0
    assert len(axes[0].texts) == (number**2 if number <= 20 else 0)
    assert len(axes[0].get_yticklabels()) == number or number > 40


def test_a_study_draws_what_its_page_names(comparison: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_analysis(comparison / "runs" / f"resnet20-rotate4-seed{seed}", analysis_of(crowded=True))
    study = read_comparison(comparison)
    expected = ["a-b-curves.png", "a-b-parameters.png", "a-b-resnet20-rotate4-seed1-angles.png"]
    assert draw_study("a/b", make_groups(study.runs), tmp_path) == expected
    assert sorted(path.name for path in tmp_path.glob("*.png")) == expected
    page = fill_page("<!-- report: pictures a/b -->\n<!-- end -->", {"a/b": study})
    assert all(f"](results/{name})" in page for name in expected)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_groups_give_the_same_bytes(kind: str, groups: list[Group], tmp_path: Path) -> None:
    for name in "ab":
        draw_parameters(groups, tmp_path / f"{name}.{kind}")
    first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])


def rows_of(
    label: str, size: int, best: float, bits: tuple[int, ...] = (FLOAT, 4, 3), qat: bool = False
) -> list[SizeRow]:
    """The rows of a model that loses half a point with each step of quantization."""
    rows = []
    for steps, width in enumerate(bits):
        accuracies = (best - steps / 2, best - steps / 2 - 1)
        rows.append(SizeRow(label, "conv3x3" in label, width, qat, size * width / 32, accuracies))
    return rows


DENSE = [*rows_of("resnet20, conv3x3", 1_000_000, 82), *rows_of("resnet20, conv3x3 x0.50", 270_000, 78)]
ROTATED = [*rows_of("resnet20, rotate4", 490_000, 80.5), *rows_of("resnet20, rotate2p", 260_000, 80)]
FAR = rows_of("resnet20, rotate2", 250_000, 70)
TRAINED = rows_of("resnet20, rotate2p", 260_000, 80.5, (4,), qat=True)


def points(drawn: Axes) -> list[tuple[float, float]]:
    return [(bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in drawn.containers]


def shown(drawn: Axes) -> set[tuple[float, float]]:
    """The points inside the frame."""
    (left, right), (bottom, top) = drawn.get_xlim(), drawn.get_ylim()
    return {(x, y) for x, y in points(drawn) if left < x < right and bottom < y < top}


def places(rows: list[SizeRow]) -> list[tuple[float, float]]:
    return [(row.bytes / 1e3, row.accuracy.mean) for row in rows]


def test_sizes_show_every_row_but_the_hopeless(axes: list[Axes], tmp_path: Path) -> None:
    hopeless = rows_of("resnet20, rotate4-fixed", 300_000, 20)
    rows = [*DENSE, *ROTATED, *TRAINED, *FAR]
    draw_sizes(SizesTable("digits", (*rows, *hopeless)), tmp_path / "sizes.png")
    (drawn,) = axes
    assert points(drawn) == places(rows)
    assert shown(drawn) == set(places(rows))
    assert "3 rows more than 25 points below the best left out" in drawn.figure.get_suptitle()
    filled = [bars[0].get_markerfacecolor() != "white" for bars in drawn.containers]
    assert filled == [row.qat for row in rows]
    colors = {row.label: bars[0].get_color() for row, bars in zip(rows, drawn.containers, strict=True)}
    assert colors["resnet20, rotate4"] == COLORS["rotate4"]
    assert colors["resnet20, conv3x3 x0.50"] == COLORS["conv3x3"]


@pytest.mark.parametrize("rows", [DENSE[:1], ROTATED, TRAINED], ids=len)
def test_sizes_of_a_single_kind(rows: list[SizeRow], axes: list[Axes], tmp_path: Path) -> None:
    draw_sizes(SizesTable("digits", tuple(rows)), tmp_path / "sizes.png")
    (drawn,) = axes
    assert shown(drawn) == set(places(rows))


def test_no_bar_of_sizes_passes_a_hundred(axes: list[Axes], tmp_path: Path) -> None:
    row = dataclasses.replace(DENSE[0], accuracies=(99.0, 100.0, 100.0))
    draw_sizes(SizesTable("digits", (row,)), tmp_path / "sizes.png")
    assert axes[0].containers[0][2][0].get_segments()[0][:, 1].max() == 100
    assert axes[0].get_ylim()[1] <= 100.5


def test_every_number_of_bits_has_a_marker_of_its_own(axes: list[Axes], tmp_path: Path) -> None:
    widths = (FLOAT, *range(8, 1, -1))
    assert set(BITS) <= set(widths)
    rows = rows_of("resnet20, conv3x3", 1_000_000, 82, widths)
    draw_sizes(SizesTable("digits", tuple(rows)), tmp_path / "sizes.png")
    assert len({bars[0].get_marker() for bars in axes[0].containers}) == len(widths)
