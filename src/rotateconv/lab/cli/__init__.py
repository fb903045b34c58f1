"""The command line `rotateconv`; each subcommand is a file here and a line below.

A command imports what it needs when it runs: help and mistakes wait for neither Accelerate nor Matplotlib.
"""

from typing import Annotated

import typer

from rotateconv.lab.cli import bench, compare, convert, evaluate, export, info, pack, report, train, unpack
from rotateconv.lab.cli.group import Group
from rotateconv.lab.train.allocator import keep_freed_memory

app = typer.Typer(cls=Group, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("convert", epilog=convert.EXAMPLES)(convert.convert)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("info", epilog=info.EXAMPLES)(info.info)
app.command("pack", epilog=pack.EXAMPLES)(pack.pack)
app.command("unpack", epilog=unpack.EXAMPLES)(unpack.unpack)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Convolution kernels that are line segments with a learned angle: train, compare, inspect."""
    if version:
        from rotateconv import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def main() -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 1 ours or the machine's, 130 interrupted."""
    keep_freed_memory()
    app()
