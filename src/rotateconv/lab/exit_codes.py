"""Exceptions as exit codes with one sentence: 2 the user's mistake, 1 ours or the machine's, 130 interrupted.

Not a part of `cli`, since the processes of a study explain their failures too.
"""

import errno
import sys
from dataclasses import dataclass

from rotateconv.errors import FAULT, INTERRUPTED, MISTAKE, DivergedError, RotateConvError

# The machine's, where a disk refuses; with any other number a path was named that cannot be written to.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True)
class Failure:
    """How a command ends that could not do its work.

    Args:
        code: exit code of the process.
        sentence: for the user, on one line.
        unexpected: whether somebody should see the traceback: a fault of this library.
        diverged: whether a training run diverged, so that other runs may still succeed.
    """

    code: int
    sentence: str
    unexpected: bool = False
    diverged: bool = False


class CommandError(RotateConvError):
    """A failure that is explained already, such as that of another process."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


def explain(error: BaseException) -> Failure:
    """Return the exit code and the sentence of an exception.

    Example:
        >>> explain(RotateConvError("lr must be above 0, not -1"))
        Failure(code=2, sentence='lr must be above 0, not -1', unexpected=False, diverged=False)
    """
    sentence = " ".join(str(error).split())
    if isinstance(error, CommandError):
        return error.failure
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, sentence or "interrupted")
    if isinstance(error, MemoryError) or _is(error, "torch", "OutOfMemoryError") or "can't allocate memory" in sentence:
        return Failure(FAULT, "the memory is full: try a smaller batch_size, a smaller model or fewer jobs")
    if isinstance(error, OSError):
        return Failure(
            _disk_code(error), f"{error.strerror or sentence}{f': {error.filename}' if error.filename else ''}"
        )
    if isinstance(error, RotateConvError):
        cause = error.__cause__
        code = _disk_code(cause) if isinstance(cause, OSError) else error.exit_code
        return Failure(code, sentence, diverged=isinstance(error, DivergedError))
    return Failure(
        FAULT, f"a fault of rotateconv, {type(error).__name__}: {sentence}; please report it", unexpected=True
    )


def _disk_code(error: OSError) -> int:
    return FAULT if error.errno in _MACHINE else MISTAKE


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether `error` is of a class whose module is imported by then; importing it here would take seconds."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)
