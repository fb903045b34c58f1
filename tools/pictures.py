"""The pictures of the README and of the pages, from `line_kernel` and the committed records: `make pictures`."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from concepts import gradient_scale, groups, path, quantized_angles, taps
from grids import EXAMPLE, kernel
from svg import THEMES, Theme, document, dot, line, number, polyline, tag, text

from rotateconv.lab.report.frontier import Point, make_points
from rotateconv.lab.report.statistics import make_groups
from rotateconv.lab.study.study_record import read_study

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pictures"
BYTES = ROOT / "experiments" / "bytes"

CELL = 56.0
TURN_SECONDS = 10


def turning(theme: Theme) -> str:
    """One kernel, turning: its nine positions are `line_kernel` at 48 angles."""
    weights, frames = EXAMPLE, 48
    kernels = [kernel(weights, 2 * math.pi * frame / frames) for frame in range(frames + 1)]
    left, top = 176.0, 26.0
    middle = left + 1.5 * CELL, top + 1.5 * CELL
    timing = {"dur": f"{TURN_SECONDS}s", "repeatCount": "indefinite"}
    parts = []
    for row in range(3):
        for col in range(3):
            values = ";".join(theme.mix(found[row][col]) for found in kernels)
            change = tag("animate", attributeName="fill", values=values, **timing)
            place = {"x": left + col * CELL, "y": top + row * CELL, "width": CELL, "height": CELL}
            start = theme.mix(kernels[0][row][col])
            parts.append(tag("rect", change, **place, fill=start, stroke=theme.rule, stroke_width=1.5))
    turn = {"from": f"0 {number(middle[0])} {number(middle[1])}", "to": f"-360 {number(middle[0])} {number(middle[1])}"}
    arm = [line(middle[0] - CELL, middle[1], middle[0] + CELL, middle[1], theme.ink, 3.0)]
    for step, weight in zip((-1, 0, 1), weights, strict=True):
        ring = {"stroke": theme.ink, "stroke_width": 2.5}
        arm.append(dot(middle[0] + step * CELL, middle[1], 9, theme.mix(weight), **ring))
    spin = tag("animateTransform", attributeName="transform", type="rotate", **turn, **timing)
    parts.append(tag("g", "".join([*arm, spin])))

    parts.append(text(14, top + 16, "learned", theme.faint))
    for place, (name, weight) in enumerate(zip(("w₋₁", "w₀", "w₁"), weights, strict=True)):
        y = top + 44 + place * 30
        parts += [dot(24, y - 5, 9, theme.mix(weight), stroke=theme.ink, stroke_width=2)]
        parts += [text(44, y, name, theme.ink, 16)]
    y = top + 44 + 3 * 30
    parts += [line(15, y - 5, 33, y - 5, theme.ink, 3.0), text(44, y, "θ", theme.ink, 16)]
    parts += [text(112, top + 1.5 * CELL + 8, "→", theme.faint, 26)]
    parts.append(text(left + 1.5 * CELL, top + 3 * CELL + 24, "the 3 × 3 kernel", theme.faint, text_anchor="middle"))
    parts.append(text(14, top + 3 * CELL + 24, "4 numbers", theme.faint))
    return document(360, 236, "A kernel of three taps on a line through its center, turning once around", parts)


def accuracy_against_bytes(theme: Theme) -> str:
    """What is recorded of experiments/bytes: models that were trained with quantized numbers, from trained ones."""
    study = read_study(BYTES)
    points = make_points(make_groups(study.runs), study.files)
    lines = [p for p in points if p.family == "RotateConv"]  # of each size the best so far on validation images
    best = [p for p in lines if p.validation == max(q.validation for q in lines if q.packed <= p.packed)]
    curves = {
        ("RotateConv lines", theme.blue, (8, 16)): best,
        ("dense, ternary", theme.ink, (-8, -9)): [p for p in points if p.family == "dense" and p.bits == "2"],
        ("dense, binary", theme.faint, (-8, -10)): [p for p in points if p.family == "dense" and p.bits == "1"],
    }
    shown = [point for own in curves.values() for point in own]
    low, high = (edge(point.packed for point in shown) * room for edge, room in ((min, 0.9), (max, 1.12)))
    bottom = math.floor(min(point.accuracy.mean for point in shown)) - 0.5
    top = math.ceil(max(point.accuracy.mean for point in shown))
    left, right, upper, lower = 46.0, 506.0, 40.0, 222.0

    def place(size: float, accuracy: float) -> tuple[float, float]:
        across = math.log(size / low) / math.log(high / low)
        return left + across * (right - left), lower - (accuracy - bottom) / (top - bottom) * (lower - upper)

    parts = [text(left - 34, 18, "ResNet-20 on cifar10-jpeg: test accuracy, %", theme.ink, 14, font_weight=600)]
    for accuracy in range(math.ceil(bottom), top + 1):
        y = place(low, accuracy)[1]
        parts += [line(left, y, right, y, theme.rule, 0.7)]
        parts += [text(left - 8, y + 4, str(accuracy), theme.faint, 12, text_anchor="end")]
    for size in (15, 20, 25, 30, 40, 50, 60):
        if low < size * 1e3 < high:
            x = place(size * 1e3, bottom)[0]
            parts += [line(x, lower, x, lower + 4, theme.faint)]
            parts += [text(x, lower + 19, str(size), theme.faint, 12, text_anchor="middle")]
    parts.append(text(right, lower + 38, "packed file, kB", theme.ink, 13, text_anchor="end"))
    for (name, color, offset), own in curves.items():
        if own:
            parts += _curve(own, place, color, name, offset)
    title = "Accuracy against bytes of ResNet-20 models trained with quantized numbers: lines and dense ones"
    return document(520, 266, title, parts)


def _curve(
    own: Sequence[Point],
    place: Callable[[float, float], tuple[float, float]],
    color: str,
    name: str,
    offset: tuple[float, float],
) -> list[str]:
    """A line from point to point with bars of one standard deviation, called by its name at its end."""
    places = [place(point.packed, point.accuracy.mean) for point in own]
    parts = [polyline(places, color)]
    for point, (x, y) in zip(own, places, strict=True):
        std = point.accuracy.std or 0.0
        ends = [place(point.packed, point.accuracy.mean + side * std)[1] for side in (-1, 1)]
        parts += [line(x, ends[0], x, ends[1], color, 1.5), dot(x, y, 4, color)]
    x, y = places[-1]
    anchor = "end" if offset[0] < 0 else "start"
    return [*parts, text(x + offset[0], y + offset[1], name, color, 13, font_weight=600, text_anchor=anchor)]


PICTURES: dict[str, Callable[[Theme], str]] = {
    "turning-kernel": turning,
    "accuracy-bytes": accuracy_against_bytes,
    "taps": taps,
    "path": path,
    "angle-groups": groups,
    "gradient-scale": gradient_scale,
    "quantized-angles": quantized_angles,
}


def draw(folder: Path) -> None:
    """Write every picture for light and dark pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PICTURES.items():
        for theme in THEMES:
            (folder / f"{name}-{theme.name}.svg").write_text(make(theme), "utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGES)
