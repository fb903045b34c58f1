"""Arguments that the models share, checked in one place so that every model answers in the same words."""

import math
from collections.abc import Mapping
from typing import TypeVar

from rotateconv.errors import InputError, nearest

Value = TypeVar("Value")


def find_name(kind: str, entries: Mapping[str, Value], name: str) -> Value:
    """Look `name` up; if it is not there, say which names come nearest.

    Returns:
        The entry.

    Raises:
        ValueError: If entries has no such name.

    Example:
        >>> find_name("conv", {"rotate2": 2, "rotate4": 4}, "rotate4")
        4
    """
    if isinstance(name, str) and name in entries:
        return entries[name]
    raise InputError(f"unknown {kind} {name!r}: {nearest(str(name), entries)}")


def scaled(count: int, width: float, what: str) -> int:
    """round(count · width), at least 1.

    Returns:
        The scaled count.

    Raises:
        ValueError: If width is not a positive finite number, or leaves nothing.

    Example:
        >>> scaled(16, 0.5, "channels")
        8
    """
    if not (math.isfinite(width) and width > 0):
        raise InputError(f"width must be a positive finite number, got {width}")
    result = round(count * width)
    if result < 1:
        raise InputError(f"width {width} leaves no {what}: choose at least {1 / count:.4g}")
    return result
