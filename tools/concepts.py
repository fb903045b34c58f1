"""The pictures of the page of concepts."""

import math

import torch
from grids import EXAMPLE, kernel, laid_out, positions, segment
from svg import Theme, document, dot, line, number, polyline, tag, text

from rotateconv import RotateConv2d
from rotateconv.quantization.primitives import decode_angle

CELL = 46.0
SIDE = 3 * CELL


def taps(theme: Theme) -> str:
    """The three ways to come by the numbers on a line, at one angle."""
    angle = math.radians(30)
    panels = (
        ("free", EXAMPLE, "3 weights and θ"),
        ("shared", (0.75, 0.75, 0.75), "1 weight and θ"),
        ("profile", tuple(0.9 * value for value in (0.55, -1.1, 0.55)), "1 weight and θ; profile of the channel"),
    )
    parts = []
    for place, (name, weights, words) in enumerate(panels):
        left = 20 + place * 200.0
        parts += laid_out(theme, left, 36, CELL, angle, weights)
        parts.append(text(left, 24, f'taps="{name}"', theme.ink, 15, font_weight=600))
        first, _, rest = words.partition("; ")
        parts.append(text(left, 36 + SIDE + 24, first, theme.faint, 14))
        parts += [text(left, 36 + SIDE + 43, f"(w · {rest})", theme.faint, 13)] * bool(rest)
    return document(600, 226, "Free, shared and profile taps of a kernel turned by 30 degrees", parts)


def path(theme: Theme) -> str:
    """Where the outer tap goes, and what a diagonal becomes."""
    parts = []
    weights = (0.9, 0.9, 0.9)
    for column, name in enumerate(("circle", "square")):
        for which, angle in enumerate((20, 45)):
            left, top = 20 + (2 * column + which) * 156.0, 36.0
            x, y = left + SIDE / 2, top + SIDE / 2
            parts += positions(theme, left, top, CELL, kernel(weights, math.radians(angle), 3, name))  # type: ignore[arg-type]
            ring = {"fill": "none", "stroke": theme.green, "stroke_width": 2, "stroke_dasharray": "5 4"}
            if name == "circle":
                parts.append(tag("circle", cx=x, cy=y, r=CELL, **ring))
            else:
                parts.append(tag("rect", x=x - CELL, y=y - CELL, width=2 * CELL, height=2 * CELL, **ring))
            parts += segment(theme, x, y, CELL, math.radians(angle), weights, name)  # type: ignore[arg-type]
            parts.append(text(left, top + SIDE + 24, f"θ = {angle}°", theme.faint, 14))
        parts.append(text(20 + column * 312.0, 24, f'path="{name}"', theme.ink, 15, font_weight=600))
    return document(640, 206, "Taps on the circle and on the square ring, at 20 and 45 degrees", parts)


