"""The command group: the one place where an exception becomes an exit code and a sentence."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from rotateconv.errors import INTERRUPTED, MISTAKE
from rotateconv.lab.cli.console import is_main_process
from rotateconv.lab.exit_codes import CommandError, Failure, explain


class Group(typer.core.TyperGroup):
    """Runs a subcommand and exits: 0 done, 2 the user's mistake, 1 ours or the machine's, 130 interrupted."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Do what the arguments say; with `standalone_mode`, as Typer calls it, never return."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                # Without its standalone mode Typer hands on exceptions, and returns the code of a typer.Exit.
                code = super().main(args, prog_name or "rotateconv", complete_var, False, windows_expand_args, **extra)
            except Exception as error:
                if not standalone_mode:
                    raise
                code = _tell(error)
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; a Ctrl-C that nobody caught is told like every other end."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            sentence = str(error) or "interrupted: nothing that was written before is lost"
            raise CommandError(Failure(INTERRUPTED, sentence)) from None


def _tell(error: Exception) -> int:
    """Print the sentence of an error on stderr and return its exit code."""
    if hasattr(error, "format_message"):  # Typer's own, whichever version of Click it brings along
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "rotateconv"
        message = " ".join(error.format_message().split()).rstrip(".")
        failure = Failure(MISTAKE, f"{message}: see {path} --help")
    else:
        failure = explain(error)
    if failure.unexpected or os.environ.get("ROTATECONV_TRACEBACK"):
        traceback.print_exception(error)
    # Every process of a run meets the same mistake; one of them tells it.
    if failure.unexpected or is_main_process():
        word = "" if failure.code == INTERRUPTED else "error: "
        print(f"{word}{failure.sentence}", file=sys.stderr)
    return failure.code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Print a warning as one sentence, without the line of code it comes from."""
    if is_main_process():
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
