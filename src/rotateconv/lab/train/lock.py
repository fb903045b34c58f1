"""One process at a time writes in a run folder."""

import json
import os
import socket
from collections.abc import Collection, Iterator
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
ATTEMPT = "ROTATECONV_ATTEMPT"
"""Environment variable that names the attempt at a run which a process makes, where one may follow another."""
_PATIENCE = 10.0  # seconds that a system gets to let go of what a dead process held


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder, which exists, for this process alone; RunError where another one has it."""
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{run} is being trained{_by(run)}: wait for it, or choose another folder") from None
    except OSError as error:
        raise RunError(f"cannot write in {run}: {error.strerror}") from error
    attempt = os.environ.get(ATTEMPT)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), **({} if attempt is None else {"attempt": attempt})}
    try:
        with suppress(OSError), atomic_replace(run / OWNER) as temporary:  # for others to read: it is not what holds
            temporary.write_text(json.dumps(owner), encoding="utf-8")
        yield
    finally:
        (run / OWNER).unlink(missing_ok=True)
        lock.release()


def take_over(run: Path, dead: Collection[str], patience: float = _PATIENCE) -> None:
    """Free a run folder that is still held for an attempt which is known to be dead, such as with its machine.

    The server of a shared disk may keep the lock of a machine that is gone. Such a lock is put aside; one of anybody
    else stays.
    """
    if not (run / LOCK).exists():
        return
    try:
        with FileLock(run / LOCK, timeout=patience):
            return
    except Timeout:
        if _owner(run).get("attempt") in dead:
            (run / LOCK).unlink(missing_ok=True)


def held_by_another(run: Path, attempt: str) -> bool:
    """Whether another attempt than this one holds the folder: this one was taken for dead."""
    return _owner(run).get("attempt", attempt) != attempt


def _owner(run: Path) -> dict[str, object]:
    """Return what is written of the process that holds the folder; empty where nothing is."""
    with suppress(OSError, ValueError):
        owner = parse_json(read_regular(run / OWNER, JSON_BYTES))
        if isinstance(owner, dict):
            return owner
    return {}


def _by(run: Path) -> str:
    try:
        owner = _owner(run)
        return f" by process {int(str(owner['pid']))} on {str(owner['host'])!r}"
    except (ValueError, KeyError):
        return " by another process"
