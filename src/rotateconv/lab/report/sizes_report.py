"""The table of accuracy against bytes, in Markdown and in JSON."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rotateconv.errors import RunError
from rotateconv.lab.report.figures_sizes import draw_sizes
from rotateconv.lab.study.sizes import FLOAT, SizeRow, merge_sizes
from rotateconv.lab.train.run_folder import Record, write_bytes

CAPTION = (
    "Bytes are of the packed file (32: of the float32 numbers), accuracy of the net with those numbers on the test "
    "split, mean ± standard deviation over n runs. Nets that were not trained with rounded numbers are packed with "
    "`--calibrate`. The last column is the accuracy above that of the dense nets at the same bytes, read off the line "
    "through the best of them (bytes on a logarithmic scale); none of that size: -."
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
