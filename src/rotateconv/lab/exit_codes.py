"""Exceptions as exit codes with one sentence: 2 the user's mistake, 1 ours or the machine's, 130 interrupted.

Not a part of `cli`, since the processes of a study explain their failures too.
"""

import errno
import sys
from dataclasses import dataclass

from rotateconv.errors import FAULT, INTERRUPTED, MISTAKE, RotateConvError

# The machine's, where a disk refuses; with any other number a path was named that cannot be written to.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True)
class Failure:
    """How a command ends that could not do its work: its exit code, and a sentence for the user on one line.

    An unexpected one is a fault of this library, whose traceback somebody should see.
    """

    code: int
    sentence: str
    unexpected: bool = False


class CommandError(RotateConvError):
    """A failure that is explained already, such as that of another process."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


def explain(error: BaseException) -> Failure:
    """Return the exit code and the sentence of an exception.

    Example:
        >>> explain(RotateConvError("lr must be above 0, not -1"))
        Failure(code=2, sentence='lr must be above 0, not -1', unexpected=False)
    """
    sentence = " ".join(str(error).split())
    torch = sys.modules.get("torch")  # to load it takes seconds, and no error is of it before it is loaded
    full = () if torch is None else (torch.OutOfMemoryError,)
    if isinstance(error, CommandError):
        return error.failure
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, sentence or "interrupted")
    if isinstance(error, (MemoryError, *full)) or "can't allocate memory" in sentence:
        return Failure(FAULT, "the memory is full: try a smaller batch_size, a smaller model or fewer jobs")
    if isinstance(error, OSError):
        return Failure(
            _disk_code(error), f"{error.strerror or sentence}{f': {error.filename}' if error.filename else ''}"
        )
    if isinstance(error, RotateConvError):
        cause = error.__cause__
        code = _disk_code(cause) if isinstance(cause, OSError) else error.exit_code
        return Failure(code, sentence)
    return Failure(
        FAULT, f"a fault of rotateconv, {type(error).__name__}: {sentence}; please report it", unexpected=True
    )


def _disk_code(error: OSError) -> int:
    return FAULT if error.errno in _MACHINE else MISTAKE
