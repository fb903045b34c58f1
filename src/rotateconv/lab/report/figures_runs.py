"""Pictures of a study's rows: curves over epochs, and accuracy against parameters with published points beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rotateconv.lab.report.figures import save_png, scale_parameters
from rotateconv.lab.report.statistics import Row, Spread
from rotateconv.lab.study.angles import RunAnalysis
from rotateconv.lab.study.run_record import RunRecord

_DOTS_PER_INCH = 110
_MARKERS = "osD^vP*X"
_PANELS = (
    ("train_loss", "training loss"),
    ("validation_accuracy", "validation accuracy (%)"),
    ("angle_movement_mean", "mean angle movement (rad)"),
)


@dataclass(frozen=True)
class Published:
    """An accuracy that others measured on true CIFAR-10, in a recipe of their own.

    Args:
        name: of the net.
        parameters: as published.
        accuracy: on the test set, percent.
        source: where it stands.
    """

    name: str
    parameters: float
    accuracy: float
    source: str


_SHIFT = "Wu et al., Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions (2018)"
PUBLISHED = (
    Published("ResNet-20", 0.27e6, 91.25, "He et al., Deep Residual Learning for Image Recognition (2015), table 6"),
    Published("ShiftResNet-20", 0.10e6, 90.08, _SHIFT),
    Published("ShiftResNet-20", 0.03e6, 86.66, _SHIFT),
    Published("ResNet-20, narrowed", 0.10e6, 88.33, _SHIFT),
)


def draw_curves(rows: Sequence[Row], path: str | Path) -> None:
    """Draw training loss, validation accuracy and angle movement over epochs, means over seeds, as a PNG file.

    A band is ± the standard deviation, of all but the loss; a quantity that no row has gets no panel. With several
    models a line style is a model.

    Args:
        rows: of `make_rows`.
        path: of the picture.
    """
    panels = [panel for panel in _PANELS if any(row.runs and row.curve(panel[0]) for row in rows)]
    figure, canvas_axes = _figure(max(1, len(panels)), 3.4)
    styles = ("-", "--", ":", "-.")
    models = list(dict.fromkeys(row.model for row in rows))
    for axes, (quantity, name) in zip(canvas_axes, panels, strict=False):
        for number, row in enumerate(rows):
            curve = row.curve(quantity) if row.runs else []
            if not curve:
                continue
            epochs = range(1, len(curve) + 1)
            style = styles[models.index(row.model) % len(styles)]
            axes.plot(epochs, [s.mean for s in curve], style, color=_color(number), linewidth=1.2, marker=_dot(curve))
            # Of a loss on its logarithmic scale the lower end would lie below 0.
            if quantity != "train_loss" and all(spread.std is not None for spread in curve):
                low = [spread.mean - (spread.std or 0.0) for spread in curve]
                high = [spread.mean + (spread.std or 0.0) for spread in curve]
                axes.fill_between(epochs, low, high, color=_color(number), alpha=0.12, linewidth=0)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if quantity == "train_loss":
            axes.set_yscale("log")
    _legend(figure, [(_name(row, models), _color(i), _color(i), "o") for i, row in enumerate(rows)])
    save_png(figure, path, _DOTS_PER_INCH)


def draw_parameters(rows: Sequence[Row], path: str | Path, published: Sequence[Published] = ()) -> None:
    """Draw test accuracy over parameters, with error bars of ± the standard deviation, as a PNG file.

    Hollow are dense nets narrowed to the size of another; grey crosses are published points, said to be of true
    CIFAR-10 and another recipe. Rows without a result are left out.

    Args:
        rows: of `make_rows`.
        path: of the picture.
        published: points beside ours.
    """
    figure, (axes,) = _figure(1, 4.4)
    models = list(dict.fromkeys(row.model for row in rows))
    legend = []
    for number, row in enumerate(rows):
        if row.accuracy is None:
            continue
        color, marker = _color(number), _MARKERS[models.index(row.model) % len(_MARKERS)]
        face = "white" if row.equal_to else color
        axes.errorbar(
            [row.parameters],
            [row.accuracy.mean],
            yerr=row.accuracy.std,
            color=color,
            marker=marker,
            markerfacecolor=face,
            capsize=3,
            linestyle="none",
        )
        legend.append((_name(row, models), color, face, marker))
    for point in published:
        axes.plot([point.parameters], [point.accuracy], "x", color="#777777")
        axes.annotate(point.name, (point.parameters, point.accuracy), (5, 5), textcoords="offset points", fontsize=7)
    if published:
        legend.append(("published: true CIFAR-10,\nother recipes", "#777777", "#777777", "x"))
    axes.set_xscale("log")
    drawn = [row.parameters for row in rows if row.accuracy is not None and row.parameters is not None]
    if places := [*drawn, *(point.parameters for point in published)]:
        scale_parameters(axes, places)
    axes.set(xlabel="parameters (log scale)", ylabel="test accuracy (%)")
    _legend(figure, legend)
    save_png(figure, path, _DOTS_PER_INCH)


def draw_angles(analysis: RunAnalysis, path: str | Path, epochs: Sequence[Sequence[float] | None] = ()) -> None:
    """Draw what became of a run's angles as a PNG file.

    Panels: mean movement of each layer, accuracy lost when a layer's angles are shuffled, all angles before and after.

    Args:
        analysis: as `rotateconv.lab.study.angles.analyse` returns it for a net with angles.
        path: of the picture.
        epochs: for each epoch the mean movement of each layer, a line over the bars of the end; None where a run
            did not record it.
    """
    figure, (moved, lost, spread) = _figure(3, 3.4)
    angles = analysis.angles
    assert angles is not None
    layers = angles.layers
    places = range(1, len(layers) + 1)
    moved.bar(places, [layer.movement.mean for layer in layers], color=_color(0))
    moved.set(xlabel="layer, from the input on", ylabel="mean angle movement (rad)")
    for number, means in enumerate(epochs, 1):
        if means is not None and len(means) == len(layers):
            first_or_last = f"epoch {number}" if number in (1, len(epochs)) else None
            shade = str(0.75 * (1 - number / len(epochs)))  # the later the darker
            moved.plot(places, means, color=shade, linewidth=0.9, label=first_or_last)
    if moved.get_legend_handles_labels()[0]:
        moved.legend(fontsize=8, frameon=False)
    drops = [analysis.validation_accuracy - layer.shuffled.mean for layer in layers]
    deviations = [layer.shuffled.std for layer in layers]  # None after a single shuffle
    errors = deviations if None not in deviations else None
    lost.bar(places, drops, yerr=errors, color=_color(1), capsize=2)
    lost.set(xlabel="layer, from the input on", ylabel="points lost when its angles are shuffled")
    for axes in (moved, lost):
        axes.xaxis.get_major_locator().set_params(integer=True)
    counts = angles.all.histogram
    assert counts is not None
    edges = [number * angles.period / len(counts.before) for number in range(len(counts.before) + 1)]
    for name, found, color in (("before", counts.before, "#777777"), ("after", counts.after, "#d55e00")):
        spread.stairs(found, edges, color=color, label=name)
    spread.set(xlabel="angle (rad)", ylabel="slices")
    spread.set_ylim(bottom=0)
    spread.legend(fontsize=8, frameon=False)
    save_png(figure, path, _DOTS_PER_INCH)


def draw_study(study: str, rows: Sequence[Row], folder: str | Path) -> list[str]:
    """Draw the pictures of a study into a folder that exists, and return their names.

    They are curves, accuracy against parameters (with the published points where the images are CIFAR-10's), and
    the angles of the first analysed run of each row.

    Args:
        study: its name, from which the files are called.
        rows: of `make_rows`, at least one.
        folder: of the pictures.
    """
    names = picture_names(study, rows)
    data = {run.data.name for row in rows for run in row.runs}
    draw_curves(rows, Path(folder, names[0]))
    draw_parameters(rows, Path(folder, names[1]), PUBLISHED if data <= {"cifar10", "cifar10-jpeg"} else ())
    for name, run in zip(names[2:], _analysed(rows), strict=True):
        assert run.analysis is not None
        draw_angles(run.analysis, Path(folder, name), run.curves.angle_movement_layers)
    return names


def picture_names(study: str, rows: Sequence[Row]) -> list[str]:
    """Return the names of a study's pictures.

    Example:
        >>> picture_names("gpu/svhn", [])
        ['gpu-svhn-curves.png', 'gpu-svhn-parameters.png']
    """
    stem = study.replace("/", "-")
    angles = [f"{stem}-{run.name}-angles.png" for run in _analysed(rows)]
    return [f"{stem}-curves.png", f"{stem}-parameters.png", *angles]


def _analysed(rows: Sequence[Row]) -> list[RunRecord]:
    """Return the first run of each row whose angles were analysed."""
    found: list[RunRecord] = []
    for row in rows:
        runs = [run for run in row.runs if run.analysis is not None and run.analysis.angles is not None]
        found += runs[:1]
    return found


def _figure(panels: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * panels + (3.2 if panels == 1 else 1.6), height), layout="constrained")
    FigureCanvasAgg(figure)
    every = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for axes in every:
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, every


def _legend(figure: Any, entries: Sequence[tuple[str, Any, Any, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=marker, markerfacecolor=face, linestyle="none", label=name)
        for name, color, face, marker in entries
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)


def _color(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"]((2 * number + number // 10) % 20)  # the strong ten first, then their pale twins


def _dot(curve: Sequence[Spread]) -> str:
    return "." if len(curve) < 10 else ""


def _name(row: Row, models: Sequence[str]) -> str:
    words = [row.model if len(models) > 1 else "", row.label, row.setting]
    return " ".join(word for word in words if word)
