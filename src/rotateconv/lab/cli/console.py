"""Where the commands print: one console, silent in all processes but the main one."""

import os
import sys
from typing import TextIO

from rich.console import Console

_WIDE = 160  # columns of a pipe or a file, where nobody would wrap a long row again


def is_main_process() -> bool:
    """Whether this is the process that prints: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def make_console(file: TextIO | None = None) -> Console:
    """Return the console for results and progress, as wide as the terminal or as COLUMNS says."""
    file = sys.stdout if file is None else file
    fixed = None if file.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Console(file=file, width=fixed, highlight=False, quiet=not is_main_process())


def say(console: Console, text: str) -> None:
    """Print a line as it is: no markup, no wrapping that would break a path apart."""
    console.print(text, markup=False, soft_wrap=True)


def facts(console: Console, rows: dict[str, str]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(f"[bold]{name.ljust(width)}[/bold]  ", end="")
        say(console, value)


def duration(seconds: float) -> str:
    """Return 75.0 as "1:15" and 3675 as "1:01:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
