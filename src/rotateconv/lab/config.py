"""Presets of the run configuration, overrides by key, and the configuration as JSON."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rotateconv._files import parse_json
from rotateconv.errors import ConfigError, nearest
from rotateconv.lab.keys import KeyValueError, field_of, from_text, read_toml
from rotateconv.lab.run_config import QAT_KEYS
from rotateconv.lab.run_config import RunConfig as RunConfig

# He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2015), section 4.2: SGD momentum 0.9,
# weight decay 1e-4, batch 128, learning rate 0.1 divided by 10 at 32k and 48k of 64k steps, "determined on a
# 45k/5k train/val split": 352 steps an epoch, so 182 epochs.
_RESNET_CIFAR = RunConfig(
    recipe="resnet-cifar", data="cifar10", augment="paper", epochs=182, batch_size=128, schedule="steps"
)
# Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks" (2017), section 4.2:
# Nesterov momentum 0.9 without dampening, weight decay 1e-4, batch 64, 300 epochs, 0.1 divided by 10 at 50 %
# and 75 %; on SVHN 40 epochs, no augmentation, and (as on every set without augmentation) dropout 0.2.
_DENSENET_CIFAR = dataclasses.replace(
    _RESNET_CIFAR, recipe="densenet-cifar", model="densenet40", nesterov=True, epochs=300, batch_size=64
)
_DENSENET_SVHN = dataclasses.replace(
    _DENSENET_CIFAR, recipe="densenet-svhn", data="svhn", augment="none", epochs=40, dropout=0.2
)
# Ours after Smith and Topin, "Super-Convergence" (2017): one rise and one fall of the learning rate, for runs
# of a few epochs on a CPU; augmentation of Jordan, "94% on CIFAR-10 in 3.29 Seconds" (2024), section 3.
# Channels-last takes a fifth off a float32 step of ResNet-20 there; bf16 gains nothing without AMX.
_QUICK = RunConfig(
    recipe="quick",
    augment="fast",
    nesterov=True,
    lr=0.2,
    weight_decay=5e-4,
    epochs=6,
    schedule="one-cycle",
    warmup=0.3,
    channels_last=True,
)

PRESETS: dict[str, RunConfig] = {
    "resnet-cifar": _RESNET_CIFAR,
    "densenet-cifar": _DENSENET_CIFAR,
    "densenet-svhn": _DENSENET_SVHN,
    # Ours: "quick" with shifted crops and longer, to settle.
    "mnist": dataclasses.replace(_QUICK, recipe="mnist", data="mnist", augment="paper", epochs=10),
    # Zagoruyko and Komodakis, "Wide Residual Networks" (2016), section 3: Nesterov, weight decay 5e-4, batch
    # 128, 200 epochs; Loshchilov and Hutter, "SGDR" (2016), section 3: the cosine in place of the drops.
    "modern": dataclasses.replace(
        _RESNET_CIFAR, recipe="modern", nesterov=True, weight_decay=5e-4, epochs=200, schedule="cosine"
    ),
    "quick": _QUICK,
    # Ours: 1,797 images of 8 x 8, so small batches and no padding of 4.
    "digits": dataclasses.replace(_QUICK, recipe="digits", data="digits", augment="none", epochs=20, batch_size=64),
}


def make_config(
    recipe: str | None = None,
    *,
    file: Path | None = None,
    foreign: Collection[str] = (),
    changes: Mapping[str, object] | None = None,
    overrides: Iterable[str] = (),
    called: Mapping[str, str] | None = None,
) -> RunConfig:
    """Return a preset with changes, the later over the earlier: recipe < file < changes < overrides.

    Args:
        recipe: key of `PRESETS`; None takes what is set as `recipe`, or the one for the data set.
        file: TOML file of flat `key = value` lines.
        foreign: keys that it may hold besides.
        changes: values by key, as a program has them.
        overrides: strings "key=value", as a command line has them; "none" empties an optional value.
        called: what the user calls the keys of `changes`, for the sentence about a mistake; else the key.

    Raises:
        ConfigError: unknown recipe or key (with the nearest names), another type, an unreadable file.

    Example:
        >>> make_config("quick", changes={"lr": 0.3}, overrides=["milestones=0.5,0.8"]).milestones
        (0.5, 0.8)
    """
    values = _from_file(file, foreign) if file is not None else {}
    later = {**(changes or {}), **overridden(overrides)}
    called = {**{key: f"{file}: {key}" for key in values if key not in later}, **(called or {})}
    values |= later
    named = str(recipe or values.get("recipe", recipe_for(str(values.get("data", "digits")))))
    if named not in PRESETS:
        raise ConfigError(f"unknown recipe {named!r}: {nearest(named, PRESETS)}")
    return changed(PRESETS[named], {**values, "recipe": named}, called)


def changed(config: RunConfig, values: Mapping[str, object], called: Mapping[str, str] | None = None) -> RunConfig:
    """Return a configuration with other values by key; ConfigError where one has no meaning.

    The error says what the user calls the key, where that is known.
    """
    try:
        return dataclasses.replace(config, **values)  # type: ignore[arg-type]
    except KeyValueError as mistake:
        raise mistake.of((called or {}).get(mistake.key, mistake.key)) from None


def overridden(overrides: Iterable[str]) -> dict[str, object]:
    """Return strings "key=value" as values by key; ConfigError for an unknown key or another string.

    Example:
        >>> overridden(["epochs=6", "ema_decay=none"])
        {'epochs': 6, 'ema_decay': None}
    """
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set must be KEY=VALUE, such as lr=0.1, not {text!r}")
        values[key.strip()] = from_text(RunConfig, key.strip(), value.strip())
    return values


def recipe_for(data: str) -> str:
    """Return the recipe of a data set: its own where there is one, or else the short one."""
    return data if data in ("digits", "mnist") else "quick"


def _from_file(file: Path, foreign: Collection[str]) -> dict[str, Any]:
    values = {key: value for key, value in read_toml(file).items() if key not in foreign}
    for key in values:
        try:
            field_of(RunConfig, key)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
    return values


def to_json(config: RunConfig) -> str:
    """Return the configuration as JSON; `from_json` gives an equal one back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def to_toml(config: RunConfig) -> str:
    """Return a configuration as the lines of a file for `make_config`: what its preset says otherwise, or nothing.

    Example:
        >>> print(to_toml(make_config("digits", changes={"lr": 0.3, "milestones": (0.5, 0.8)})), end="")
        recipe = "digits"
        lr = 0.3
        milestones = [0.5, 0.8]
    """
    found = differences(PRESETS[config.recipe], config)
    values = {"recipe": config.recipe, **{key: value for key, (_, value) in found.items() if value is not None}}
    # What JSON writes of texts, numbers, truths and lists of them is TOML too.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


