"""The picture of a comparison: it shows every row, and no label lies on another."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from rotateconv.lab.report.figures import draw_comparison
from rotateconv.lab.train.run_folder import Record


def row(conv: str, parameters: int, mean: float | None, std: float | None = 0.3, **changes: Any) -> Record:
    values: Record = {"model": "resnet20", "conv": conv, "label": conv, "equal_to": None, "n": 3}
    values |= {"parameters": parameters, "accuracy_mean": mean, "accuracy_std": std}
    return values | {"dataset": "cifar10", "recipe": "quick", "epochs": 6} | changes


ROWS = [
    row("conv3x3", 269_722, 81.8),
    row("rotate4", 121_242, 81.1),
    row("conv3x3", 128_017, 80.1, label="conv3x3 x0.69", equal_to="rotate4"),
    row("rotate2", 61_850, 70.3, 2.0),
    row("rotate2p", 63_866, 79.9),
    row("conv3x3", 68_050, 77.6, label="conv3x3 x0.50", equal_to="rotate2"),
]
TWO = [*ROWS, row("conv3x3", 1_019_722, 84.8, model="densenet40"), row("rotate4", 531_562, 84.1, model="densenet40")]


CROWD = [row(conv, 100_000 + 400 * place, 80.0, 0.01) for place, conv in enumerate(("rotate4", "mask4", "line"))]


@pytest.mark.parametrize("rows", [ROWS, TWO, ROWS[:1], ROWS[:2]], ids=len)
def test_every_row_is_a_point_with_its_bar_and_label(rows: list[Record], axes: list[Axes], tmp_path: Path) -> None:
    draw_comparison(rows, tmp_path / "picture.png")
    (drawn,) = axes
    points = [(bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in drawn.containers]
    assert points == [(row["parameters"], row["accuracy_mean"]) for row in rows]
    ends = [tuple(bars[2][0].get_segments()[0][:, 1]) for bars in drawn.containers]
    expected = [
        (row["accuracy_mean"] - row["accuracy_std"], row["accuracy_mean"] + row["accuracy_std"]) for row in rows
    ]
    assert [tuple(map(pytest.approx, pair)) for pair in expected] == ends
    several = len({row["model"] for row in rows}) > 1
    labels = [text.get_text() for text in drawn.texts]
    assert labels == [f"{row['model']} {row['label']}" if several else row["label"] for row in rows]
    assert drawn.get_xscale() == "log"
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("parameters (log scale)", "test accuracy (%)")
    assert len(drawn.get_xticks()) >= 1
    assert drawn.get_title(loc="left").startswith("cifar10, resnet20")


@pytest.mark.parametrize("rows", [ROWS, TWO, ROWS[:1], [*CROWD, ROWS[0]]], ids=["one", "two", "single", "crowd"])
def test_labels_lie_apart_and_inside(rows: list[Record], axes: list[Axes], tmp_path: Path) -> None:
    draw_comparison(rows, tmp_path / "picture.png")
    (drawn,) = axes
    renderer = drawn.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in drawn.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = drawn.get_window_extent(renderer)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 <= box.y1 <= frame.y1 for box in boxes)
    points = drawn.transData.transform([(row["parameters"], row["accuracy_mean"]) for row in rows])
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_the_file_is_a_picture_with_something_on_it(tmp_path: Path) -> None:
    draw_comparison(ROWS, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert min(image.size) > 500
        colors = image.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colors) > 100
    assert sum(count for count, color in colors if color == (255, 255, 255)) > 0.7 * sum(count for count, _ in colors)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_rows_without_a_result_are_left_out(axes: list[Axes], tmp_path: Path) -> None:
    draw_comparison([*ROWS[:2], row("rotate2", 61_850, None)], tmp_path / "picture.png")
    assert [text.get_text() for text in axes[0].texts] == ["conv3x3", "rotate4"]
    draw_comparison([row("rotate2", 61_850, None)], tmp_path / "empty.png")
    assert len(axes[1].texts) == 0


def test_one_seed_has_no_bar(axes: list[Axes], tmp_path: Path) -> None:
    draw_comparison([row("rotate4", 121_242, 81.1, None, n=1)], tmp_path / "picture.png")
    assert axes[0].containers[0][2] == ()
    assert "deviation" not in axes[0].get_title(loc="left")


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_comparison(ROWS, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
