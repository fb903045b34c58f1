"""The table and the picture of accuracy against bytes, made from rows alone."""

import io
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rotateconv.runs import Record, RunError, write_bytes
from rotateconv.sizes import FLOAT, SizeRow, merge_sizes, pareto

CAPTION = (
    "Bytes are of the packed file (32: of the float32 numbers), accuracy of the net with those numbers on the test "
    "split, mean ± standard deviation over n runs. Nets that were not trained with rounded numbers are packed with "
    "`--calibrate`. The last column is the accuracy above that of the dense nets at the same bytes, read off the line "
    "through the best of them (bytes on a logarithmic scale); none of that size: -."
)

_COLORS = (
    *("#222222", "#777777", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#8c564b", "#9467bd", "#bcbd22", "#17becf", "#e377c2", "#7f0000", "#006400", "#4b0082"),
)


def write_sizes(rows: Sequence[SizeRow], out: Path, dataset: str) -> None:
    """Write sizes.json, sizes.md and sizes.png in `out`."""
    records = [to_record(row, dataset) for row in rows]
    write_bytes(out / "sizes.json", (json.dumps(records, indent=2, allow_nan=False) + "\n").encode())
    write_bytes(out / "sizes.md", markdown(rows, dataset).encode())
    draw_sizes(rows, out / "sizes.png", dataset)


def to_record(row: SizeRow, dataset: str) -> Record:
    """Return a row as JSON has it."""
    return {
        **vars(row),
        "dataset": dataset,
        "accuracies": list(row.accuracies),
        "runs": list(row.runs),
        "accuracy_mean": row.accuracy,
        "accuracy_std": row.deviation,
        "n": len(row.accuracies),
    }


def from_records(records: Sequence[Record]) -> list[SizeRow]:
    """Return the rows that `to_record` made records of.

    Raises:
        RunError: something of a row is not there.
    """
    try:
        rows = [SizeRow(**{field.name: record[field.name] for field in fields(SizeRow)}) for record in records]
        return [replace(row, accuracies=tuple(row.accuracies), runs=tuple(row.runs)) for row in rows]
    except (KeyError, TypeError) as error:
        raise RunError(f"a row of sizes.json lacks {error}: write it again with rotateconv compare --sizes") from None


def merge_records(records: Sequence[Record], more: Sequence[Record]) -> list[Record]:
    """Return the rows of a record with those of more runs, as `merge_sizes` does.

    Raises:
        RunError: they cannot be merged, or are of two data sets.
    """
    names = sorted({str(record["dataset"]) for record in (*records, *more)})
    if len(names) != 1:
        raise RunError(f"sizes on {' and '.join(names)} make no table: record those of one data set")
    rows = merge_sizes(from_records(records), from_records(more))
    return [to_record(row, *names) for row in rows]


def markdown(rows: Sequence[SizeRow], dataset: str) -> str:
    """Return the rows as a table in Markdown; a net with lines that is below the dense ones is in bold."""
    lines = ["| net | bits | bytes | test accuracy % | n | above dense |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join([f"**{dataset}: accuracy against bytes**", "", *lines, "", CAPTION]) + "\n"


def cells(row: SizeRow, strong: str = "**") -> tuple[str, ...]:
    """Return a row's cells as people read them."""
    deviation = "" if row.deviation is None else f" ± {row.deviation:.2f}"
    above = "-" if row.above_dense is None else f"{round(row.above_dense, 2) + 0.0:+.2f}"
    if row.above_dense is not None and row.above_dense < 0:
        above = f"{strong}{above}{strong}"
    bits = "float32" if row.bits == FLOAT else f"{row.bits}{', trained' if row.qat else ''}"
    return (row.label, bits, f"{row.bytes:,.0f}", f"{row.accuracy:.2f}{deviation}", str(len(row.accuracies)), above)


def draw_sizes(rows: Sequence[SizeRow], path: Path, dataset: str) -> None:
    """Draw test accuracy over bytes, a line a net, filled where trained with rounded numbers, as a PNG file.

    The dashed line goes through the best dense nets.

    Args:
        rows: as of `measure_sizes`.
        path: of the picture.
        dataset: for the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlabel("kilobytes of the file (log scale)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(f"{dataset}: accuracy against bytes", fontsize=10, loc="left")
    axes.grid(True, which="both", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    frontier = pareto([row for row in rows if row.dense])
    if len(frontier) > 1:
        points = ([row.bytes / 1e3 for row in frontier], [row.accuracy for row in frontier])
        axes.plot(*points, color="#222222", linestyle="--", linewidth=1, label="best dense nets")
    for number, label in enumerate(dict.fromkeys(row.label for row in rows)):
        color = _COLORS[number % len(_COLORS)]
        own = [row for row in rows if row.label == label]
        for qat in (False, True):
            drawn = [row for row in own if row.qat == qat]
            if not drawn:
                continue
            axes.errorbar(
                [row.bytes / 1e3 for row in drawn],
                [row.accuracy for row in drawn],
                yerr=[row.deviation or 0.0 for row in drawn],
                color=color,
                marker="D" if qat else "o",
                markerfacecolor=color if qat else "white",
                markersize=5,
                linewidth=0 if qat else 1,
                elinewidth=1,
                capsize=2,
                label=f"{label}{', trained with rounding' if qat else ''}",
            )
            for row in drawn:
                text = "32" if row.bits == FLOAT else str(row.bits)
                axes.annotate(text, (row.bytes / 1e3, row.accuracy), (4, 4), textcoords="offset points", fontsize=7)
    # What two bits leave of a net that was not trained for them would flatten everything else.
    best = max(row.accuracy for row in rows)
    shown = [row.accuracy for row in rows if row.accuracy > best - 25]
    axes.set_ylim(min(shown) - 1, best + 1)
    ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if _inside(tick, rows)]
    if len(ticks) > 1:
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_bytes(path, image.getvalue())


def _inside(kilobytes: float, rows: Sequence[SizeRow]) -> bool:
    sizes = [row.bytes / 1e3 for row in rows]
    return 0.7 * min(sizes) <= kilobytes <= 1.4 * max(sizes)
