"""The keys of a configuration as options: name, help text and values follow from where each is declared."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin

from cyclopts import Group, Parameter

from rotateconv.lab.cli.shared.options import DATA, GROUPS, unwrapped, value
from rotateconv.lab.config import RunConfig
from rotateconv.lab.keys import field_of, fields_of, from_text, kinds_of
from rotateconv.lab.run_config import PANELS, Place

Given = dict[str, str | bool]
"""What a command line gives of the keys that a command takes: text by key, or whether a switch is on."""

# By another name, since types that are made while the program runs are nothing that a type checker follows.
make_typed_dict: Any = TypedDict

Command = TypeVar("Command", bound=Callable[..., None])

# What a help page lists of the keys; all are options, in docs/configuration.md.
_COMMON = (
    *("recipe", "model", "conv", "width", "data", "data_dir", "image_size", "svhn_extra", "skip_bad_images"),
    *("lr", "epochs", "batch_size", "seed", "teacher", "qat", "weight_bits", "angle_bits", "weight_levels"),
    *("profile_bits", "precision", "compile", "cuda_graph"),
)
_BOTH = {  # spellings of one key, accepted wherever one of them is
    "model": ("--model", "--models"),
    "models": ("--models", "--model"),
    "conv": ("--conv", "--convs"),
    "convs": ("--convs", "--conv"),
    "seed": ("--seed", "--seeds"),
    "seeds": ("--seeds", "--seed"),
}


def takes(
    parameter: str,
    owner: type,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    group: Group | None = None,
    help: Mapping[str, str] | None = None,
) -> Callable[[Command], Command]:
    """Let a command take the keys of a configuration as options.

    Args:
        parameter: name of the command's parameter of type `Given | None` that gets those that were given.
        owner: the configuration.
        only: its keys that become options; empty for all.
        without: keys that do not.
        names: options that are not called as their key, by key.
        group: heading on the help page, instead of that of the key.
        help: what a help page says of keys, instead of what the configuration does.
    """
    keys = [key for key in fields_of(owner) if (not only or key in only) and key not in without]
    texts = {key: _help(owner, key) for key in keys} | dict(help or {})
    options = {key: _option(owner, key, texts[key], only, names or {}, group) for key in keys}

    def declare(command: Command) -> Command:
        taken = make_typed_dict("Options", options, total=False)
        command.__annotations__[parameter] = Annotated[taken, Parameter(name="*")] | None
        return command

    return declare


def read(
    owner: type, given: Given | None, names: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of options by key, and what the user calls the keys."""
    given = given or {}
    values = {key: from_text(owner, key, text) if isinstance(text, str) else text for key, text in given.items()}
    return values, {key: _spellings(key, names or {})[0] for key in given}


def _option(
    owner: type, key: str, help: str, only: Collection[str], names: Mapping[str, str], group: Group | None
) -> Any:
    kinds = kinds_of(owner, key)
    option = Parameter(
        name=_spellings(key, names),
        help=help,
        group=group or GROUPS[_panel(owner, key)],
        metavar="PATH" if Place in get_args(field_of(owner, key).annotation) else _metavar(kinds),
        show=group is not None or key in only or key in names or key in _COMMON,
    )
    return Annotated[bool if kinds[0] is bool else str, option]


def _spellings(key: str, names: Mapping[str, str]) -> tuple[str, ...]:
    return (names[key],) if key in names else _BOTH.get(key, (f"--{key.replace('_', '-')}",))


def _help(owner: type, key: str) -> str:
    return unwrapped(field_of(owner, key).description or "")


def _panel(owner: type, key: str) -> str:
    """Return the last heading above a key."""
    keys = list(fields_of(owner))
    return [PANELS[name] for name in keys[: keys.index(key) + 1] if name in PANELS][-1]


def _metavar(kinds: tuple[Any, ...]) -> str:
    """Return what stands for a value on a help page; nothing for a switch."""
    kind = next(kind for kind in kinds if kind is not NoneType)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "A,B"
    return {int: "INTEGER", float: "NUMBER", bool: ""}.get(kind, "NAME")


DataDir = Annotated[Path | None, value("--data-dir", "DIR", _help(RunConfig, "data_dir"), DATA)]
"""The key of commands that take no other."""
