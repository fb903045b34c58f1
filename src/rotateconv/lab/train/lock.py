"""One process at a time writes in a run folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rotateconv._files import JSON_BYTES, atomic_replace, parse_json, read_regular
from rotateconv.errors import RunError

LOCK = ".lock"
"""Held by the process that trains; the system lets go of it when that process ends, however it ends. It stays there:
removed, two processes could each hold one of that name."""
OWNER = ".owner.json"
"""Which process that is, for those that find the lock taken."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder, which exists, for this process alone.

    Raises:
        RunError: another process holds it.
    """
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{run} is being trained{_by(run)}: wait for it, or choose another folder") from None
    except OSError as error:
        raise RunError(f"cannot write in {run}: {error.strerror}") from error
    try:
        with suppress(OSError), atomic_replace(run / OWNER) as temporary:  # for others to read: it is not what holds
            temporary.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8")
        yield
    finally:
        (run / OWNER).unlink(missing_ok=True)
        lock.release()


def _by(run: Path) -> str:
    try:
        owner = parse_json(read_regular(run / OWNER, JSON_BYTES))
        return f" by process {int(owner['pid'])} on {str(owner['host'])!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return " by another process"
