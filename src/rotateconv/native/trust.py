"""Code is loaded only from where nobody but the user, and root, can have put it."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from rotateconv.native.build import BuildError


def private_folder() -> Path:
    """The folder of the user's compiled libraries, $XDG_CACHE_HOME/rotateconv or ~/.cache/rotateconv; made if need be.

    Raises:
        BuildError: If others can write to it or replace it, or the system knows no owners.
        OSError: If it cannot be made.
    """
    if not hasattr(os, "getuid"):
        raise BuildError("the kernel is compiled at its first use only where files have owners")
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise BuildError(f"no folder for the compiled kernel: {error}") from error
    folder = base / "rotateconv"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(folder, stat.S_ISDIR)
    for parent in folder.resolve().parents:
        state = parent.stat()
        # In a folder with the sticky bit, such as /tmp, others cannot replace what is not theirs.
        replaceable = state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX
        if state.st_uid not in (0, os.getuid()) or replaceable:
            raise BuildError(f"others can write to {parent}, which holds the folder of the compiled kernel")
    return folder


def check_file(file: Path) -> None:
    """Raise BuildError unless this is a regular file of the user's that no one else can write to."""
    _check(file, stat.S_ISREG)


def _check(path: Path, is_kind: Callable[[int], bool]) -> None:
    state = path.lstat()
    if not is_kind(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise BuildError(f"{path} is not the user's own, or others can write to it: remove it")
