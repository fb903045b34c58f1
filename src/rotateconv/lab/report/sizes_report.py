"""The table of accuracy against bytes, in Markdown and in JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from rotateconv.lab.report.figures_sizes import draw_sizes
from rotateconv.lab.study.sizes import FLOAT, SizeRow, SizesTable
from rotateconv.lab.train.run_folder import write_bytes

CAPTION = (
    "Bytes are of the packed file (32: of the float32 numbers), accuracy of the net with those numbers on the test "
    "split, mean ± standard deviation over n runs. Nets that were not trained with rounded numbers are packed with "
    "`--calibrate`. The last column is the accuracy above that of the dense nets at the same bytes, read off the line "
    "through the best of them (bytes on a logarithmic scale); none of that size: -."
)


def write_sizes(rows: Sequence[SizeRow], out: Path, dataset: str) -> None:
    """Write sizes.json, sizes.md and sizes.png in `out`."""
    records = SizesTable(dataset, tuple(rows)).to_json()
    write_bytes(out / "sizes.json", (json.dumps(records, indent=2, allow_nan=False) + "\n").encode())
    write_bytes(out / "sizes.md", markdown(rows, dataset).encode())
    draw_sizes(rows, out / "sizes.png", dataset)


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
