"""The picture of accuracy against bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rotateconv.lab.report.figures import frame_accuracy, save_png
from rotateconv.lab.study.sizes import FLOAT, SizeRow, pareto

_DENSE = "#222222"
_COLORS = (
    *("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#9467bd"),
    *("#bcbd22", "#17becf", "#e377c2", "#7f0000", "#006400", "#4b0082"),
)
_MARKERS = {FLOAT: "s", 8: "p", 7: "h", 6: "P", 5: "X", 4: "o", 3: "^", 2: "v"}
_FAR = 25.0  # points below the best: what two bits leave of a net not trained for them would flatten everything else
_NEAR = 6.0  # points below the best packed dense net: where nets are worth a closer look


def draw_sizes(rows: Sequence[SizeRow], path: Path, dataset: str) -> None:
    """Draw test accuracy over bytes as a PNG file: a line a net, a marker for the bits, filled where trained with them.

    All dense nets are black, and a dashed line goes through the best of them. Where packed and float32 nets are
    shown together, a second panel looks closer at the packed ones near that line.

    Args:
        rows: as of `measure_sizes`.
        path: of the picture.
        dataset: for the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    near = _near(rows)
    figure = Figure(figsize=(12.5 if near else 9.0, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if near else 1, squeeze=False)[0]
    best = max(row.accuracy for row in rows)
    colors = _colors(rows)
    _draw(panels[0], rows, colors, [row for row in rows if row.accuracy > best - _FAR])
    panels[0].set_title(f"{dataset}: accuracy against bytes", fontsize=10, loc="left")
    if near:
        _draw(panels[1], rows, colors, near)
        panels[1].set_title("the packed ones near the dense nets", fontsize=10, loc="left")
    _legend(figure, panels[0], rows, colors)
    save_png(figure, path, 150)


def _near(rows: Sequence[SizeRow]) -> list[SizeRow]:
    """Return the packed rows near the best packed dense net; none where there is no such net, or no other row."""
    packed = [row for row in rows if row.bits != FLOAT]
    dense = [row.accuracy for row in packed if row.dense]
    near = [row for row in packed if dense and row.accuracy > max(dense) - _NEAR]
    return near if 1 < len(near) < len(rows) else []


def _draw(axes: Any, rows: Sequence[SizeRow], colors: Mapping[str, str], shown: Sequence[SizeRow]) -> None:
    """Draw all rows into a panel that has room for those that are to be seen."""
    frame_accuracy(axes, "kilobytes of the file")
    frontier = pareto([row for row in rows if row.dense])
    if len(frontier) > 1:
        points = ([row.bytes / 1e3 for row in frontier], [row.accuracy for row in frontier])
        axes.plot(*points, color=_DENSE, linestyle="--", linewidth=1)
    for label, color in colors.items():
        own = [row for row in rows if row.label == label and not row.qat]
        axes.plot([row.bytes / 1e3 for row in own], [row.accuracy for row in own], color=color, linewidth=0.8)
    for row in rows:
        axes.errorbar(
            row.bytes / 1e3,
            row.accuracy,
            yerr=row.deviation or 0.0,
            color=colors[row.label],
            marker=_MARKERS[row.bits],
            markerfacecolor=colors[row.label] if row.qat else "white",
            markersize=5.5,
            elinewidth=0.8,
            capsize=2,
        )
    sizes = [row.bytes / 1e3 for row in shown]
    low, high = min(sizes) / 1.15, max(sizes) * 1.15
    axes.set_xlim(low, high)
    bars = [(row.accuracy, row.deviation or 0.0) for row in shown]
    axes.set_ylim(min(mean - bar for mean, bar in bars) - 0.4, max(mean + bar for mean, bar in bars) + 0.4)
    steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10**power for power in range(6) for step in steps if low <= step * 10**power <= high]
    if len(ticks) > 1:
        axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        axes.set_xticks([], minor=True)


def _colors(rows: Sequence[SizeRow]) -> dict[str, str]:
    """Return the colour of each net by its label, dense ones first."""
    dense = dict.fromkeys(row.label for row in rows if row.dense)
    others = dict.fromkeys(row.label for row in rows if not row.dense)
    colors = {label: _COLORS[number % len(_COLORS)] for number, label in enumerate(others)}
    return dict.fromkeys(dense, _DENSE) | colors


def _legend(figure: Any, axes: Any, rows: Sequence[SizeRow], colors: Mapping[str, str]) -> None:
    """Say beside the panels which colour is which net and which marker how many bits."""
    entries: list[tuple[str, dict[str, Any]]] = []
    if any(row.dense for row in rows):
        entries += [("dense nets; dashed: the best", {"color": _DENSE, "linewidth": 1})]
    entries += [(label, {"color": color}) for label, color in colors.items() if color != _DENSE]
    for bits in sorted({row.bits for row in rows}, reverse=True):
        told = "float32" if bits == FLOAT else f"{bits} bits"
        look = {"color": _DENSE, "marker": _MARKERS[bits], "markerfacecolor": "white", "linestyle": ""}
        entries.append((told, look))
    if any(row.qat for row in rows):
        entries.append(("filled: trained with rounding", {"color": _DENSE, "marker": "o", "linestyle": ""}))
    handles = [axes.plot([], [], label=told, **look)[0] for told, look in entries]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside right upper")
