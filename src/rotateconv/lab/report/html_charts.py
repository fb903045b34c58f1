"""Charts as inline SVG that takes its colors from the page around it, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 32


@dataclass(frozen=True)
class Series:
    """A line of a chart: its name, a value per epoch from the first on (None for unknown), a color of CSS."""

    name: str
    values: tuple[float | None, ...]
    color: str


def line_chart(title: str, series: Sequence[Series], *, log: bool = False) -> str:
    """Return a figure with a line per series over the epochs, each named with its last value.

    Args:
        title: What is measured, with its unit.
        series: As many epochs each; those without a value are left out, and without any the figure is "".
        log: Whether the vertical axis is logarithmic, for values above 0.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    points = {one: [(epoch, v) for epoch, v in enumerate(one.values, 1) if v is not None] for one in series}
    points = {one: [(x, y) for x, y in found if not log or y > 0] for one, found in points.items()}
    points = {one: found for one, found in points.items() if found}
    if not points:
        return ""
    every = [y for found in points.values() for _, y in found]
    low, high = min(every), max(every)
    if log:
        low, high = low / 1.1, high * 1.1
    else:
        room = 0.06 * (high - low) or 1.0
        low, high = max(0.0, low - room) if low >= 0 else low - room, high + room
        high = min(high, 100.0) if max(every) <= 100 and "%" in title else high
    last = max(x for found in points.values() for x, _ in found)

    def across(epoch: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * ((epoch - 1) / (last - 1) if last > 1 else 0.5)

    def down(value: float) -> float:
        part = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * part

    locator = LogLocator(subs=(1, 2, 5)) if log and high / low < 1e3 else LogLocator() if log else MaxNLocator(5)
    marks = [value for value in locator.tick_values(low, high) if low <= value <= high]
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in marks
    ]
    epochs = sorted({round(x) for x in MaxNLocator(6, integer=True).tick_values(1, last) if 1 <= x <= last} | {1, last})
    crowded = (last - 1) / 12
    epochs = [x for x in epochs if x in (1, last) or (crowded < x - 1 and crowded < last - x)]
    parts += [f'<text x="{across(x):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{x}</text>' for x in epochs]
    parts.append(f'<text x="{(WIDTH + _LEFT) / 2}" y="{_HEIGHT - 1}" text-anchor="middle" class="faint">epoch</text>')
    for one, found in points.items():
        places = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in found)
        parts.append(f'<polyline points="{places}" style="stroke:{one.color}"/>')
        if last < 12:
            parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.5" fill="{one.color}"/>' for x, y in found]
    names = "".join(
        f'<li><i style="background:{one.color}"></i>{escape(one.name)} <b>{found[-1][1]:.4g}</b></li>'
        for one, found in points.items()
    )
    drawn = _svg(WIDTH, _HEIGHT, "chart", f"{title} over the epochs", "".join(parts))
    return f'<figure><h3>{escape(title)}</h3>{drawn}<ul class="key">{names}</ul></figure>'


def rose(before: Sequence[int] | None, after: Sequence[int], turns: int, name: str) -> str:
    """Return how angles lie as a rose: the area of a petal is their number, the outline how they lay before.

    Args:
        before, after: Counts in equal parts of the period, counter-clockwise from the right.
        turns: Periods in a whole turn: 2 where a kernel comes back after half of one.
        name: Of whose angles they are.
    """
    counts = [list(found) * turns for found in (after, before or ())]
    most = math.sqrt(max(max(found) for found in counts if found) or 1)

    def petals(found: Sequence[int]) -> str:
        path = []
        for number, count in enumerate(found):
            radius = 46 * math.sqrt(count) / most
            ends = [2 * math.pi * (number + step) / len(found) for step in (0, 1)]
            (x, y), (u, v) = [(radius * math.cos(angle), -radius * math.sin(angle)) for angle in ends]
            path.append(f"L{x:.1f} {y:.1f}A{radius:.1f} {radius:.1f} 0 0 0 {u:.1f} {v:.1f}")
        return f"M{path[0][1:].partition('A')[0]}{''.join(path)}Z"

    parts = ['<circle class="grid" r="46"/><path class="grid" d="M-49 0H49M0-49V49"/>']
    parts.append(f'<path class="after" d="{petals(counts[0])}"/>')
    parts += [f'<path class="before" d="{petals(counts[1])}"/>'] if before else []
    return _svg(100, 100, "rose", f"angles of {name}", "".join(parts), "-50 -50 100 100")


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Return how many images of each class (rows) were taken for which (columns); the shade is the row's part.

    Args:
        counts: [true][predicted], a row per class.
        classes: Their names, which stand beside the rows of up to 40.
    """
    number = len(classes)
    cell = 26 if number <= 20 else max(3, 520 // number)
    named = number <= 40
    left = 12 + (min(110, 7 * max(len(name) for name in classes)) if named else 0)
    top = 18 if number > 20 else 34
    parts = [f'<text x="{left}" y="12" class="faint">predicted, in the order of the rows</text>']
    for row, (name, found) in enumerate(zip(classes, counts, strict=True)):
        y, total = top + row * cell, sum(found)
        if named:
            short = name if len(name) <= 15 else f"{name[:14]}…"
            parts.append(f'<text x="{left - 6}" y="{y + cell / 2 + 4:.1f}" text-anchor="end">{escape(short)}</text>')
        if number <= 20:
            parts.append(f'<text x="{left + row * cell + 13}" y="28" text-anchor="middle">{escape(name[:3])}</text>')
        for column, count in enumerate(found):
            x = left + column * cell
            if not count:
                continue
            share, kind = math.sqrt(count / total), "right" if row == column else "wrong"
            tip = f"{name} taken for {classes[column]}: {count} of {total}"
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{max(share, 0.15):.2f}"><title>{escape(tip)}</title></rect>'
            )
            if number <= 20:
                ink = "over" if share > 0.7 else "on"
                shown = count if count < 10_000 else f"{count / 1e3:.0f}k"
                parts.append(
                    f'<text class="{ink}" x="{x + cell / 2 - 0.5}" y="{y + 17}" text-anchor="middle">{shown}</text>'
                )
    size = number * cell
    frame = f'<rect class="frame" x="{left - 1}" y="{top - 1}" width="{size + 1}" height="{size + 1}"/>'
    return _svg(left + size + 2, top + size + 2, "matrix", "confusion matrix", frame + "".join(parts))


def _svg(width: int, height: int, kind: str, label: str, inside: str, box: str = "") -> str:
    box = box or f"0 0 {width} {height}"
    return (
        f'<svg class="{kind}" viewBox="{box}" style="--width:{width}px" role="img" '
        f'aria-label="{escape(label)}">{inside}</svg>'
    )
