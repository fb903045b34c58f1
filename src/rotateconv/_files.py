"""Files that are written whole or not at all, and read only where they are what they say."""

import errno
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rotateconv.errors import InputError

TEMPORARY = ".tmp"
"""Among the suffixes of a file that is not whole yet; a process that is killed leaves it behind."""

JSON_BYTES = 2**26
"""Largest JSON file that is read: a run's metrics of ten thousand epochs have a tenth of it."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; what the body writes there gets the name `path` at the end.

    If the body raises, the temporary file is removed and a file that was at `path` stays as it was.

    Raises:
        ValueError: If the disk takes nothing there.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "model.bin") as temporary:
        ...         _ = temporary.write_bytes(b"all of it")
        ...     os.listdir(folder)
        ['model.bin']
    """
    target = check_target(path)
    try:
        with atomic_replace(target) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error


def check_target(path: str | Path) -> Path:
    """A path as one that a file can be written to: what can be known before the work is done.

    Raises:
        ValueError: If it is a folder, or there is no folder to write it in.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no folder {target.parent}; make it first")
    return target


@contextmanager
def atomic_replace(target: Path) -> Iterator[Path]:
    """The same as `atomic_write`, for a caller with sentences of its own: an OSError stays what it is."""
    # A random name that did not exist: nobody can have put a link there. The ending stays last, since writers look at
    # it.
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=f"{TEMPORARY}{target.suffix}", dir=target.parent)
    temporary = Path(name)
    try:
        os.close(handle)
        temporary.chmod(0o666 & ~_umask())  # mkstemp's are for their owner alone
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_regular(path: Path, largest: int, *, size: int | None = None) -> bytes:
    """Return the bytes of a regular file, whose size is looked at before any memory is taken.

    Args:
        path: Of the file; a link is followed, a device or a pipe is refused without a wait.
        largest: Number of bytes above which it is refused.
        size: That it must have, where that is known.

    Raises:
        OSError: If it is missing, no regular file, too large or of another size; `strerror` says so.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if size is not None and found.st_size != size:
            raise OSError(errno.EINVAL, f"it has {found.st_size:,} bytes and should have {size:,}", str(path))
        if found.st_size > largest:
            raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, more than the {largest:,} allowed", str(path))
        return file.read(found.st_size)


@contextmanager
def limited_memory(extra: int) -> Iterator[None]:
    """On Linux, let what a file asks for beyond `extra` bytes fail: MemoryError, or what a library makes of it.

    The limit is of the whole process, beyond the addresses that it has; other systems have none.

    Example:
        >>> with limited_memory(2**30):
        ...     half = bytes(2**29)
    """
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # another system than Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, used + extra) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def parse_json(text: bytes | str) -> Any:
    """Return what a JSON text holds; ValueError for anything else.

    Brackets nested without end, numbers that are not finite and halves of characters, which Python's own reader takes
    or stumbles over, are refused too.

    Example:
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: it is nested too deeply
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if re.search(rb"\\u[dD][89a-fA-F]", text if isinstance(text, bytes) else text.encode(errors="replace")):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it is no Unicode") from None
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds a number that is not finite, {text[:20]}")
    return number


def _umask() -> int:
    """The process's; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
