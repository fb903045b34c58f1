"""Pictures of a study, drawn from records alone: curves, accuracy against parameters and bytes, angles."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rotateconv.lab.naming import counted
from rotateconv.lab.report.published import Published
from rotateconv.lab.report.statistics import Group, Sample
from rotateconv.lab.study.angles import RunAnalysis
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.sizes import FLOAT, SizeRow, SizesTable, pareto
from rotateconv.lab.train.run_folder import write_bytes

COLORS = {
    "conv3x3": "#222222",
    **{"rotate4": "#d55e00", "rotate4-fixed": "#f4a582", "rotate4-g4": "#8c2d04", "rotate4-k5": "#ff7f0e"},
    **{"rotate2p": "#0072b2", "rotate2p-fixed": "#56b4e9", "rotate2p-g4": "#08306b", "rotate2p-k5": "#6a51a3"},
    **{"rotate2": "#009e73", "rotate2b": "#cc79a7", "line": "#e6ab02", "mask4": "#9acd32", "separable": "#8c564b"},
    **{
        "codebook16": "#a65628",
        "codebook32": "#d8a47f",
        "outer": "#666666",
        "pattern4": "#4d9221",
        "conv3x3-d2": "#525252",
    },
    **{
        "lowrank4": "#b15928",
        "lowrank2": "#ffcc66",
        "conv5x5": "#737373",
        "conv7x7": "#969696",
        "rotate2-k5": "#33c49a",
    },
    **{"rotate4-k7": "#ffa94d", "rotate4-k9": "#ffd8a8", "rotate2-k7": "#7bd8bb", "rotate2-k9": "#b8eadb"},
    **{"rotate2p-k7": "#8c7ae6", "rotate2p-k9": "#b8a9f5", "rotate2p-g4-k5": "#1f4e79", "rotate2p-g4-k7": "#4178a8"},
    **{"rotate2p-g4-k9": "#7ba7cc", "conv3x3-d2": "#525252", "rotate2-k5": "#33c49a"},
    **{"free taps": "#e7298a", "profile taps": "#17becf", "shared taps": "#66a61e", "as built": "#444444"},
}
"""What the layers of a model are drawn with, in every picture; narrowed dense models are grey."""

_OTHER = "#aaaaaa"
_MODEL_MARKERS = "osD^vP*X"
_BITS_MARKERS = {FLOAT: "s", 8: "p", 7: "h", 6: "P", 5: "X", 4: "o", 3: "^", 2: "v"}
_FAR = 25.0  # points below the best: what two bits leave of a model not trained for them would flatten all else
_NEAR = 6.0  # points below the best packed dense model: where a closer look is worth a panel
_PANELS = (
    ("train_loss", "training loss"),
    ("validation_accuracy", "validation accuracy (%)"),
    ("angle_movement_mean", "mean angle movement (rad)"),
)


def draw_study(
    study: str, groups: Sequence[Group], folder: Path, published: Sequence[Published] = (), kind: str = "png"
) -> list[str]:
    """Draw the pictures of a study into a folder that exists, and return their names.

    They are curves, accuracy against parameters, and the angles of the first analysed run of each group.

    Args:
        study: Its name, from which the files are called.
        groups: Of `make_groups`, at least one.
        folder: Of the pictures.
        published: Points beside ours, of which those of the study's data are drawn.
        kind: Of the files, "png" or "svg".
    """
    names = picture_names(study, groups, kind)
    draw_curves(groups, folder / names[0])
    draw_parameters(groups, folder / names[1], published)
    for name, run in zip(names[2:], _analysed(groups), strict=True):
        assert run.analysis is not None
        draw_angles(run.analysis, folder / name, run.curves.angle_movement_layers, title=run.name)
    return names


def picture_names(study: str, groups: Sequence[Group], kind: str = "png") -> list[str]:
    """Return the names of a study's pictures.

    Example:
        >>> picture_names("gpu/svhn", [])
        ['gpu-svhn-curves.png', 'gpu-svhn-parameters.png']
    """
    stem = study.replace("/", "-")
    angles = [f"{stem}-{run.name}-angles.{kind}" for run in _analysed(groups)]
    return [f"{stem}-curves.{kind}", f"{stem}-parameters.{kind}", *angles]


def size_picture(study: str) -> str:
    """Return the name of the picture of accuracy against bytes.

    Example:
        >>> size_picture("gpu/svhn")
        'gpu-svhn-sizes.png'
    """
    return f"{study.replace('/', '-')}-sizes.png"


def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Draw training loss, validation accuracy and angle movement over epochs, means over seeds.

    A band is ± the standard deviation, of all but the loss; a quantity that no group has gets no panel. With several
    models a line style is a model.

    Args:
        groups: Of `make_groups`.
        path: Of the picture, PNG or SVG.
    """
    panels = [panel for panel in _PANELS if any(group.runs and group.curve(panel[0]) for group in groups)]
    figure, canvas_axes = _figure(max(1, len(panels)), 3.4, _title(groups))
    models = list(dict.fromkeys(group.model for group in groups))
    for axes, (quantity, name) in zip(canvas_axes, panels, strict=False):
        ends = []
        for group in groups:
            curve = group.curve(quantity) if group.runs else []
            if not curve:
                continue
            means = [sample.mean for sample in curve]
            ends.append(means[-1])
            style = ("-", "--", ":", "-.")[models.index(group.model) % 4]
            dot = "." if len(curve) < 10 else ""
            epochs = range(1, len(curve) + 1)
            axes.plot(epochs, means, style, color=group_color(group), linewidth=1.2, marker=dot)
            # Of a loss on its logarithmic scale the lower end would lie below 0.
            if quantity != "train_loss" and all(sample.std is not None for sample in curve):
                bars = [_bar(sample, 100.0 if "accuracy" in quantity else math.inf) for sample in curve]
                low = [mean - below for mean, (below, _) in zip(means, bars, strict=True)]
                high = [mean + above for mean, (_, above) in zip(means, bars, strict=True)]
                axes.fill_between(epochs, low, high, color=group_color(group), alpha=0.12, linewidth=0)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if quantity == "train_loss":
            axes.set_yscale("log")
        elif "accuracy" in quantity:
            # The first epochs lie far below, and what differs is at the end.
            room = max(2.0, max(ends) - min(ends))
            axes.set_ylim(max(0.0, min(ends) - 2 * room), min(100.5, max(ends) + 0.3 * room))
    _legend(figure, [(_name(group, models), group_color(group), group_color(group), "o") for group in groups])
    _save(figure, path)


