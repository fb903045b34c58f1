"""Values from text, JSON and TOML in the types of a dataclass's fields."""

import difflib
import tomllib
import types
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rotateconv.errors import ConfigError


def coerce(owner: type, key: str, value: object) -> object:
    """Return `value` as the field `key` of the dataclass `owner` holds it: 1 as 1.0, a list as a tuple.

    Raises:
        ConfigError: unknown key, another type, or none of the choices of a Literal.
    """
    for kind in _kinds(owner, key):
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif get_origin(kind) is tuple:
            if isinstance(value, list | tuple) and all(type(item) in (int, float) for item in value):
                return tuple(float(item) for item in value)
        elif kind is type(value):
            return value
        elif kind is float and type(value) is int:
            return float(value)
        elif kind is str and isinstance(value, Path):
            return str(value)
    raise ConfigError(f"{key} must be {_describe(owner, key)}, not {value!r}")


def parse(owner: type, key: str, text: str) -> object:
    """Return a command line's text as the value of the field: "none", "true", "3", "0.5,0.75", a word.

    Raises:
        ConfigError: unknown key, or text that is no value of the field.
    """
    kinds = _kinds(owner, key)
    candidates: list[object] = [text]
    if text.lower() in ("true", "false"):
        candidates = [text.lower() == "true"]
    elif text.lower() == "none":
        candidates = [None, text]  # None is an optional field's, the word a choice of some fields
    elif any(kind in (int, float) or get_origin(kind) is tuple for kind in kinds):
        candidates = _numbers(text, as_tuple=any(get_origin(kind) is tuple for kind in kinds))
    for candidate in candidates:
        try:
            return coerce(owner, key, candidate)
        except ConfigError:
            continue
    raise ConfigError(f"{key} must be {_describe(owner, key)}, not {text!r}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the end of an error's sentence: ": did you mean a or b?", or all names where none is near."""
    near = difflib.get_close_matches(name, list(names), n=3)
    return ": did you mean " + " or ".join(near) + "?" if near else "; known are " + ", ".join(names)


def read_toml(file: Path) -> dict[str, Any]:
    """Return the keys of a TOML file; ConfigError where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {file} is no TOML: {error}") from None


@cache
def _hints(owner: type) -> dict[str, Any]:
    return get_type_hints(owner)


def _kinds(owner: type, key: str) -> tuple[Any, ...]:
    if key not in _hints(owner):
        raise ConfigError(f"unknown key {key!r}{nearest(key, _hints(owner))}")
    hint = _hints(owner)[key]
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _numbers(text: str, *, as_tuple: bool) -> list[object]:
    for kind in (int, float):
        try:
            return [tuple(float(item) for item in text.split(","))] if as_tuple else [kind(text)]
        except ValueError:
            continue
    return []


def _describe(owner: type, key: str) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "none",
    }
    return " or ".join(
        "one of " + ", ".join(get_args(kind))
        if get_origin(kind) is Literal
        else words.get(kind, "numbers with commas between")
        for kind in _kinds(owner, key)
    )
