"""Which functions may be imported and called to build a model: those that the user has named, never those of a file.

A run folder of a user's own model says which function builds it. Whoever opens a folder from somebody else must not run
that function, so what the user named once, on the command line or in Python, is kept in a record in the user's own
configuration folder, together with the working folder that it was found from.
"""

import contextlib
import json
import os
from pathlib import Path

from rotateconv._files import JSON_BYTES, atomic_replace, parse_json, read_regular
from rotateconv.errors import RunError

_allowed: set[tuple[str, str]] = set()  # by this process, where no record can be kept


def allow(factory: str) -> None:
    """Note that the user named the function "package.module:function" in the current folder."""
    pair = factory, str(Path.cwd())
    if is_allowed(factory):
        return
    _allowed.add(pair)
    record = _record()
    if record is None:
        return
    with contextlib.suppress(OSError):  # a disk that takes nothing: it holds for this process
        record.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(record) as temporary:
            temporary.write_text(json.dumps(sorted({*_recorded(), pair}), indent=2) + "\n", encoding="utf-8")


def is_allowed(factory: str) -> bool:
    """Whether the user named the function before, in the current folder."""
    pair = factory, str(Path.cwd())
    return pair in _allowed or pair in _recorded()


def check(factory: str, where: Path) -> None:
    """Raise RunError unless the user has named a function that a file names."""
    if not is_allowed(factory):
        raise RunError(
            f"{where} wants to import and call {factory!r}, which runs that code: if it is yours, say so with "
            f"--trust {factory} or rotateconv.lab.trust({factory!r})"
        )


def _record() -> Path | None:
    """The file of what the user named; None for a user without a home folder."""
    try:
        folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    except RuntimeError:
        return None
    return Path(folder, "rotateconv", "trusted.json")


def _recorded() -> set[tuple[str, str]]:
    record = _record()
    try:
        pairs = parse_json(read_regular(record, JSON_BYTES)) if record is not None else []
        return {(factory, folder) for factory, folder in pairs if isinstance(factory, str) and isinstance(folder, str)}
    except (OSError, ValueError, TypeError):
        return set()
