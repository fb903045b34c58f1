"""Frozen dataclasses from JSON and back: the one place where a key or a type that is not as expected is refused."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rotateconv.errors import RunError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T", bound="Plain")


class Plain:
    """Base of a frozen dataclass of numbers, text, tuples, dicts and other such classes, which JSON can hold.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point(Plain):
        ...     x: float
        ...     name: str | None = None
        >>> to_json(Point(1.5)), from_json(Point, {"x": 1}, "points.json")
        ({'x': 1.5}, Point(x=1.0, name=None))
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


def from_json(kind: type[T], value: object, where: str | Path) -> T:
    """Return the value of a class that JSON's dicts and lists describe.

    Args:
        kind: A dataclass derived from `Plain`.
        value: As `json.loads` returns it; fields with a default may be missing.
        where: The value comes from, for the error.

    Raises:
        RunError: A key is missing or unknown, or its value has another type.

    Example:
        >>> from rotateconv.lab.study.angles import Movement
        >>> from_json(Movement, {"mean": "far", "max": 2}, "a.json")
        Traceback (most recent call last):
        rotateconv.errors.RunError: a.json: mean must be a valid number, found 'far': restore the file or write it again
    """
    from pydantic import ValidationError

    try:
        # JSON's strictness takes a list for a tuple and 1 for 1.0, and neither "1" nor true for 1.
        found: T = _adapter(kind).validate_json(json.dumps(value), strict=True)  # type: ignore[arg-type]
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"])) or "the file"
    match first["type"]:
        case "missing":
            wrong = f"expected the key {key}, found none"
        case "unexpected_keyword_argument" | "extra_forbidden":
            wrong = f"the key {key} is unknown, expected {', '.join(f.name for f in dataclasses.fields(kind))}"  # type: ignore[arg-type]
        case _:
            wrong = f"{key} must be {first['msg'].removeprefix('Input should be ')}, found {_short(first['input'])}"
    raise RunError(f"{where}: {wrong}: restore the file or write it again")


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."


def to_json(value: Plain) -> dict[str, Any]:
    """Return a value as `json.dumps` takes it; fields that hold their default are left out."""
    return {
        field.name: _jsonable(getattr(value, field.name))
        for field in dataclasses.fields(value)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING or getattr(value, field.name) != field.default
    }


def _jsonable(value: object) -> object:
    if isinstance(value, Plain):
        return to_json(value)
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    return {key: _jsonable(item) for key, item in value.items()} if isinstance(value, dict) else value


@cache
def _adapter(kind: type[Plain]) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
