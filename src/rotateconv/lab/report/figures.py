"""The picture of a comparison, drawn from its rows alone: test accuracy against parameters."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotateconv.lab.train.run_folder import Record, write_bytes

_COLORS = ("#222222", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b")
_MARKERS = "osD^vP*X"
_MARKER_POINTS = 7
_DOTS_PER_INCH = 150
# Where a label may stand around its point, in points of print, the best place first.
_PLACES = (
    *((8, 0, "left"), (-8, 0, "right"), (0, 11, "center"), (0, -11, "center")),
    *((8, 10, "left"), (8, -10, "left"), (-8, 10, "right"), (-8, -10, "right")),
    *((8, 20, "left"), (8, -20, "left"), (-8, 20, "right"), (-8, -20, "right")),
)


@dataclass(frozen=True)
class _Label:
    """What stands beside a point with an error bar of y ± bar."""

    x: float
    y: float
    bar: float
    text: str
    color: str


def draw_comparison(rows: Sequence[Record], path: str | Path) -> None:
    """Draw test accuracy in percent over parameters, with error bars, as a PNG file at `path`.

    A colour is a convolution, a marker a model; hollow ones are dense nets narrowed to the size of another.
    Rows without a finished run are left out.

    Args:
        rows: of `comparison.json`; read are model, conv, label, equal_to, parameters, accuracy_mean,
            accuracy_std, n, dataset, recipe and epochs.
        path: of the picture.

    Example:
        >>> draw_comparison(read_rows("runs/demo/comparison.json"), "demo.png")  # doctest: +SKIP
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    drawn = [row for row in rows if row["accuracy_mean"] is not None]
    figure = Figure(figsize=(7.2, 4.6), dpi=_DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    frame_accuracy(axes, "parameters")
    axes.set_title(_title(rows), fontsize=10, loc="left")
    convs = list(dict.fromkeys(row["conv"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    labels: list[_Label] = []
    for row in drawn:
        color = _COLORS[convs.index(row["conv"]) % len(_COLORS)]
        point = (row["parameters"], row["accuracy_mean"])
        axes.errorbar(
            *point,
            yerr=row["accuracy_std"],
            color=color,
            marker=_MARKERS[models.index(row["model"]) % len(_MARKERS)],
            markersize=_MARKER_POINTS,
            markerfacecolor="white" if row["equal_to"] else color,
            capsize=3,
            linestyle="none",
        )
        model = f"{row['model']} " if len(models) > 1 else ""
        labels.append(_Label(*point, row["accuracy_std"] or 0.0, model + row["label"], color))
    if drawn:
        scale_parameters(axes, [row["parameters"] for row in drawn])
        axes.xaxis.set_minor_formatter(NullFormatter())
        canvas.draw()
        _place_labels(axes, canvas, labels)
    save_png(figure, path, _DOTS_PER_INCH)


def _title(rows: Sequence[Record]) -> str:
    if not rows:
        return ""
    first, counts = rows[0], sorted({row["n"] for row in rows})
    seeds = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    models = ", ".join(dict.fromkeys(row["model"] for row in rows))
    bars = "; bars: ± standard deviation" if counts[-1] > 1 else ""
    return f"{first['dataset']}, {models}, {first['epochs']} epochs of {first['recipe']}, {seeds}{bars}"


def save_png(figure: Any, path: str | Path, dpi: int) -> None:
    """Write a figure of Matplotlib as a PNG file, whole or not at all; the same figure gives the same bytes."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    write_bytes(Path(path), image.getvalue())


def frame_accuracy(axes: Any, over: str) -> None:
    """Prepare axes of Matplotlib for test accuracy over the logarithm of what `over` names."""
    axes.set_xscale("log")
    axes.set_xlabel(f"{over} (log scale)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scale_parameters(axes: Any, parameters: Sequence[float]) -> None:
    """Give the logarithmic x axis room for labels, and ticks that say 50k and 1M where a power of ten would be alone.

    Args:
        axes: of Matplotlib.
        parameters: of the points, at least one.
    """
    low, high = min(parameters), max(parameters)
    room = max(high / low, 1.5) ** 0.22
    axes.set_xlim(low / room, high * room)
    steps = (1, 2, 5) if high / low * room**2 > 4 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    ticks = [step * 10**power for power in range(2, 10) for step in steps]
    ticks = [tick for tick in ticks if low / room <= tick <= high * room]
    if len(ticks) < 2:
        ticks = sorted({*parameters})
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _short(number: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return f"{number:g}"


def _place_labels(axes: Any, canvas: Any, labels: Sequence[_Label]) -> None:
    """Write each label at the first place around its point where it hits no point, bar or label."""
    from matplotlib.transforms import Bbox

    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    taken = []
    for label in labels:
        low, high = axes.transData.transform([(label.x, label.y - label.bar), (label.x, label.y + label.bar)])
        taken.append(Bbox([low, high]).padded(_MARKER_POINTS / 2 * _DOTS_PER_INCH / 72))
    for label in labels:
        best: tuple[float, Any, Any] | None = None
        for right, up, align in _PLACES:
            text = axes.annotate(
                label.text,
                (label.x, label.y),
                (right, up),
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=9,
                color=label.color,
            )
            box = text.get_window_extent(renderer)
            outside = box.width * box.height - _common(box, frame)
            hit = sum(_common(box, other) for other in taken) + outside
            if best is not None and hit >= best[0]:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (hit, text, box)
            if hit == 0:
                break
        if best is not None:
            taken.append(best[2])


def _common(a: Any, b: Any) -> float:
    """Return the area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0) * max(height, 0))
