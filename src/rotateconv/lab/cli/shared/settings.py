"""The configuration that a command line describes."""

import dataclasses
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from rotateconv.errors import ConfigError, InputError, RunError
from rotateconv.lab.cli.shared.errors import refuse
from rotateconv.lab.cli.shared.unread import refuse_unread
from rotateconv.lab.config import RunConfig, changed, make_config, overridden
from rotateconv.lab.run_config import QAT_KEYS
from rotateconv.lab.train.trust import check

_EXACT: Any = {"qat": False, **dict.fromkeys(QAT_KEYS)}


def fine_tuned(
    source: Path,
    factory: str | None = None,
    file: Path | None = None,
    values: Mapping[str, Any] | None = None,
    called: Mapping[str, str] | None = None,
    *,
    tries_lines: bool = False,
) -> RunConfig:
    """Return the recipe that goes on from a trained model: a run's own, or what file and options say.

    With `tries_lines` its dense layers are tried as RotateConv layers too, and keys of these have a meaning.

    Raises:
        ConfigError: a weights file without the function, `factory`, that builds its model; or the function, a recipe or
            a data set with a run folder; or a key that has no meaning beside the others.
        RunError: no run folder.
    """
    values, called = values or {}, called or {}
    config = _going_on(source, factory, file, values, called)
    lines = tries_lines and (config.convert_taps, config.conv) == (None, "conv3x3")
    refuse_unread(values, called, [config, *([dataclasses.replace(config, convert_taps="profile")] * lines)])
    return config


def _going_on(
    source: Path, factory: str | None, file: Path | None, values: Mapping[str, Any], called: Mapping[str, str]
) -> RunConfig:
    from rotateconv.lab.study.convert import fine_tuning
    from rotateconv.lab.train.run_folder import read_config

    if factory is None:
        if source.is_file():
            raise ConfigError(f"{source} is a file of weights: say with --model which function builds its model")
        given = {called.get(key, key): True for key in ("recipe", "data") if key in values}
        refuse({**given, "--config": file}, "a run folder, which has its own")
        base = fine_tuning(changed(read_config(source), _EXACT), str(source))
        return changed(base, values, called)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "is not there"
        raise ConfigError(f"--model belongs to a file of weights, and {source} {what}")
    # The data set decides the recipe; what else was said goes over what fine-tuning makes of it.
    named = {key: value for key, value in values.items() if key in ("recipe", "data")}
    base = changed(make_config(file=file, changes=named), {"factory": factory, "conv": "conv3x3"})
    rest = {key: value for key, value in values.items() if key not in named}
    return changed(fine_tuning(base, str(source), foreign=True), rest, called)


def described(
    file: Path | None,
    values: Mapping[str, Any],
    called: Mapping[str, str],
    overrides: Collection[str] | None,
    *,
    foreign: Collection[str] = (),
    models: Collection[str] = (),
    convs: Collection[str] = (),
) -> RunConfig:
    """Return the configuration of a file and a command line, and refuse what the file, not the user, asks for.

    `models` and `convs` are trained in place of the configuration's.

    Raises:
        RunError: the file names a function that builds the model, and the user never did.
        ConfigError: as of `make_config`; or a width or growth in the file with which the model has more numbers than
            any of ours; or the user gave a key that has no meaning beside the others.
    """
    config = make_config(file=file, foreign=foreign, changes=values, overrides=overrides or (), called=called)
    given = {**values, **overridden(overrides or ())}
    if file is not None:
        _check_file(config, file, given, models)
    pairs = product(models or [config.model], convs or [config.conv])
    refuse_unread(given, called, [dataclasses.replace(config, model=model, conv=conv) for model, conv in pairs])
    return config


def _check_file(config: RunConfig, file: Path, named: Collection[str], models: Collection[str]) -> None:
    if config.factory is not None:
        if "factory" not in named:
            check(config.factory, file)
        return
    sizes = {"width": config.width, "growth": config.growth}
    if all(key in named for key, value in sizes.items() if value not in (1.0, None)):
        return
    from rotateconv.models.described import MAX_PARAMETERS, check_size, outline_model

    for model in models or [config.model]:
        try:
            outline = outline_model(
                {"name": model, "conv": config.conv, "width": config.width, "growth": config.growth}
            )
            check_size(outline, MAX_PARAMETERS, "give --width and --growth yourself")
        except InputError as error:
            raise ConfigError(f"{file}: {error}") from None


def check_names(data: str, model: str | None = None, conv: str | None = None) -> None:
    """Raise InputError where a data set, model or convolution is unknown, before images are loaded."""
    from rotateconv.lab.data import DATASETS
    from rotateconv.models import CONVS, MODELS
    from rotateconv.models.lookup import find_name

    for kind, names, name in (("data set", DATASETS, data), ("model", MODELS, model), ("conv", CONVS, conv)):
        if name is not None:
            find_name(kind, names, name)


def check_there(source: Path, kinds: str) -> None:
    """Raise RunError where there is neither a folder nor a file."""
    if not source.exists():
        raise RunError(f"{source} is not there: name the folder of a run{kinds}")
