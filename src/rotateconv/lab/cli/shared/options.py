"""How an option looks on a help page, and those that several commands share, with what they do."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from cyclopts import Group, Parameter

from rotateconv.errors import ConfigError
from rotateconv.lab.run_config import PANELS
from rotateconv.lab.train.trust import allow

Command = TypeVar("Command", bound=Callable[..., None])

GROUPS = {title: Group(title, sort_key=place) for place, title in enumerate(("Study", *PANELS.values(), "Run"))}
"""Headings of options, in the order of a help page."""
RUN, STUDY, MODEL, CONVERSION, DATA = (GROUPS[title] for title in ("Run", "Study", "Model", "Conversion", "Data"))
OTHER = Group.create_default_parameters()


def switch(name: str, help: str, group: Group = OTHER) -> Parameter:
    """Return an option that is there or not, without a value."""
    return Parameter(name=name, negative=(), show_default=False, help=help, group=group)


def value(name: str | tuple[str, ...], metavar: str, help: str, group: Group = OTHER, **more: Any) -> Parameter:
    """Return an option with a value; `more` is as of cyclopts' Parameter."""
    return Parameter(name=name, metavar=metavar, help=help, group=group, **more)


def unwrapped(text: str) -> str:
    """Return a text with each paragraph on one line, for a help page that wraps it again."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def examples(*pairs: tuple[str, str]) -> str:
    """Return the end of a help text: commands that work, each with what it does."""
    return "\n\n".join(f"[dim]{what}[/dim]\n[bold]{command}[/bold]" for what, command in pairs)


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
Download = Annotated[bool, switch("--download", "Fetch missing files of the data set.", DATA)]
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
AnyModel = Annotated[
    Path,
    Parameter(help="Run folder, a file of rotateconv pack, or an .onnx file of rotateconv export.", show_default=False),
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


def opens_runs(command: Command) -> Command:
    """Give a command the option --trust, which names functions that a run folder may have imported and called."""

    @functools.wraps(command)
    def trusting(*args: Any, trust: list[str] | None = None, **values: Any) -> None:
        for factory in trust or ():
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