def draw_parameters(groups: Sequence[Group], path: Path, published: Sequence[Published] = ()) -> None:
    """Draw test accuracy over parameters, with error bars of ± the standard deviation.

    A color is a kind of layer, a marker a model; hollow are dense models narrowed to the size of another; crosses are
    published points. Groups without a result are left out.

    Args:
        groups: Of `make_groups`.
        path: Of the picture, PNG or SVG.
        published: Points beside ours; those of the groups' data are drawn.
    """
    figure, (axes,) = _figure(1, 4.4, _title(groups))
    models = list(dict.fromkeys(group.model for group in groups))
    data = {run.data.name for group in groups for run in group.runs}
    points = [point for point in published if data and data <= set(point.data)]
    entries, places = [], [point.parameters for point in points]
    for group in groups:
        if group.accuracy is None or group.parameters is None:
            continue
        marker, face = _MODEL_MARKERS[models.index(group.model) % 8], "white" if group.equal_to else group_color(group)
        bars = [[length] for length in _bar(group.accuracy)] if group.accuracy.std is not None else None
        axes.errorbar(
            [group.parameters],
            [group.accuracy.mean],
            yerr=bars,
            color=group_color(group),
            marker=marker,
            markerfacecolor=face,
            capsize=3,
            linestyle="none",
        )
        entries.append((_name(group, models), group_color(group), face, marker))
        places.append(group.parameters)
    for point in points:
        axes.plot([point.parameters], [point.accuracy], "x", color="#777777")
        axes.annotate(point.name, (point.parameters, point.accuracy), (5, 5), textcoords="offset points", fontsize=7)
    entries += [(note, "#777777", "#777777", "x") for note in dict.fromkeys(point.note for point in points)]
    axes.set(xlabel="parameters (log scale)", ylabel="test accuracy (%)", xscale="log")
    if places:
        room = max(max(places) / min(places), 1.5) ** 0.22
        _scale(axes, min(places) / room, max(places) * room)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    _legend(figure, entries)
    _save(figure, path)


