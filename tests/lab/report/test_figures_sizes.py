"""The picture of accuracy against bytes: every row is in it, and the panel that looks closer shows what lies near."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes

from rotateconv.lab.report.figures_sizes import draw_sizes
from rotateconv.lab.study.sizes import BITS, FLOAT, SizeRow


def net(label: str, size: int, best: float, bits: tuple[int, ...] = (FLOAT, 4, 3), qat: bool = False) -> list[SizeRow]:
    """The rows of a net that loses half a point with each step of rounding."""
    rows = []
    for steps, width in enumerate(bits):
        accuracies = (best - steps / 2, best - steps / 2 - 1)
        rows.append(SizeRow(label, label.startswith("conv3x3"), width, qat, size * width / 32, accuracies))
    return rows


DENSE = [*net("conv3x3", 1_000_000, 82), *net("conv3x3 of width 0.5", 270_000, 78)]
LINES = [*net("rotate4", 490_000, 80.5), *net("rotate2p", 260_000, 80)]
FAR = net("rotate2", 250_000, 70)
TRAINED = net("rotate2p", 260_000, 80.5, (4,), qat=True)


def points(drawn: Axes) -> list[tuple[float, float]]:
    return [(bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in drawn.containers]


def shown(drawn: Axes) -> set[tuple[float, float]]:
    """The points inside the frame."""
    (left, right), (bottom, top) = drawn.get_xlim(), drawn.get_ylim()
    return {(x, y) for x, y in points(drawn) if left < x < right and bottom < y < top}


def places(rows: list[SizeRow]) -> list[tuple[float, float]]:
    return [(row.bytes / 1e3, row.accuracy) for row in rows]


def test_both_panels_have_every_row_and_the_first_shows_it(axes: list[Axes], tmp_path: Path) -> None:
    rows = [*DENSE, *LINES, *TRAINED, *FAR]
    draw_sizes(rows, tmp_path / "sizes.png", "digits")
    everything, near = axes
    assert points(everything) == points(near) == places(rows)
    assert shown(everything) == set(places(rows))
    packed = {place for row, place in zip(rows, places(rows), strict=True) if row.bits != FLOAT}
    assert shown(near) == packed - set(places(FAR))


def test_a_marker_is_filled_only_where_the_net_was_trained_with_its_bits(axes: list[Axes], tmp_path: Path) -> None:
    rows = [*LINES, *TRAINED]
    draw_sizes(rows, tmp_path / "sizes.png", "digits")
    filled = [bars[0].get_markerfacecolor() != "white" for bars in axes[0].containers]
    assert filled == [row.qat for row in rows]


@pytest.mark.parametrize("rows", [DENSE[:1], DENSE[1:2], LINES, FAR, TRAINED], ids=len)
def test_one_panel_where_there_is_nothing_to_look_closer_at(
    rows: list[SizeRow], axes: list[Axes], tmp_path: Path
) -> None:
    draw_sizes(rows, tmp_path / "sizes.png", "digits")
    (drawn,) = axes
    assert shown(drawn) == set(places(rows))


def test_every_number_of_bits_has_a_marker_of_its_own(axes: list[Axes], tmp_path: Path) -> None:
    widths = (FLOAT, *range(8, 1, -1))
    assert set(BITS) <= set(widths)
    draw_sizes(net("conv3x3", 1_000_000, 82, widths), tmp_path / "sizes.png", "digits")
    assert len({bars[0].get_marker() for bars in axes[0].containers}) == len(widths)
