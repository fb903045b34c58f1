"""The options that commands share, and the configuration that they make up together."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rotateconv.errors import ConfigError
from rotateconv.lab import naming
from rotateconv.lab.config import RunConfig, make_config, overridden
from rotateconv.lab.keys import read_toml

_DATA, _NET, _TRAINING = "Data", "Net", "Training"

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="digits, mnist, cifar10, cifar100, svhn or folder; digits, unless the recipe is for another.",
        rich_help_panel=_DATA,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Where the files are; for folder, the one that holds train/ and test/. "
        "Without it the variable ROTATECONV_DATA, or ./data.",
        rich_help_panel=_DATA,
    ),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch missing files of the data set.", rich_help_panel=_DATA)
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        help="Height and width that the images of a folder are resized and cropped to.",
        rich_help_panel=_DATA,
    ),
]
SvhnExtra = Annotated[
    bool | None,
    typer.Option(
        "--svhn-extra",
        help="Train on SVHN's 531,131 extra images too.",
        rich_help_panel=_DATA,
    ),
]
SkipBadImages = Annotated[
    bool | None,
    typer.Option(
        "--skip-bad-images",
        help="Leave out images of a folder that do not decode.",
        rich_help_panel=_DATA,
    ),
]
Width = Annotated[
    float | None,
    typer.Option("--width", metavar="FACTOR", help="Factor on the number of channels.", rich_help_panel=_NET),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="resnet-cifar, densenet-cifar, densenet-svhn, modern, quick, mnist or digits. Without it the one "
        "named like the data set, or quick.",
        rich_help_panel=_TRAINING,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file of key = value lines.", rich_help_panel=_TRAINING),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key of the configuration, such as clip_grad_norm=1; may be repeated.",
        rich_help_panel=_TRAINING,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs", help="Passes over the training images; the schedule fits itself.", rich_help_panel=_TRAINING
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images a step, over all processes together.", rich_help_panel=_TRAINING),
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", metavar="FLOAT", help="Highest learning rate.", rich_help_panel=_TRAINING)
]
Teacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="RUN", help="Run folder of a net to distil from.", rich_help_panel=_TRAINING),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAME", help="no (float32), bf16 or fp16.", rich_help_panel=_TRAINING),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile",
        help="Run the net through torch.compile.",
        rich_help_panel=_TRAINING,
    ),
]
Qat = Annotated[
    bool | None,
    typer.Option(
        "--qat",
        help="Train with rounded numbers, as they will be packed, and keep those.",
        rich_help_panel=_TRAINING,
    ),
]
WeightBits = Annotated[
    int | None,
    typer.Option("--weight-bits", help="With --qat: of a weight, 2 to 8; 4.", rich_help_panel=_TRAINING),
]
AngleBits = Annotated[
    int | None,
    typer.Option("--angle-bits", help="With --qat: of an angle, 3 to 8; 5.", rich_help_panel=_TRAINING),
]


def examples(*pairs: tuple[str, str]) -> str:
    """Return the end of a help text: commands that work, each with what it does."""
    blocks = [f"[dim]{what}[/dim]\n[bold]{command}[/bold]" for what, command in pairs]
    return "\n\n".join(blocks)


def configure(
    recipe: str | None,
    changes: Mapping[str, object],
    overrides: Sequence[str] = (),
    file_values: Mapping[str, object] | None = None,
) -> RunConfig:
    """Return the configuration that a command line describes; its names are those of nets and data there are.

    Args:
        recipe: value of --recipe; without one, that of the data set.
        changes: values of the other options, None where not given.
        overrides: values of --set.
        file_values: keys of the file.

    Raises:
        ConfigError: an unknown name or key, with the nearest ones, or a value that has no meaning.
    """
    values = dict(file_values or {})
    values.update({key: value for key, value in changes.items() if value is not None})
    named = {**values, **{key.strip(): value.strip() for key, _, value in (text.partition("=") for text in overrides)}}
    if recipe is None and "recipe" not in named:
        recipe = recipe_for(str(named.get("data", "digits")))
    return make_config(recipe, changes=values, overrides=overrides)


def changed(config: RunConfig, changes: Mapping[str, object], overrides: Sequence[str]) -> RunConfig:
    """Return a configuration with the values of options, None where not given, and of --set, the later ones last.

    Raises:
        ConfigError: an unknown key, or a value that has no meaning.
    """
    values = {key: value for key, value in changes.items() if value is not None}
    values |= overridden(overrides)
    return dataclasses.replace(config, **values)  # type: ignore[arg-type]


def fine_tuned(
    source: Path,
    factory: str | None = None,
    recipe: str | None = None,
    changes: Mapping[str, object] | None = None,
    file: Path | None = None,
) -> RunConfig:
    """Return the recipe that goes on from a trained net: a run's own, or what recipe, options and file say.

    Raises:
        ConfigError: a weights file without a function that builds its net, or the function with a run folder.
        RunError: no run folder.
    """
    from rotateconv.lab.study.convert_run import fine_tuning
    from rotateconv.lab.train.run_folder import read_config

    if factory is None:
        if source.is_file():
            raise ConfigError(f"{source} is a file of weights: say with --model which function builds its net")
        return fine_tuning(dataclasses.replace(read_config(source), **_EXACT), str(source))
    if not source.is_file():
        raise ConfigError(f"--model belongs to a file of weights, and {source} is none")
    base = configure(recipe, changes or {}, (), read_toml(file) if file is not None else None)
    return fine_tuning(dataclasses.replace(base, factory=factory, conv="conv3x3"), str(source))


_EXACT: Any = {"qat": False, "weight_bits": None, "angle_bits": None, "dense_bits": None}


def again() -> str:
    """Return the command that goes on: the same one, which must not start again from nothing."""
    return shlex.join(["rotateconv", *(word for word in sys.argv[1:] if word != "--overwrite")])


def recipe_for(data: str) -> str:
    """Return the recipe of a data set: its own where there is one, or else the short one."""
    return data if data in ("digits", "mnist") else "quick"


def check_names(config: RunConfig, *, model: str | None = None, conv: str | None = None) -> None:
    """Raise ValueError where the data set, the model or the convolution is unknown, before images are loaded.

    Args:
        config: what is checked.
        model, conv: in place of the configuration's.
    """
    from rotateconv.lab.data import DATASETS
    from rotateconv.models import CONVS, MODELS
    from rotateconv.models.lookup import find_name

    find_name("data set", DATASETS, config.data)
    find_name("model", MODELS, model or config.model)
    find_name("conv", CONVS, conv or config.conv)


def data_name(config: RunConfig) -> str:
    """Return the name of a data set, for the name of a folder."""
    return Path(config.data_dir).resolve().name if config.data == "folder" and config.data_dir else config.data


def run_name(config: RunConfig) -> str:
    """Return the name of a run's folder where the user gave none."""
    return f"{data_name(config)}-{naming.run_name(config)}"


def refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise ConfigError where an option was given that has no meaning beside others."""
    for option, value in options.items():
        if value:
            raise ConfigError(f"{option} has no meaning with {reason}: leave one of them out")