def draw_angles(
    analysis: RunAnalysis, path: Path, epochs: Sequence[Sequence[float] | None] = (), title: str = ""
) -> None:
    """Draw what the angles of a run did.

    Panels: mean movement of each layer, accuracy lost when a layer's angles are shuffled, all angles before and after.

    Args:
        analysis: Of a model with angles.
        path: Of the picture, PNG or SVG.
        epochs: For each epoch the mean movement of each layer, a line over the bars of the end; None where a run
            did not record it.
        title: Of the picture.
    """
    angles = analysis.angles
    assert angles is not None
    figure, (moved, lost, spread) = _figure(3, 3.4, title)
    places = range(1, len(angles.layers) + 1)
    moved.bar(places, [layer.movement.mean for layer in angles.layers], color=COLORS["rotate2p"])
    moved.set(xlabel="layer, from the input on", ylabel="mean angle movement (rad)")
    for number, means in enumerate(epochs, 1):
        if means is not None and len(means) == len(angles.layers):
            first_or_last = f"epoch {number}" if number in (1, len(epochs)) else None
            shade = str(0.75 * (1 - number / len(epochs)))  # the later the darker
            moved.plot(places, means, color=shade, linewidth=0.9, label=first_or_last)
    if moved.get_legend_handles_labels()[0]:
        moved.legend(fontsize=8, frameon=False)
    drops = [analysis.validation_accuracy - layer.shuffled.mean for layer in angles.layers]
    deviations = [layer.shuffled.std for layer in angles.layers]  # None after a single shuffle
    lost.bar(places, drops, yerr=None if None in deviations else deviations, color=COLORS["rotate4"], capsize=2)
    lost.set(xlabel="layer, from the input on", ylabel="points lost by a shuffle of its angles")
    for axes in (moved, lost):
        axes.xaxis.get_major_locator().set_params(integer=True)
    counts = angles.all.histogram
    if counts is not None:
        edges = [number * angles.period / len(counts.before) for number in range(len(counts.before) + 1)]
        spread.stairs(counts.before, edges, color="#777777", label="before")
        spread.stairs(counts.after, edges, color=COLORS["rotate4"], label="after")
        spread.legend(fontsize=8, frameon=False)
    spread.set(xlabel="angle (rad)", ylabel="slices")
    spread.set_ylim(bottom=0)
    _save(figure, path)


def draw_sizes(table: SizesTable, path: Path) -> None:
    """Draw test accuracy over bytes: a line per model, a marker for the bits, filled where trained with them.

    All dense models are black, and a dashed line goes through the best of them. Where packed and float32 models are
    shown together, a second panel looks closer at the packed ones near that line.

    Args:
        table: Of `measure_sizes`.
        path: Of the picture, PNG or SVG.
    """
    rows = table.rows
    near = _near(rows)
    figure, panels = _figure(2 if near else 1, 4.8, "", width=5.4)
    best = max(row.accuracy for row in rows)
    labels = dict.fromkeys(row.label for row in sorted(rows, key=lambda row: not row.dense))
    colors = {label: _color_of(label.rpartition(", ")[2]) for label in labels}
    colors |= {row.label: COLORS["conv3x3"] for row in rows if row.dense}
    _draw_sizes(panels[0], rows, colors, [row for row in rows if row.accuracy > best - _FAR])
    panels[0].set_title(f"{table.dataset}: accuracy against bytes", fontsize=10, loc="left")
    if near:
        _draw_sizes(panels[1], rows, colors, near)
        panels[1].set_title("the packed ones near the dense models", fontsize=10, loc="left")
    entries = [("dense models; dashed: the best", COLORS["conv3x3"], COLORS["conv3x3"], "")]
    entries += [(label, color, color, "") for label, color in colors.items() if color != COLORS["conv3x3"]]
    for bits in sorted({row.bits for row in rows}, reverse=True):
        name = "float32" if bits == FLOAT else f"{bits} bits"
        entries.append((name, COLORS["conv3x3"], "white", _BITS_MARKERS[bits]))
    if any(row.qat for row in rows):
        entries.append(("filled: quantization-aware", COLORS["conv3x3"], COLORS["conv3x3"], "o"))
    _legend(figure, entries)
    _save(figure, path)


def _near(rows: Sequence[SizeRow]) -> list[SizeRow]:
    """Return the packed rows near the best packed dense one; none where there is no such model, or no other row."""
    packed = [row for row in rows if row.bits != FLOAT]
    dense = [row.accuracy for row in packed if row.dense]
    near = [row for row in packed if dense and row.accuracy > max(dense) - _NEAR]
    return near if 1 < len(near) < len(rows) else []


