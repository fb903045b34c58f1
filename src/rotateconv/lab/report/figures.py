"""Pictures of a study, drawn from records alone: curves, accuracy against parameters and against bytes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rotateconv.lab.naming import counted, layers_label
from rotateconv.lab.report.canvas import LegendEntry, bar, legend, make_figure, mark, picture_name, save, scale_bytes
from rotateconv.lab.report.colors import COLORS, group_color, layers_color
from rotateconv.lab.report.published import Published
from rotateconv.lab.report.run_figures import draw_angles
from rotateconv.lab.report.statistics import Group
from rotateconv.lab.sample import Sample
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.sizes import FLOAT, SizesTable, pareto

_MODEL_MARKERS = "osD^vP*X"
_BITS_MARKERS = {FLOAT: "s", 8: "p", 7: "h", 6: "P", 5: "X", 4: "o", 3: "^", 2: "v", 1: "d"}
_FAR = 25.0  # points below the best: what two bits leave of a model not trained for them would flatten all else
_FEW = 6  # curves that one panel holds; more of them get a panel each
_ANGLES_OF = ("rotate4", "rotate2p")  # whose angles a study shows, where it has them
_PANELS = (
    ("train_loss", "training loss"),
    ("validation_accuracy", "validation accuracy (%)"),
    ("angle_movement_mean", "mean angle movement (rad)"),
)


def draw_study(
    study: str, groups: Sequence[Group], folder: Path, published: Sequence[Published] = (), kind: str = "png"
) -> list[str]:
    """Draw the pictures of a study into a folder that exists, as png, svg or pdf, and return their names.

    They are curves, accuracy against parameters, beside the published points of the study's data, and the angles of the
    first analysed run of rotate4 and rotate2p, or of another group where both are missing.
    """
    names = picture_names(study, groups, kind)
    draw_curves(groups, folder / names[0])
    draw_parameters(groups, folder / names[1], published)
    for name, run in zip(names[2:], _analysed(groups), strict=True):
        assert run.analysis is not None
        color = layers_color(layers_label(run.config))
        draw_angles(run.analysis, folder / name, run.curves.angle_movement_layers, title=run.name, color=color)
    return names


def picture_names(study: str, groups: Sequence[Group], kind: str = "png") -> list[str]:
    """Return the names of a study's pictures.

    Example:
        >>> picture_names("gpu/svhn", [])
        ['gpu-svhn-curves.png', 'gpu-svhn-parameters.png']
    """
    shown = ("curves", "parameters", *(f"{run.name}-angles" for run in _analysed(groups)))
    return [picture_name(study, what, kind) for what in shown]


def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Draw training loss, validation accuracy and angle movement over epochs, means over seeds.

    A band is ± the standard deviation, of all but the loss; a quantity that no group has gets no panel. With several
    models a line style is a model. Of more groups than fit into a panel only the accuracies are drawn, each in a panel
    of its own before those of all others.
    """
    shown = [group for group in groups if group.runs]
    panels = [panel for panel in _PANELS if any(group.curve(panel[0]) for group in shown)]
    models = list(dict.fromkeys(group.model for group in groups))
    if len(shown) > _FEW:
        accuracy = [panel for panel in panels if "accuracy" in panel[0]] or panels[:1]
        _draw_multiples(shown, models, *accuracy[0], path)
        return
    figure, every = make_figure(1, max(1, len(panels)), 3.6, _title(groups))
    for axes, (quantity, name) in zip(every, panels, strict=False):
        curves = [(group, curve) for group in shown if (curve := group.curve(quantity))]
        for group, curve in curves:
            style = ("-", "--", ":", "-.")[models.index(group.model) % 4]
            _draw_curve(axes, quantity, curve, group_color(group), style)
        axes.set_title(name, fontsize=10, loc="left")
        _scale_curves(axes, quantity, [curve for _, curve in curves])
        axes.set_xlabel("epoch")
    legend(figure, [(_name(group, models), group_color(group), group_color(group), "o") for group in groups])
    save(figure, path)


