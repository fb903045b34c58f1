"""Options made from the declared keys of a configuration, and those that several commands share."""

import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, cast, get_args, get_origin

from cyclopts import Group, Parameter

from rotateconv.errors import ConfigError, RunInterrupted
from rotateconv.lab.config import RunConfig
from rotateconv.lab.keys import field_of, fields_of, from_text, kinds_of
from rotateconv.lab.run_config import PANELS, Place

Given = dict[str, str | bool]
"""What a command line gives of the keys that a command takes: text by key, or whether a switch is on."""

# By another name, since types that are made while the program runs are nothing that a type checker follows.
make_typed_dict: Any = TypedDict

Command = TypeVar("Command", bound=Callable[..., None])

_GROUPS = {title: Group(title, sort_key=place) for place, title in enumerate(("Study", *PANELS.values(), "Run"))}
RUN, STUDY, MODEL, CONVERSION = (_GROUPS[title] for title in ("Run", "Study", "Model", "Conversion"))
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


def switch(name: str, help: str, group: Group | None = None) -> Parameter:
    """Return an option that is there or not, without a value."""
    option = Parameter(name=name, negative=(), show_default=False, help=help)
    return option if group is None else Parameter.combine(option, Parameter(group=group))


def value(name: str | tuple[str, ...], metavar: str, help: str, group: Group | None = None, **more: Any) -> Parameter:
    """Return an option with a value; `more` is as of cyclopts' Parameter."""
    option = Parameter(name=name, metavar=metavar, help=help, **more)
    return option if group is None else Parameter.combine(option, Parameter(group=group))


def unwrapped(text: str) -> str:
    """Return a text with each paragraph on one line, for a help page that wraps it again."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _help(owner: type, key: str) -> str:
    return unwrapped(field_of(owner, key).description or "")


Set = Annotated[
    list[str] | None,
    value(
        "--set",
        "KEY=VALUE",
        "Set a key of the configuration, such as clip_grad_norm=1 (the same as --clip-grad-norm 1); may be "
        "repeated. docs/configuration.md lists the keys.",
        RUN,
    ),
]
ConfigFile = Annotated[Path | None, value("--config", "FILE", "TOML file of key = value lines.", RUN)]
Download = Annotated[bool, switch("--download", "Fetch missing files of the data set.", _GROUPS["Data"])]
Overwrite = Annotated[bool, switch("--overwrite", "Start again in a folder that holds a run.", RUN)]
Trust = Annotated[
    list[str] | None,
    value(
        "--trust",
        "PACKAGE.MODULE:FUNCTION",
        "A function of yours that builds a run's model: what a folder or a file names is not imported otherwise. "
        "Remembered for the current folder; may be repeated.",
        RUN,
    ),
]
TrainedSource = Annotated[
    Path, Parameter(help="Run folder of a trained model, or with --model its weights.", show_default=False)
]
WeightsBuiltBy = Annotated[
    str | None,
    value(
        ("--model", "--models"),
        "PACKAGE.MODULE:FUNCTION",
        "What builds the model of a weights file (safetensors, or a state dict of torch.save).",
        MODEL,
    ),
]
BuiltBy = Annotated[
    str | None,
    value(
        ("--model", "--models"),
        "PACKAGE.MODULE:FUNCTION",
        "What builds the model of a packed file, where it is one of your own.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    value("--device", "NAME", "cpu, cuda, cuda:1 (the second GPU) or mps; without it a GPU where there is one.", RUN),
]
LogWith = Annotated[
    str | None,
    value(
        "--log-with",
        "A,B",
        "Hand every epoch's numbers to tensorboard (RUN/tensorboard), wandb, mlflow or trackio as well.",
        RUN,
    ),
]
DataDir = Annotated[
    Path | None,
    value("--data-dir", "DIR", unwrapped(field_of(RunConfig, "data_dir").description or ""), _GROUPS["Data"]),
]


def takes(
    parameter: str,
    owner: type,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    group: Group | None = None,
) -> Callable[[Command], Command]:
    """Let a command take the keys of a configuration as options.

    Args:
        parameter: name of the command's parameter of type `Given | None` that gets those that were given.
        owner: the configuration.
        only: its keys that become options; empty for all.
        without: keys that do not.
        names: options that are not called as their key, by key.
        group: heading on the help page, instead of that of the key.
    """
    keys = [key for key in fields_of(owner) if (not only or key in only) and key not in without]
    options = {key: _option(owner, key, only, names or {}, group) for key in keys}

    def declare(command: Command) -> Command:
        taken = make_typed_dict("Options", options, total=False)
        command.__annotations__[parameter] = Annotated[taken, Parameter(name="*")] | None
        return command

    return declare


def _option(owner: type, key: str, only: Collection[str], names: Mapping[str, str], group: Group | None) -> Any:
    kinds = kinds_of(owner, key)
    option = Parameter(
        name=_spellings(key, names),
        help=_help(owner, key),
        group=group or _GROUPS[_panel(owner, key)],
        metavar="PATH" if Place in get_args(field_of(owner, key).annotation) else _metavar(kinds),
        show=group is not None or key in only or key in names or key in _COMMON,
    )
    return Annotated[bool if kinds[0] is bool else str, option]


def _spellings(key: str, names: Mapping[str, str]) -> tuple[str, ...]:
    own = f"--{key.replace('_', '-')}"
    return (names[key],) if key in names else _BOTH.get(key, (own,))


def _panel(owner: type, key: str) -> str:
    title = "Run"
    for name in fields_of(owner):
        title = PANELS.get(name, title)
        if name == key:
            break
    return title


def _metavar(kinds: tuple[Any, ...]) -> str:
    """Return what stands for a value on a help page; nothing for a switch."""
    kind = next(kind for kind in kinds if kind is not NoneType)
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "A,B"
    return {int: "INTEGER", float: "NUMBER", bool: ""}.get(kind, "NAME")


def read(
    owner: type, given: Given | None, names: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of options by key, and what the user calls the keys."""
    given = given or {}
    values = {key: from_text(owner, key, text) if isinstance(text, str) else text for key, text in given.items()}
    return values, {key: _spellings(key, names or {})[0] for key in given}