def _draw_sizes(axes: Any, rows: Sequence[SizeRow], colors: Mapping[str, str], shown: Sequence[SizeRow]) -> None:
    """Draw all rows into a panel that has room for those that are to be seen."""
    axes.set(xlabel="kilobytes of the file (log scale)", ylabel="test accuracy (%)", xscale="log")
    frontier = pareto([row for row in rows if row.dense])
    if len(frontier) > 1:
        points = ([row.bytes / 1e3 for row in frontier], [row.accuracy for row in frontier])
        axes.plot(*points, color=COLORS["conv3x3"], linestyle="--", linewidth=1)
    for label, color in colors.items():
        own = [row for row in rows if row.label == label and not row.qat]
        axes.plot([row.bytes / 1e3 for row in own], [row.accuracy for row in own], color=color, linewidth=0.8)
    for row in rows:
        axes.errorbar(
            [row.bytes / 1e3],
            [row.accuracy],
            yerr=[[length] for length in _bar(Sample(row.accuracies))],
            color=colors[row.label],
            marker=_BITS_MARKERS[row.bits],
            markerfacecolor=colors[row.label] if row.qat else "white",
            markersize=5.5,
            elinewidth=0.8,
            capsize=2,
        )
    sizes = [row.bytes / 1e3 for row in shown]
    _scale(axes, min(sizes) / 1.15, max(sizes) * 1.15)
    bars = [(row.accuracy, *_bar(Sample(row.accuracies))) for row in shown]
    low, high = min(mean - below for mean, below, _ in bars), max(mean + above for mean, _, above in bars)
    axes.set_ylim(low - 0.4, min(high + 0.4, 100.5))


def _analysed(groups: Sequence[Group]) -> list[RunRecord]:
    """Return the first run of each group whose angles were analysed."""
    each = ([run for run in group.runs if run.analysis and run.analysis.angles] for group in groups)
    return [found[0] for found in each if found]


def _figure(panels: int, height: float, title: str, width: float = 3.6) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels + (3.2 if panels == 1 else 1.6), height), dpi=110, layout="constrained")
    every = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for axes in every:
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        every[0].set_title(title, fontsize=9, loc="left")
    return figure, every


def _save(figure: Any, path: Path) -> None:
    """Write a figure as what its name ends with, whole or not at all; the same figure gives the same bytes."""
    from matplotlib import rc_context

    kind, image = path.suffix.removeprefix("."), io.BytesIO()
    with rc_context({"svg.hashsalt": "rotateconv"}):
        figure.savefig(image, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, image.getvalue())


def _legend(figure: Any, entries: Sequence[tuple[str, Any, Any, str]]) -> None:
    """Write name, color, face of the marker and marker, or a line where there is none, beside the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=color, marker=marker, markerfacecolor=face, linestyle="none" if marker else "-", label=name
        )
        for name, color, face, marker in entries
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)


def _scale(axes: Any, low: float, high: float) -> None:
    """Bound a logarithmic x axis, and give it ticks such as 50k and 1M where a power of ten would be alone."""
    steps = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10.0**power for power in range(10) for step in steps if low <= step * 10.0**power <= high]
    axes.set_xlim(low, high)
    if len(ticks) > 1:
        axes.set_xticks(ticks, [_short(tick) for tick in ticks])
        axes.set_xticks([], minor=True)


def _short(number: float) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return f"{number:g}"


def _bar(sample: Sample, most: float = 100.0) -> tuple[float, float]:
    """Return how far an error bar goes down and up: the standard deviation, and no further than `most`."""
    return sample.std or 0.0, min(sample.std or 0.0, most - sample.mean)


def group_color(group: Group) -> str:
    """Return what a group is drawn with, as Matplotlib takes it."""
    if group.config.conv == "conv3x3" and group.equal_to is not None:
        return str(round(0.2 + 0.6 * (1 - min(1.0, group.config.width)), 3))  # the narrower the paler
    return _color_of(group.label)


def _color_of(label: str) -> str:
    return COLORS.get(label.partition(" x")[0], _OTHER)


def _name(group: Group, models: Sequence[str]) -> str:
    words = [group.model if len(models) > 1 else "", group.label, group.setting]
    return " ".join(word for word in words if word)


def _title(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in (*group.runs, *group.failed)]
    if not runs:
        return ""
    counts = sorted({len(group.runs) for group in groups if group.runs}) or [0]
    data, models, recipes = (
        ", ".join(dict.fromkeys(names))
        for names in (
            (run.data.name for run in runs),
            (group.model for group in groups),
            (f"{counted(run.config.epochs, 'epoch')} of {run.config.recipe}" for run in runs),
        )
    )
    seeds = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    bars = ", ± standard deviation" if counts[-1] > 1 else ""
    return f"{data}, {models}\n{recipes}, {seeds}{bars}"