RENAMED = {
    "lines": "convert_taps",
    "line_path": "convert_path",
    "line_groups": "convert_angle_groups",
    "only": "convert_only",
}
"""Keys by the names that version 0.1.0 wrote into config.json."""


def from_json(text: str) -> RunConfig:
    """Return the configuration that `to_json` wrote, also that of an older version; ConfigError for anything else."""
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"the configuration is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"expected a JSON object with the configuration's keys, not {type(values).__name__}")
    return RunConfig(**_current_keys(values))


def _current_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys and values of a configuration, as any version wrote them, by today's names.

    Example:
        >>> _current_keys({"lines": "free", "qat": False, "weight_bits": 4})
        {'convert_taps': 'free', 'qat': False}
    """
    # Version 0.1.0 wrote the bits of every run, also of one that did not train for them.
    unused = () if values.get("qat") else QAT_KEYS
    older = {"qat_scales": "searched"} if values.get("qat") else {}
    return older | {RENAMED.get(key, key): value for key, value in values.items() if key not in unused}


def differences(expected: RunConfig, found: RunConfig) -> dict[str, tuple[object, object]]:
    """Return {key: (expected, found)} for the keys that differ."""
    keys = (field.name for field in dataclasses.fields(RunConfig))
    pairs = {key: (getattr(expected, key), getattr(found, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


# They say where the data lie, how often to save and how to launch, not what is computed: a run may go on with others.
_FREE_KEYS = ("data_dir", "checkpoint_seconds", "checkpoint_steps", "cuda_graph")


def changed_keys(before: RunConfig, now: RunConfig) -> str:
    """Return which keys of a run that goes on are others than before, as a part of a sentence; empty for none."""
    changed = {key: pair for key, pair in differences(before, now).items() if key not in _FREE_KEYS}
    return ", ".join(f"{key} {old!r}, not {new!r}" for key, (old, new) in changed.items())
