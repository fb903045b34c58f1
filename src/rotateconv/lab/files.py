"""Files of the laboratory: whole or absent, and an error in one sentence where they cannot be read or written."""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from rotateconv._files import JSON_BYTES, atomic_replace, parse_json, read_regular
from rotateconv.errors import RunError

T = TypeVar("T")
Record = dict[str, Any]
"""A JSON object as it is read or written: it goes no further than the function that does."""


def write_json(path: Path, value: Record) -> None:
    """Write a JSON file whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Record:
    """Return a JSON file's object; RunError where it is missing or damaged."""
    return _parsed(path, dict, "object")


def read_json_list(path: Path) -> list[object]:
    """Return a JSON file's list; RunError where it is missing or damaged."""
    return _parsed(path, list, "list")


def _parsed(path: Path, kind: type[T], name: str) -> T:
    try:
        value = parse_json(read_regular(path, JSON_BYTES))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise RunError(f"{path} is no JSON: restore it or write it again") from None
    if not isinstance(value, kind):
        raise RunError(f"{path} must hold a JSON {name}, not {type(value).__name__}")
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in its folder, see it on the disk, then rename it."""
    with disk_errors(path.parent), atomic_replace(path) as temporary:
        temporary.write_bytes(data)


def make_folder(folder: Path) -> None:
    """Make a folder, with those that it is in, where there is none."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk can refuse into RunError's one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise RunError(
                f"a file of {folder} would be larger than this process may write: raise ulimit -f, then resume the run"
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk is full: {folder} could not be written; free some space, then resume the run"
            ) from error
        # What Linux answers in /proc, where nothing can be made.
        reason = "it takes no new files" if error.errno == errno.ENOENT and folder.is_dir() else error.strerror
        raise RunError(f"cannot write in {folder}: {reason}") from error
