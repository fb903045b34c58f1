"""Small SVG pictures for light and dark pages, text alone: the same numbers give the same bytes everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Theme:
    """The colors of a page: its name, background, text, fainter text, grid lines, and those of the models."""

    name: str
    paper: str
    ink: str
    faint: str
    rule: str
    orange: str
    blue: str
    green: str
    violet: str

    def mix(self, value: float, most: float = 1.0) -> str:
        """Return a color for a number: the paper for 0, orange for `most`, blue for -`most`."""
        share = min(1.0, abs(value) / most)
        end = _parts(self.orange if value >= 0 else self.blue)
        mixed = [round(start + share * (stop - start)) for start, stop in zip(_parts(self.paper), end, strict=True)]
        return "#" + "".join(f"{part:02x}" for part in mixed)


LIGHT = Theme("light", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#d55e00", "#0072b2", "#00805f", "#6a51a3")
DARK = Theme("dark", "#0d1117", "#e6edf3", "#9198a1", "#3d444d", "#ff9248", "#56b4e9", "#3fc79a", "#b39ddb")
THEMES = (LIGHT, DARK)


def number(value: float) -> str:
    """Return a coordinate: two digits at most."""
    return f"{round(value, 2) + 0.0:g}"


def tag(name: str, inside: str = "", **attributes: object) -> str:
    """Return an element; underscores in names of attributes stand for hyphens."""
    shown = {key.replace("_", "-"): number(a) if isinstance(a, float) else a for key, a in attributes.items()}
    text = "".join(f' {key}="{value}"' for key, value in shown.items())
    return f"<{name}{text}>{inside}</{name}>" if inside else f"<{name}{text}/>"


def text(x: float, y: float, words: str, color: str, size: int = 13, **attributes: object) -> str:
    """Return words at a place."""
    return tag("text", words, x=float(x), y=float(y), fill=color, font_size=size, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1.0, **attributes: object) -> str:
    """Return a straight line."""
    ends = {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}
    return tag("line", **ends, stroke=color, stroke_width=float(width), stroke_linecap="round", **attributes)


def dot(x: float, y: float, radius: float, color: str, **attributes: object) -> str:
    """Return a disc."""
    return tag("circle", cx=float(x), cy=float(y), r=float(radius), fill=color, **attributes)


def polyline(points: Sequence[tuple[float, float]], color: str, width: float = 2.0, **attributes: object) -> str:
    """Return straight lines from point to point."""
    places = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return tag("polyline", points=places, fill="none", stroke=color, stroke_width=float(width), **attributes)


def document(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Return a whole picture; its title is what a screen reader says."""
    font = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    inside = "\n" + "\n".join([f"<title>{title}</title>", *parts]) + "\n"
    box = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("svg", inside, xmlns="http://www.w3.org/2000/svg", **box, font_family=font, role="img") + "\n"


def _parts(color: str) -> Color:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
