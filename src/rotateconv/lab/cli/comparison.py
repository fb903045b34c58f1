"""The tables of a comparison on the console, and where they are kept."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rotateconv.lab.cli.console import facts, say, show_table
from rotateconv.lab.naming import counted
from rotateconv.lab.report.page import CAPTION, SIZES_CAPTION
from rotateconv.lab.report.statistics import Group
from rotateconv.lab.report.tables import COMPARISON, MODEL, group_table, sizes_table
from rotateconv.lab.study.sizes import SizesTable


def show_comparison(console: Console, groups: Sequence[Group], out: Path) -> None:
    """Print the table of a comparison, one per model, what the numbers mean, and its files."""
    for model in dict.fromkeys(group.model for group in groups):
        own = [group for group in groups if group.model == model]
        run = (*own[0].runs, *own[0].failed)[0]
        title = f"{run.data.name}, {model}, {counted(run.config.epochs, 'epoch')} of {run.config.recipe}"
        show_table(console, group_table(own, [column for column in COMPARISON if column is not MODEL]), title)
    console.print(CAPTION, style="dim", width=min(100, console.width))
    for group in groups:
        for run in group.failed:
            say(console, f"{group.model} {group.label}, seed {run.config.seed}: {run.failed}")
    console.print()
    _show_files(console, out, "comparison")


def show_sizes(console: Console, table: SizesTable, out: Path) -> None:
    """Print accuracy against bytes, what the numbers mean, and its files."""
    show_table(console, sizes_table(table.rows, strong=""), f"{table.dataset}: accuracy against bytes")
    console.print(SIZES_CAPTION, style="dim", width=min(100, console.width))
    _show_files(console, out, "sizes")


def _show_files(console: Console, out: Path, name: str) -> None:
    files = {"table": "md", "records": "json", "picture": "png"}
    facts(console, {what: str(out / f"{name}.{end}") for what, end in files.items()})
