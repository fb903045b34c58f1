"""Pictures of a single run: what its angles did, layer by layer, and its confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

from rotateconv.lab.report.canvas import WIDTH, make_figure, save
from rotateconv.lab.report.colors import COLORS
from rotateconv.lab.study.angles import RunAnalysis


def draw_angles(
    analysis: RunAnalysis,
    path: Path,
    epochs: Sequence[Sequence[float] | None] = (),
    title: str = "",
    color: str = COLORS["rotate4"],
) -> None:
    """Draw what the angles of a run did.

    Panels: mean movement of each layer, accuracy lost when a layer's angles are shuffled, all angles before and after.
    `epochs` has for each epoch the mean movement of each layer, a line over the bars of the end; None where a run did
    not record it.
    """
    angles = analysis.angles
    assert angles is not None
    places = range(1, len(angles.layers) + 1)
    figure, (moved, lost, spread) = make_figure(1, 3, max(3.4, 1.1 + 0.19 * len(places)), title)
    moved.barh(places, [layer.movement.mean for layer in angles.layers], color=color, alpha=0.75)
    moved.set_title("mean angle movement (rad)", fontsize=10, loc="left")
    moved.set_yticks(places, [layer.name for layer in angles.layers], fontsize=8)
    for number, means in enumerate(epochs, 1):
        if means is not None and len(means) == len(places):
            first_or_last = f"epoch {number}" if number in (1, len(epochs)) else None
            shade = str(0.75 * (1 - number / len(epochs)))  # the later the darker
            moved.plot(means, places, color=shade, linewidth=0.8, label=first_or_last)
    if moved.get_legend_handles_labels()[0]:
        moved.legend(fontsize=8, frameon=False, loc="lower right")
    drops = [analysis.validation_accuracy - layer.shuffled.mean for layer in angles.layers]
    deviations = [layer.shuffled.std for layer in angles.layers]  # None after a single shuffle
    lost.barh(places, drops, xerr=None if None in deviations else deviations, color=color, alpha=0.75, capsize=2)
    lost.set_title("points lost by a shuffle", fontsize=10, loc="left")
    lost.set_yticks(places, [])
    for axes in (moved, lost):
        axes.set_ylim(len(places) + 0.6, 0.4)  # the input on top
        axes.grid(False, axis="y")
    counts = angles.all.histogram
    if counts is not None:
        edges = [number * angles.period / len(counts.before) for number in range(len(counts.before) + 1)]
        spread.stairs(counts.before, edges, color="#777777", label="before")
        spread.stairs(counts.after, edges, color=color, label="after")
        spread.legend(fontsize=8, frameon=False, loc="lower right")
        quarters = [part * angles.period / 4 for part in range(5)]
        spread.set_xticks(
            quarters, ["0", "π/4", "π/2", "3π/4", "π"] if angles.period < 4 else ["0", "π/2", "π", "3π/2", "2π"]
        )
    spread.set_title("kernels by angle (rad)", fontsize=10, loc="left")
    spread.set_ylim(bottom=0)
    save(figure, path)


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str = "") -> None:
    """Draw a confusion matrix, counts[true][predicted]; the shade is the part of a row; 20 classes have numbers."""
    number = len(classes)
    figure, (axes,) = make_figure(1, 1, WIDTH * 0.86, title)
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    if number <= 40:
        size = 9 if number <= 20 else 6
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 3 else {}
        axes.set_xticks(range(number), classes, fontsize=size, **slanted)
        axes.set_yticks(range(number), classes, fontsize=size)
    if number <= 20:
        for row, found in enumerate(counts):
            for column, count in enumerate(found):
                color = "white" if shares[row][column] > 0.6 else "#222222" if count else "#cccccc"
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=9, color=color)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="part of the true class")
    save(figure, path)
