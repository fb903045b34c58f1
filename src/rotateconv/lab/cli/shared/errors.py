"""Failures as a command prints them: the one place where an exception becomes an exit code and a sentence."""

import itertools
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin

from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from rotateconv.errors import INTERRUPTED, MISTAKE, ConfigError, RunInterrupted, nearest
from rotateconv.lab.cli.shared.console import is_main_process, printable
from rotateconv.lab.exit_codes import Failure, explain

_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


def report(error: BaseException) -> int:
    """Print the sentence of an error on stderr and return its exit code."""
    failure = _of_the_command_line(error) if isinstance(error, CycloptsError) else explain(error)
    if failure.unexpected or os.environ.get("ROTATECONV_TRACEBACK"):
        traceback.print_exception(error)
    # Every process of a run meets the same mistake; one of them reports it.
    if failure.unexpected or is_main_process():
        word = "" if failure.code == INTERRUPTED else "error: "
        print(printable(f"{word}{failure.sentence}"), file=sys.stderr)
    return failure.code


def _of_the_command_line(error: CycloptsError) -> Failure:
    """Return the sentence about an option or a command that is not as it should be."""
    command = " ".join(("rotateconv", *(error.command_chain or ())))
    error.verbose = False
    match error:
        case UnknownCommandError():
            name = (error.unused_tokens or [""])[0]
            commands = [command for command in (error.app or ()) if not command.startswith("-")]
            sentence = f"unknown command {name!r}: {nearest(name, commands)}"
        case UnknownOptionError():
            name = (error.token.keyword or error.token.value).partition("=")[0]
            options = [option for argument in error.argument_collection for option in argument.names]
            near = nearest(name, options)
            sentence = f"unknown option {name!r}" + (f": {near}" if near.startswith("did") else "")
        case CoercionError() if error.token is not None and error.msg is None:
            name = error.token.keyword or (error.argument.name if error.argument else "a value")
            sentence = f"{name} must be {_kind(error.target_type)}, not {error.token.value!r}"
        case MissingArgumentError() if error.argument is not None:
            name = error.keyword or error.argument.name
            given = error.keyword is not None or error.argument.tokens
            sentence = (
                f"{name} requires a value{_instead(name, error.root_input_tokens)}" if given else f"{name} is missing"
            )
        case UnusedCliTokensError():
            sentence = f"unexpected argument {' '.join(error.unused_tokens or ())!r}"
        case _:
            sentence = " ".join(str(error).split()).rstrip(".")
    return Failure(MISTAKE, f"{sentence}{' See' if sentence.endswith('?') else '; see'} {command} --help")


def _instead(option: str, words: Sequence[str] | None) -> str:
    """Return what stands in the place of an option's value, where it is no value because it begins with a dash."""
    after = dict(itertools.pairwise(words or ())).get(option, "")
    return f", and {after!r} begins as an option does" if after.startswith("-") else ""


def _kind(target: Any) -> str:
    if get_origin(target) is Literal:
        return "one of " + ", ".join(map(str, get_args(target)))
    return _WORDS.get(target, f"of type {getattr(target, '__name__', target)}")


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one sentence, without the line of code it comes from."""
    if is_main_process():
        print(printable(f"warning: {' '.join(str(message).split())}"), file=sys.stderr)


def without_torchrun(command: str, *, jobs: bool = True) -> None:
    """Raise ConfigError where torchrun started several processes of a command that is for one, or starts its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        how = "starts its own processes" if jobs else "runs in one process"
        raise ConfigError(f"{command} {how}: run it without torchrun{' and choose --jobs' if jobs else ''}")


def refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise ConfigError where an option was given that has no meaning beside others."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise ConfigError(f"{option} has no meaning with {reason}: leave one of them out")


@contextmanager
def going_on(kept: Callable[[], str] = lambda: "go on from the last checkpoints") -> Iterator[None]:
    """Let an interruption name the command that goes on: the same one, which must not start again from nothing."""
    again = shlex.join(["rotateconv", *(word for word in sys.argv[1:] if word != "--overwrite")])
    try:
        yield
    except RunInterrupted as error:
        raise RunInterrupted(f"{str(error).partition(': go on with ')[0]}: go on with {again}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped at once: {kept()} with {again}") from None
