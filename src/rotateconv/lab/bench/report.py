"""A record of the bench as Markdown and as a picture: nothing here measures."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from rotateconv.errors import InputError
from rotateconv.lab.bench.cases import Case
from rotateconv.lab.bench.record import BenchRecord, Row, TargetRow
from rotateconv.lab.report.blocks import fill_blocks
from rotateconv.lab.report.canvas import make_figure, save
from rotateconv.lab.table import Table

KINDS = {
    "model": "Whole models",
    "fused model": "Whole models, fused for inference",
    "layer": "One layer",
    "kernel": "The kernel alone",
}


def to_markdown(record: BenchRecord) -> str:
    """The record as Markdown: the machine, the targets, and a table for each kind of case."""
    sections = _sections(record)
    parts = [sections.pop("machine")]
    for name, text in sections.items():
        parts += [f"## {KINDS.get(name, 'Targets')}", text]
    lost = {row.case.name for row in record.rows if not isinstance(row, Row)}
    if lost:
        parts.append("Did not fit into the memory: " + "; ".join(sorted(lost)) + ".")
    return "\n\n".join(parts) + "\n"


def fill_tables(text: str, record: BenchRecord) -> str:
    """A Markdown page with its tables made anew: what lies between `<!-- bench: NAME -->` and `<!-- end -->`.

    Args:
        text: of the page; NAME is "machine", "targets" or a key of `KINDS`.
        record: of a run.

    Raises:
        ValueError: If the page asks for a table that the record does not have.
    """

    def make(name: str) -> str:
        sections = _sections(record)
        if name not in sections:
            raise InputError(f"the record has no table {name!r}, only {', '.join(sections)}: run the bench with it")
        return sections[name]

    return fill_blocks(text, "bench", make)


def _sections(record: BenchRecord) -> dict[str, str]:
    """The text of every table that the record has, by name."""
    sections = {"machine": _machine(record)}
    if record.targets:
        sections["targets"] = _targets_table(record.targets)
    for kind in KINDS:
        if rows := [row for row in record.timed if row.case.kind == kind]:
            sections[kind] = rows_table(rows)
    return sections


def _targets_table(targets: Sequence[TargetRow]) -> str:
    """The targets of a record with what was measured, as a Markdown table."""
    quantities = {"ratio": "time over", "speedup": "times as fast as", "peak_ratio": "peak memory over"}
    lines = []
    for row in targets:
        what = f"{row.case.name}, {row.case.how}: {row.form}, {quantities[row.quantity]} {row.baseline}"
        if row.value is None:
            lines.append((what, row.wanted, "not measured", ""))
        else:
            spread = "" if row.low == row.high else f" ({row.low:.3f} to {row.high:.3f})"
            lines.append((what, row.wanted, f"{row.value:.3f}{spread}", "yes" if row.reached else "**no**"))
    return Table(("target", "wanted", "measured (middle half)", "reached"), tuple(lines), 4).markdown()


def rows_table(rows: Sequence[Row]) -> str:
    """Rows of a record as a Markdown table: slower than the baseline in bold."""
    lines = []
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        share = row.share_of_matrix_rate
        lines.append(
            (
                *(row.case.name, row.case.how, row.form, _milliseconds(row)),
                "1" if row.form == row.baseline else f"**{ratio}**" if row.ratio_low > 1 else ratio,
                "" if share is None else f"{100 * share:.0f} %",
                f"{row.peak_bytes / 2**20:.1f}",
            )
        )
    head = ("case", "pass", "form", "ms", "over the first form (middle half)", "of the matrix rate", "peak MiB")
    return Table(head, tuple(lines), len(head)).markdown()


def write_plot(record: BenchRecord, path: Path) -> None:
    """Draw the time of a layer against its multiply-adds, both logarithmic, a panel for each pass and dtype.

    A line goes through the medians of layers with equally many multiply-adds.
    """
    rows = [row for row in record.timed if row.case.kind == "layer"]
    panels = list(dict.fromkeys(row.case.how for row in rows))
    figure, every = make_figure(1, max(1, len(panels)), 4.5, "")
    forms = list(dict.fromkeys(row.form for row in rows))
    for axes, panel in zip(every, panels, strict=False):
        for index, form in enumerate(forms):
            points = sorted(
                (_dense_multiply_adds(row.case), 1e3 * row.seconds)
                for row in rows
                if row.case.how == panel and row.form == form
            )
            if points:
                color = "k" if form == "nn.Conv2d" else f"C{index % 10}"
                axes.loglog(*zip(*points, strict=True), "o", color=color, markersize=3, label=form)
                axes.loglog(*zip(*_medians(points), strict=True), "-", color=color, linewidth=1)
        axes.set(title=panel)
        axes.set(xlabel="multiply-adds of the dense layer, forward", ylabel="milliseconds")
    if panels:
        axes.legend(fontsize="small")
    save(figure, path)


def _medians(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """One point an amount of work: layers of different shapes can have the same."""
    return [
        (work, statistics.median(time for _, time in same))
        for work, same in itertools.groupby(points, key=lambda point: point[0])
    ]


def _dense_multiply_adds(case: Case) -> int:
    positions = case.batch * (case.size // case.stride) ** 2
    return int(positions * case.channels**2 * case.kernel_size**2)


def _machine(record: BenchRecord) -> str:
    found = record.environment
    rates = ", ".join(f"{rate / 1e9:.3g} ({dtype})" for dtype, rate in record.matrix_rate.items() if rate)
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items() if number)
    load = found.load_average
    facts = {
        "Device": found.gpu if found.device == "cuda" else found.cpu,
        "Cores and threads": f"{found.physical_cores} cores, {found.threads} threads",
        "Load average": "unknown" if load is None else f"{load[0]:.1f} (1 minute), {load[1]:.1f} (5 minutes)",
        "Versions": f"Python {found.python}, {versions}",
        **({} if found.kernels is None else {"Kernels": found.kernels}),
        "Time": found.time,
        "Matrix product, 10⁹ multiply-adds a second": rates,
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _milliseconds(row: Row) -> str:
    middle, low, high = (1e3 * seconds for seconds in (row.seconds, row.seconds_low, row.seconds_high))
    digits = 3 if middle < 1 else 2 if middle < 100 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
