"""Where the commands print: one console, silent in all processes but the main one."""

import io
import os
import re
import sys
from pathlib import Path
from typing import Any, Literal, TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from rotateconv.lab.table import Table

_WIDE = 160  # columns of a pipe or a file, where nobody would wrap a long row again
_ANY = 10_000  # columns, more than any table has


def is_main_process() -> bool:
    """Whether this is the process that prints: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that command a terminal or turn the direction of writing: of a name in a file that may be anybody's."""


def printable(text: str) -> str:
    r"""Return a text with every character that would command a terminal written out.

    Example:
        >>> printable("a\x1b[31mcat")
        'a\\x1b[31mcat'
    """
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class _Console(Console):
    """A console that prints names as they are: no markup, no pictures for words between colons, no commands.

    A reader that leaves, such as head, ends nothing: what is left to print goes nowhere.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        leave_stdout()


def leave_stdout() -> None:
    """Send to nowhere what is printed from now on, and what is not printed yet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def prepare_streams() -> None:
    """Let stdout and stderr take any character, and be there where the caller closed them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_console(file: TextIO | None = None) -> Console:
    """Return the console for results and progress, as wide as the terminal or as COLUMNS says."""
    file = sys.stdout if file is None else file
    fixed = None if file.isatty() or os.environ.get("COLUMNS") else _WIDE
    return _Console(file=file, width=fixed, highlight=False, markup=False, emoji=False, quiet=not is_main_process())


def say(console: Console, text: str) -> None:
    """Print a line without wrapping that would break a path apart."""
    console.print(text, soft_wrap=True)


def facts(console: Console, rows: dict[str, str]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(f"{name.ljust(width)}  ", style="bold", end="")
        say(console, value)


def new_table(title: str = "") -> RichTable:
    """Return an empty table as all of them look."""
    return RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), title=title or None)


def show_table(console: Console, table: Table, title: str = "", *, fold: bool = False) -> None:
    """Print a table whose heads break between words and whose cells do not, or with `fold` where room is short.

    Without it numbers break between words where room is short: a part of one would be read as another.
    """
    shown = new_table(title)
    for place, head in enumerate(table.head):
        side: Literal["left", "right"] = "left" if place < table.left else "right"
        shown.add_column(head.replace(" ", "\n"), justify=side, no_wrap=not fold, overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    if shown.__rich_measure__(console, console.options.update(width=_ANY)).maximum > console.width:
        for column in shown.columns[table.left :]:
            column.no_wrap = False
    console.print(shown)


def duration(seconds: float) -> str:
    """Return 75.0 as "1:15" and 3675 as "1:01:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
