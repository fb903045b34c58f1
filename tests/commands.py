"""A command in this process: what it prints and its exit code."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rotateconv.lab.cli import run


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def invoke(arguments: Sequence[object]) -> Result:
    """Run a command of `rotateconv`."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        code = run([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), error.getvalue())