def examples(*pairs: tuple[str, str]) -> str:
    """Return the end of a help text: commands that work, each with what it does."""
    return "\n\n".join(f"[dim]{what}[/dim]\n[bold]{command}[/bold]" for what, command in pairs)


def opens_runs(command: Command) -> Command:
    """Give a command the option --trust, which names functions that a run folder may have imported and called."""

    @functools.wraps(command)
    def trusting(*args: Any, trust: list[str] | None = None, **values: Any) -> None:
        if trust:
            from rotateconv.lab.train.trust import allow

            for factory in trust:
                if ":" not in factory:
                    raise ConfigError(f"--trust must be package.module:function, not {factory!r}")
                allow(factory)
        command(*args, **values)

    signature = inspect.signature(command)
    option = inspect.Parameter("trust", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Trust)
    trusting.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    trusting.__annotations__ = {**command.__annotations__, "trust": Trust}
    return cast(Command, trusting)


def use_device(name: str | None) -> None:
    """Let this process, and those that it starts, compute on a device; ConfigError where there is none of the name."""
    if name is not None:
        from rotateconv.lab.train.device import choose_device

        choose_device(name)


def trackers(text: str | None) -> tuple[str, ...]:
    """Return the trackers of --log-with; ConfigError where one is unknown or not installed."""
    if text is None:
        return ()
    from rotateconv.lab.train.trackers import check_trackers

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    check_trackers(names)
    return names


@contextmanager
def going_on(kept: Callable[[], str] = lambda: "go on from the last checkpoints") -> Iterator[None]:
    """Let an interruption name the command that goes on: the same one, which must not start again from nothing."""
    again = shlex.join(["rotateconv", *(word for word in sys.argv[1:] if word != "--overwrite")])
    try:
        yield
    except RunInterrupted as error:
        raise RunInterrupted(f"{str(error).partition(': go on with ')[0]}: go on with {again}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped at once: {kept()} with {again}") from None


def without_torchrun(command: str, *, jobs: bool = True) -> None:
    """Raise ConfigError where torchrun started several processes of a command that is for one, or starts its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        how = "starts its own processes" if jobs else "runs in one process"
        raise ConfigError(f"{command} {how}: run it without torchrun{' and choose --jobs' if jobs else ''}")


def refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise ConfigError where an option was given that has no meaning beside others."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise ConfigError(f"{option} has no meaning with {reason}: leave one of them out")
