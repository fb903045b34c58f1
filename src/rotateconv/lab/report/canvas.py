"""What all pictures have in common: size and type, legends below, axes of bytes, files that are the same every time."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rotateconv.lab.files import write_bytes
from rotateconv.lab.sample import Sample

WIDTH = 8.5
"""Inches: at the width of a page's column the type is as large as the page's."""
LegendEntry = tuple[str, str, str, str]
"""Of a legend: name, color, face of the marker, and the marker, or "" for a line."""


def picture_name(study: str, what: str, kind: str = "png") -> str:
    """Return the name of a picture of a study.

    Example:
        >>> picture_name("gpu/svhn", "sizes")
        'gpu-svhn-sizes.png'
    """
    return f"{study.replace('/', '-')}-{what}.{kind}"


def make_figure(rows: int, columns: int, height: float, title: str, **shared: Any) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=120, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False, **shared).flatten().tolist()
    for axes in every:
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure, every


def save(figure: Any, path: Path) -> None:
    """Write a figure as what its name ends with, whole or not at all; the same figure gives the same bytes."""
    from matplotlib import rc_context

    kind, image = path.suffix.removeprefix("."), io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "rotateconv"}):
        figure.savefig(image, format=kind, metadata=undated.get(kind))
    write_bytes(path, image.getvalue())


def legend(figure: Any, entries: Sequence[LegendEntry]) -> None:
    """Write the legend below the panels, in as many columns as there is room for."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=mark, markerfacecolor=face, linestyle="none" if mark else "-", label=name)
        for name, color, face, mark in entries
    ]
    longest = max((len(line) for name, *_ in entries for line in name.splitlines()), default=1)
    columns = max(1, min(len(entries), int(WIDTH * 12 / (longest + 6))))
    figure.legend(
        handles=handles, loc="outside lower left", ncols=columns, fontsize=9, frameon=False, columnspacing=1.2
    )


def scale_bytes(axes: Any, low: float, high: float) -> None:
    """Bound a logarithmic x axis, and give it ticks such as 50k and 1M where a power of ten would be alone."""
    steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10.0**power for power in range(10) for step in steps if low <= step * 10.0**power <= high]
    axes.set_xlim(low, high)
    if len(ticks) > 1:
        axes.set_xticks(ticks, [_short(tick) for tick in ticks])
        axes.set_xticks([], minor=True)


def mark(axes: Any, x: float, sample: Sample, color: str, marker: str, face: str, **style: Any) -> None:
    """Draw the mean of a sample, with error bars of ± the standard deviation where there are several values."""
    bars = None if sample.std is None else [[length] for length in bar(sample)]
    shown = {"capsize": 2, "elinewidth": 0.8, "linestyle": "none", **style}
    axes.errorbar([x], [sample.mean], yerr=bars, color=color, marker=marker, markerfacecolor=face, **shown)


def bar(sample: Sample, most: float = 100.0) -> tuple[float, float]:
    """Return how far an error bar goes down and up: the standard deviation, and not below 0 or beyond `most`.

    Example:
        >>> bar(Sample((98.0, 100.0)), most=100.0)
        (1.4142135623730951, 1.0)
    """
    deviation = sample.std or 0.0
    return min(deviation, max(0.0, sample.mean)), min(deviation, most - sample.mean if most < math.inf else deviation)


def _short(number: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return f"{number:g}"
