"""Kernels as grids of colored positions with their line on top."""

from collections.abc import Sequence

import torch
from svg import Theme, dot, line, tag

from rotateconv import line_kernel
from rotateconv.kernels.line import Path, tap_direction

EXAMPLE = (-0.9, 0.55, 1.0)
"""The taps of the kernel that most pictures show."""


def kernel(weights: Sequence[float], angle: float, size: int = 3, path: Path = "circle") -> list[list[float]]:
    """Return `line_kernel` of one slice, in float64."""
    weight, turned = (torch.tensor(values, dtype=torch.float64) for values in (weights, angle))
    rows: list[list[float]] = line_kernel(weight, turned, size, path).tolist()
    return rows


def positions(theme: Theme, left: float, top: float, cell: float, rows: Sequence[Sequence[float]]) -> list[str]:
    """Return the positions of a kernel, colored by its numbers."""
    return [
        tag(
            "rect",
            x=left + col * cell,
            y=top + row * cell,
            width=float(cell),
            height=float(cell),
            fill=theme.mix(value),
            stroke=theme.rule,
            stroke_width=1.5,
        )
        for row, values in enumerate(rows)
        for col, value in enumerate(values)
    ]


def segment(
    theme: Theme, x: float, y: float, cell: float, angle: float, weights: Sequence[float], path: Path = "circle"
) -> list[str]:
    """Return the line through (x, y), with its taps."""
    row, col = (float(part) * cell for part in tap_direction(torch.tensor(angle, dtype=torch.float64), path))
    half = len(weights) // 2
    parts = [line(x - half * col, y - half * row, x + half * col, y + half * row, theme.ink, cell / 19)]
    for step, weight in zip(range(-half, half + 1), weights, strict=True):
        ring = {"stroke": theme.ink, "stroke_width": cell / 22}
        parts.append(dot(x + step * col, y + step * row, cell / 6.2, theme.mix(weight), **ring))
    return parts


def laid_out(
    theme: Theme, left: float, top: float, cell: float, angle: float, weights: Sequence[float], path: Path = "circle"
) -> list[str]:
    """Return a kernel with its line on top."""
    size = len(weights)
    middle = size / 2 * cell
    rows = kernel(weights, angle, size, path)
    line_on_top = segment(theme, left + middle, top + middle, cell, angle, weights, path)
    return [*positions(theme, left, top, cell, rows), *line_on_top]
