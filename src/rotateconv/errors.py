"""The exceptions of rotateconv: each message is one sentence, and each class knows the exit code of a command."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MISTAKE, FAULT, INTERRUPTED = 2, 1, 130
"""Exit codes of a command: the user's mistake; ours or the machine's; interrupted."""


_LONGEST = 1000
"""Characters of a message: what a file says may be quoted in it, and a file may say anything."""


class RotateConvError(Exception):
    """Base of all exceptions of this package; the message is one sentence for the user.

    Attributes:
        exit_code: with which a command ends that cannot go on: 2, unless a class says otherwise.

    Example:
        >>> RotateConvError("the image is empty").exit_code
        2
        >>> str(RotateConvError("x" * 5000 + ": restore the file"))[-24:]
        'xxxxxx: restore the file'
    """

    exit_code: int = MISTAKE

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 300]} ... {text[-295:]}"


class InputError(RotateConvError, ValueError):
    """An argument or a file that cannot be what it should: what was expected and what came."""


class ConfigError(InputError):
    """The user's mistake in a configuration."""


class DataError(InputError):
    """The user's mistake in naming, placing or preparing data."""


class RunError(InputError):
    """The user's mistake with a run folder, or a disk that took nothing more."""


class DivergedError(RotateConvError, ValueError):
    """The loss or a weight is no longer finite; the message says where, what is kept and what to try."""

    exit_code = FAULT


class RunInterrupted(RotateConvError):  # noqa: N818  # no error: the run saved itself
    """The run was asked to stop and saved itself; the message says how to go on."""

    exit_code = INTERRUPTED


class BenchError(RotateConvError, RuntimeError):
    """An implementation that does not compute what it should: it is not timed."""

    exit_code = FAULT


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class: those of torch go on with advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def on_one_line(error: BaseException) -> str:
    """Return an error's text without breaks, or its class."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def needing(extra: str, what: str, error_class: type[InputError] = ConfigError) -> Iterator[None]:
    """Let imports that fail inside name the extra of this package that they belong to, behind what needs them."""
    try:
        yield
    except (ImportError, RuntimeError) as error:  # a package that is there may fail in any way of these two
        raise error_class(f"{what} ({on_one_line(error)}): pip install 'rotateconv[{extra}]'") from None


def nearest(name: str, names: Iterable[str], otherwise: str | None = None) -> str:
    """Return the end of a sentence about an unknown name: the nearest ones there are, else `otherwise`, or all.

    Example:
        >>> nearest("resnet21", ["resnet20", "densenet40"])
        "did you mean 'resnet20'?"
    """
    known = list(names)
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else otherwise or f"choose from {', '.join(known)}"