def _draw_multiples(groups: Sequence[Group], models: Sequence[str], quantity: str, name: str, path: Path) -> None:
    """Draw a panel per group, with the others pale behind it and its end in its title."""
    columns = 4
    rows = math.ceil(len(groups) / columns)
    title = f"{name[0].upper()}{name[1:]}, {_title(groups)}"
    figure, every = make_figure(rows, columns, 1 + 1.6 * rows, title, sharex=True, sharey=True)
    curves = [group.curve(quantity) for group in groups]
    for axes, group, curve in zip(every, groups, curves, strict=False):
        for other in curves:
            axes.plot(range(1, len(other) + 1), [sample.mean for sample in other], color="#dddddd", linewidth=0.7)
        if curve:
            _draw_curve(axes, quantity, curve, group_color(group), "-")
        end = f"\n{curve[-1].mean:.2f}" if curve else ""
        spread = f" ± {curve[-1].std:.2f}" if curve and curve[-1].std is not None else ""
        axes.set_title(f"{_name(group, models)}{end}{spread}", fontsize=9, loc="left", color=group_color(group))
        axes.tick_params(labelsize=8)
    _scale_curves(every[0], quantity, [curve for curve in curves if curve])
    for axes in every[len(groups) :]:
        axes.set_visible(False)
    for axes in every[max(0, len(groups) - columns) : len(groups)]:
        axes.set_xlabel("epoch", fontsize=9)
        axes.tick_params(labelbottom=True)
    save(figure, path)


def _draw_curve(axes: Any, quantity: str, curve: Sequence[Sample], color: str, style: str) -> None:
    """Draw means over epochs, and their band; of a loss on its logarithmic scale the lower end would lie below 0."""
    means, epochs = [sample.mean for sample in curve], range(1, len(curve) + 1)
    axes.plot(epochs, means, style, color=color, linewidth=1.4, marker="." if len(curve) < 10 else "")
    if quantity != "train_loss" and all(sample.std is not None for sample in curve):
        ends = [bar(sample, 100.0 if "accuracy" in quantity else math.inf) for sample in curve]
        low = [mean - below for mean, (below, _) in zip(means, ends, strict=True)]
        high = [mean + above for mean, (_, above) in zip(means, ends, strict=True)]
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)