def groups(theme: Theme) -> str:
    """The angles of a layer of 4 output and 6 input channels, without and with two groups."""
    colors = (theme.orange, theme.blue)
    parts = []
    for panel, shared in enumerate((False, True)):
        left, top, step = 50 + panel * 300.0, 60.0, 38.0
        title = "angle_groups=2" if shared else "an angle of its own for each slice"
        parts.append(text(left, 24, title, theme.ink, 15, font_weight=600))
        parts.append(text(left, 46, "input channels →", theme.faint, 13))
        for out in range(4):
            for channel in range(6):
                which = out // 2 * 6 + channel if shared else out * 6 + channel
                angle = math.pi * (which * 0.618034 % 1)
                x, y = left + channel * step + 19, top + out * step + 19
                dx, dy = 13 * math.cos(angle), -13 * math.sin(angle)
                color = colors[out // 2] if shared else theme.ink
                box = {"fill": "none", "stroke": theme.rule}
                parts.append(tag("rect", x=x - 19, y=y - 19, width=step, height=step, **box))
                parts.append(line(x - dx, y - dy, x + dx, y + dy, color, 4.0))
        if panel == 0:
            turned = {"transform": f"rotate(-90 {number(left - 14)} {number(top + 76)})", "text_anchor": "middle"}
            parts.append(text(left - 14, top + 76, "← output", theme.faint, 13, **turned))
        words = "12 angles; computed as line filters" if shared else "24 angles"
        parts.append(text(left, top + 4 * step + 24, words, theme.faint, 14))
    return document(600, 250, "Angles of a layer without groups and with two", parts)


def gradient_scale(theme: Theme) -> str:
    """What a step turns, beside what it changes of the weights, by the layer's own constant."""
    channels = (16, 32, 64, 128, 256, 512)
    scales = [RotateConv2d(count, count, 3).angle_grad_scale for count in channels]
    left, right, upper, lower = 72.0, 470.0, 58.0, 220.0

    def place(index: float, value: float) -> tuple[float, float]:
        return left + index * (right - left) / (len(channels) - 1), upper - math.log10(value) / 4 * (lower - upper)

    parts = [text(16, 24, "One SGD step: turn of a kernel ÷ change of its weights", theme.ink, 15, font_weight=600)]
    for power in range(-4, 1):
        y = place(0, 10.0**power)[1]
        parts += [line(left, y, right, y, theme.rule, 0.7)]
        parts += [text(left - 10, y + 5, f"{10.0**power:g}", theme.faint, 13, text_anchor="end")]
    for index, count in enumerate(channels):
        parts.append(text(place(index, 1)[0], lower + 22, str(count), theme.faint, 13, text_anchor="middle"))
    parts.append(text(right, lower + 44, "channels of the layer", theme.ink, 13, text_anchor="end"))
    for color, values, words, below in (
        (theme.green, [1.0] * len(channels), "with angle_grad_scale", -10),
        (theme.orange, [1 / scale for scale in scales], "without", 24),
    ):
        points = [place(index, value) for index, value in enumerate(values)]
        parts += [polyline(points, color), *(dot(x, y, 4, color) for x, y in points)]
        x, y = points[2]
        parts.append(text(x, y + below, words, color, 14, font_weight=600, text_anchor="middle"))
    return document(500, 276, "How far a step turns kernels, relative to how far it changes their weights", parts)


def quantized_angles(theme: Theme) -> str:
    """The directions that 3, 4 and 5 bits leave, and the largest error of the example's kernel."""
    parts = []
    for panel, bits in enumerate((3, 4, 5)):
        x, y, radius = 100 + panel * 190.0, 130.0, 74.0
        codes = torch.arange(2**bits, dtype=torch.uint8)
        angles = decode_angle(codes, bits, 2 * math.pi).double().tolist()
        parts.append(text(x, 28, f"{bits} bits: {2**bits} directions", theme.ink, 15, font_weight=600))
        parts[-1] = text(x, 28, f"{bits} bits: {2**bits} directions", theme.ink, 15, text_anchor="middle")
        for angle in angles:
            dx, dy = radius * math.cos(angle), -radius * math.sin(angle)
            parts += [line(x, y, x + dx, y + dy, theme.rule, 1.2), dot(x + dx, y + dy, 4, theme.blue)]
        percent = f"{100 * _largest_error(bits):.0f} %"
        parts.append(text(x, y + radius + 36, f"kernel off by up to {percent}", theme.faint, 14, text_anchor="middle"))
    return document(580, 256, "Directions of angles of 3, 4 and 5 bits", parts)


def _largest_error(bits: int) -> float:
    """The largest norm of K(θ) - K(θ̂), of that of K(θ), for θ half a step off: the example's, over all codes."""
    step, errors = 2 * math.pi / 2**bits, []
    for code in range(2**bits):
        exact, coded = (torch.tensor(kernel(EXAMPLE, step * (code + off))) for off in (0.5, 0.0))
        errors.append(((exact - coded).norm() / exact.norm()).item())
    return max(errors)
