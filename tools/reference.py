"""docs/configuration.md and docs/commands.md, made from the declared keys and from the commands: `make reference`."""

import dataclasses
import re
from pathlib import Path

from cyclopts import Argument

from rotateconv.lab.config import PRESETS, RENAMED, RunConfig
from rotateconv.lab.keys import expected, field_of, fields_of
from rotateconv.lab.run_config import PANELS

_INTRODUCTION = """# Configuration

What decides a run's result are the keys below, each with one name everywhere:

- an option of `train`, `compare`, `search` and `convert`: `--clip-grad-norm 1`, `--channels-last`, `--no-validation`;
- `--set clip_grad_norm=1`, where `none` empties an optional key;
- a line of the TOML file of `--config`: `clip_grad_norm = 1`;
- the run folder's `config.json`, and `RunConfig(clip_grad_norm=1.0)` in Python.

The later wins: preset < file < options < `--set`. This page is made from the code (`make reference`).
"""


def configuration_page() -> str:
    """Return docs/configuration.md: every key with what it takes, its default and what it decides."""
    lines = [_INTRODUCTION]
    for name in fields_of(RunConfig):
        if name in PANELS:
            lines += [*([""] if lines[-1].startswith("|") else []), f"## {PANELS[name]}", ""]
            lines += ["| key = default | what it decides |", "| --- | --- |"]
        field = field_of(RunConfig, name)
        kind = expected(RunConfig, name)
        taken = "" if kind.startswith("text") else f" *Takes {kind}.*"
        lines.append(f"| `{name} = {_text(field.default)}` | {_cell(field.description or '')}{taken} |")
    lines += ["", "## Presets", "", "What `--recipe` sets, where it differs from the defaults above.", ""]
    lines += ["| preset | keys |", "| --- | --- |"]
    for name, preset in PRESETS.items():
        values = ((field.name, getattr(preset, field.name), field.default) for field in dataclasses.fields(preset))
        settings = ", ".join(
            f"{key}={_text(value)}" for key, value, usual in values if value != usual and key != "recipe"
        )
        lines.append(f"| `{name}` | {settings} |")
    lines += ["", "## Names of version 0.1.0", "", "A `config.json` that has these still loads.", ""]
    lines += ["| then | now |", "| --- | --- |", *(f"| `{old}` | `{new}` |" for old, new in RENAMED.items())]
    return "\n".join([*lines, ""])


def commands_page() -> str:
    """Return docs/commands.md: every command with its options and examples that work."""
    from rotateconv.lab.cli import app

    parts = [
        "# Commands\n\nAs `rotateconv COMMAND --help` shows them; an option that several commands have is described at "
        "the first. This page is made from the code (`make reference`)."
    ]
    described: dict[str, str] = {}  # the command at which a row of a table stands
    for name in app:
        if name.startswith("-"):
            continue
        command = app[name]
        parts.append(f"## rotateconv {name}\n\n{command.help}")
        with app.app_stack([name]):  # for the defaults that the whole command line has
            arguments = [argument for argument in command.assemble_argument_collection() if argument.show]
        rows = {_row(argument): f"`{argument.name}`" for argument in arguments}
        own = [row for row in rows if described.setdefault(row, name) == name]
        parts.append("\n".join(["| option | |", "| --- | --- |", *own]))
        for other in dict.fromkeys(described[row] for row in rows if described[row] != name):
            names = ", ".join(option for row, option in rows.items() if described[row] == other)
            parts.append(f"As at [{other}](#rotateconv-{other}): {names}.")
        found = re.findall(r"\[dim\](.*)\[/dim\]\n\[bold\](.*)\[/bold\]", command.help_epilogue or "")
        parts.append("```sh\n" + "\n".join(f"# {what.rstrip(':')}\n{example}" for what, example in found) + "\n```")
    return "\n\n".join(parts) + "\n"


def _row(argument: Argument) -> str:
    spellings = ", ".join(f"`{spelling}`" for spelling in argument.names)
    option = f"{spellings} {_cell(argument.parameter.metavar or '')}".rstrip()
    return f"| {option} | {_cell(argument.parameter.help or '')} |"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else f"{value}"


def _cell(text: str) -> str:
    return re.sub(r"([|*])", r"\\\1", " ".join(text.split()))


PAGES = {"configuration.md": configuration_page, "commands.md": commands_page}
"""The pages by their name in docs/."""


def write_pages(folder: Path) -> None:
    """Write the pages into a folder."""
    for name, make in PAGES.items():
        (folder / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path("docs"))
