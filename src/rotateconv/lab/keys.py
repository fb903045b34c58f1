"""The keys of a configuration: each is declared once, and its range in words, values from text and mistakes follow."""

import functools
import math
import tomllib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rotateconv._files import JSON_BYTES, read_regular
from rotateconv.errors import ConfigError, nearest


class KeyValueError(ConfigError):
    """A value that a key cannot have; `key` says which, for those who know what the user calls it."""

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(f"{key} {sentence}")
        self.key, self.sentence = key, sentence

    def of(self, called: str) -> ConfigError:
        """Return the same mistake by the name that the user gave the key."""
        return ConfigError(f"{called} {self.sentence}")


def fields_of(owner: type) -> dict[str, FieldInfo]:
    """Return how the keys of a configuration are declared, by name and in order."""
    fields: dict[str, FieldInfo] = owner.__pydantic_fields__  # type: ignore[attr-defined]
    return fields


def field_of(owner: type, name: str) -> FieldInfo:
    """Return how a key is declared; ConfigError, with the nearest names, where there is no such key."""
    if name not in fields_of(owner):
        raise _unknown(owner, name)
    return fields_of(owner)[name]


def _unknown(owner: type, name: str) -> ConfigError:
    return ConfigError(f"unknown key {name!r}: {nearest(name, fields_of(owner), 'docs/configuration.md lists all')}")


def kinds_of(owner: type, name: str) -> tuple[Any, ...]:
    """Return the types that a key's value may have: (int, NoneType) of an optional whole number."""
    kind = field_of(owner, name).annotation
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return tuple(get_args(member)[0] if get_origin(member) is Annotated else member for member in members)


def expected(owner: type, name: str) -> str:
    """Return the type and the range of a key in words.

    Example:
        >>> from rotateconv.lab.config import RunConfig
        >>> expected(RunConfig, "lr"), expected(RunConfig, "growth")
        ('a number above 0', 'a whole number of at least 1, or none')
    """
    kinds = kinds_of(owner, name)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    choices = [
        "one of " + ", ".join(get_args(kind))
        if get_origin(kind) is Literal
        else words.get(kind) or ("names" if str in get_args(kind) else "numbers") + " with commas between"
        for kind in kinds
        if kind is not types.NoneType
    ]
    bounds = {type(data): data for data in field_of(owner, name).metadata}
    return " or ".join(choices) + _range(bounds) + (", or none" if types.NoneType in kinds else "")


def _range(bounds: dict[type, Any]) -> str:
    low = bounds[Gt].gt if Gt in bounds else bounds[Ge].ge if Ge in bounds else None
    high = bounds[Lt].lt if Lt in bounds else bounds[Le].le if Le in bounds else None
    if low is None or high is None:
        return "" if low is None else f" above {low}" if Gt in bounds else f" of at least {low}"
    if Gt in bounds and Lt in bounds:
        return f" between {low} and {high}"
    end = f"{high:,}" if isinstance(high, int) and high >= 10_000 else high
    return f" from {low} to {'below ' if Lt in bounds else ''}{end}"


def from_text(owner: type, name: str, text: str) -> object:
    """Return what a command line's text stands for in a key's type: "none", "true", "3", "0.5,0.75", a word.

    Text that stands for no such value comes back as it is: the configuration refuses it.

    Raises:
        ConfigError: no such key.

    Example:
        >>> from rotateconv.lab.config import RunConfig
        >>> from_text(RunConfig, "milestones", "0.5,0.75"), from_text(RunConfig, "growth", "none")
        ((0.5, 0.75), None)
    """
    kinds = kinds_of(owner, name)
    if types.NoneType in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if get_origin(kind) is tuple:
            items = [item.strip() for item in text.split(",") if item.strip()]
            numbers = [_number(item) for item in items]
            return tuple(items) if str in get_args(kind) else text if str in map(type, numbers) else tuple(numbers)
        if kind in (int, float):
            return _number(text)
    return text


def _number(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


Config = TypeVar("Config", bound=type)


def one_sentence(owner: Config) -> Config:
    """Let a pydantic dataclass refuse values by a ConfigError of one sentence: expected and found, by key."""
    check = owner.__init__  # type: ignore[misc]

    @functools.wraps(check)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise _explained(owner, error) from None

    owner.__init__ = init  # type: ignore[misc]
    return owner


def _explained(owner: type, error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # a combination, refused in __post_init__
        found = first.get("ctx", {}).get("error", first["msg"])
        return found if isinstance(found, KeyValueError) else ConfigError(str(found))
    name = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        return _unknown(owner, name)
    value = first["input"]
    shown = f"{value:g}" if isinstance(value, float) and not math.isfinite(value) else repr(value)
    return KeyValueError(name, f"must be {expected(owner, name)}, not {shown}")


def read_toml(file: Path) -> dict[str, Any]:
    """Return the keys of a TOML file; ConfigError where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(read_regular(file, JSON_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"the configuration file {file} is nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {file} is no TOML: {error}") from None
