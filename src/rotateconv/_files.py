"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rotateconv.errors import InputError

TEMPORARY = ".tmp"
"""Among the suffixes of a file that is not whole yet; a process that is killed leaves it behind."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; what the body writes there gets the name `path` at the end.

    If the body raises, the temporary file is removed and a file that was at `path` stays as it was.

    Args:
        path: The file to write, exactly; its folder exists.

    Raises:
        ValueError: If the disk takes nothing there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "model.bin") as temporary:
        ...         _ = temporary.write_bytes(b"all of it")
        ...     os.listdir(folder)
        ['model.bin']
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; give the name of a file")
    try:
        with atomic_replace(target) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error


@contextmanager
def atomic_replace(target: Path) -> Iterator[Path]:
    """The same as `atomic_write`, for a caller with sentences of its own: an OSError stays what it is."""
    # The ending stays last, because some writers look at it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{TEMPORARY}{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