def _scale_curves(axes: Any, quantity: str, curves: Sequence[Sequence[Sample]]) -> None:
    """Scale the axes of curves: an accuracy from half-way on, since the first epochs lie far below."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    if quantity == "train_loss":
        axes.set_yscale("log")
    elif "accuracy" in quantity and curves:
        ends = [curve[-1] for curve in curves]
        lows, highs = zip(*((end.mean - bar(end)[0], end.mean + bar(end)[1]) for end in ends), strict=True)
        room = max(1.0, 0.2 * (max(highs) - min(lows)))
        half = min(max(sample.mean for sample in curve[: 1 + len(curve) // 2]) for curve in curves)
        axes.set_ylim(max(0.0, min(half, min(lows) - room)), min(100.5, max(highs) + room))
    else:
        axes.set_ylim(bottom=0)


def draw_parameters(groups: Sequence[Group], path: Path, published: Sequence[Published] = ()) -> None:
    """Draw test accuracy over parameters, with error bars of ± the standard deviation.

    A color is a kind of layer, a marker a model; hollow are dense models narrowed to the size of another; crosses are
    published points of the groups' data. Groups without a result are left out.
    """
    figure, (axes,) = make_figure(1, 1, 5.4, _title(groups))
    models = list(dict.fromkeys(group.model for group in groups))
    data = {run.data.name for group in groups for run in group.runs}
    points = [point for point in published if data and data <= set(point.data)]
    entries: list[LegendEntry] = []
    places = [float(point.parameters) for point in points]
    for group in groups:
        if group.accuracy is None or group.parameters is None:
            continue
        marker, face = _MODEL_MARKERS[models.index(group.model) % 8], "white" if group.equal_to else group_color(group)
        style = {"capsize": 3, "elinewidth": None}
        mark(axes, group.parameters, group.accuracy, group_color(group), marker, face, **style)
        entries.append((_name(group, models), group_color(group), face, marker))
        places.append(group.parameters)
    for point in points:
        axes.plot([point.parameters], [point.accuracy], "x", color="#777777")
        axes.annotate(point.name, (point.parameters, point.accuracy), (5, 5), textcoords="offset points", fontsize=8)
    entries += [(note, "#777777", "#777777", "x") for note in dict.fromkeys(point.note for point in points)]
    axes.set(xlabel="parameters (log scale)", ylabel="test accuracy (%)", xscale="log")
    if places:
        room = max(max(places) / min(places), 1.5) ** 0.1
        scale_bytes(axes, min(places) / room, max(places) * room)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    legend(figure, entries)
    save(figure, path)


def draw_sizes(table: SizesTable, path: Path) -> None:
    """Draw test accuracy over bytes: a line per model, a marker for the bits, filled where trained with them.

    All dense models are black, and a dashed line goes through the best of them. Rows far below the best are left out.
    """
    best = max(row.accuracy.mean for row in table.rows)
    rows = [row for row in table.rows if row.accuracy.mean > best - _FAR]
    left_out = len(table.rows) - len(rows)
    note = f"; {counted(left_out, 'row')} more than {_FAR:g} points below the best left out" if left_out else ""
    architectures = ", ".join(dict.fromkeys(row.label.rpartition(", ")[0] for row in rows))
    figure, (axes,) = make_figure(1, 1, 6.4, f"{table.dataset}, {architectures}: accuracy against bytes{note}")
    labels = dict.fromkeys(row.label for row in sorted(rows, key=lambda row: not row.dense))
    colors = {label: layers_color(label.rpartition(", ")[2]) for label in labels}
    colors |= {row.label: COLORS["conv3x3"] for row in rows if row.dense}
    axes.set(xlabel="kilobytes of the file (log scale)", ylabel="test accuracy (%)", xscale="log")
    frontier = pareto([row for row in rows if row.dense])
    if len(frontier) > 1:
        points = ([row.bytes / 1e3 for row in frontier], [row.accuracy.mean for row in frontier])
        axes.plot(*points, color=COLORS["conv3x3"], linestyle="--", linewidth=1.2)
    for label, color in colors.items():
        own = [row for row in rows if row.label == label and not row.qat]
        axes.plot([row.bytes / 1e3 for row in own], [row.accuracy.mean for row in own], color=color, linewidth=0.8)
    for row in rows:
        color = colors[row.label]
        face = color if row.qat else "white"
        mark(axes, row.bytes / 1e3, Sample(row.accuracies), color, _BITS_MARKERS[row.bits], face)
    every = [row.bytes / 1e3 for row in rows]
    scale_bytes(axes, min(every) / 1.15, max(every) * 1.15)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    black = COLORS["conv3x3"]
    entries: list[LegendEntry] = [("dense; dashed: the best", black, black, "")]
    same = len({label.rpartition(", ")[0] for label in colors}) == 1  # of all models then only the layers differ
    entries += [
        (label.rpartition(", ")[2] if same else label, color, color, "")
        for label, color in colors.items()
        if color != black
    ]
    for bits in sorted({row.bits for row in rows}, reverse=True):
        entries.append(("float32" if bits == FLOAT else f"{bits} bits", black, "white", _BITS_MARKERS[bits]))
    if any(row.qat for row in rows):
        entries.append(("filled: trained with them", black, black, "o"))
    legend(figure, entries)
    save(figure, path)


def _analysed(groups: Sequence[Group]) -> list[RunRecord]:
    """Return the first analysed run of each group whose angles a study shows."""
    each = [[run for run in group.runs if run.analysis and run.analysis.angles][:1] for group in groups]
    named = [run for group, found in zip(groups, each, strict=True) for run in found if group.layers in _ANGLES_OF]
    return named or [run for found in each for run in found][:1]


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
