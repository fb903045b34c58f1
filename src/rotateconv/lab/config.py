"""The configuration of a training run: one flat frozen dataclass, presets, overrides by key."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rotateconv.errors import ConfigError
from rotateconv.lab.parsing import coerce, nearest, parse, read_toml

__all__ = ["PRESETS", "ConfigError", "RunConfig", "differences", "from_json", "make_config", "net_name", "to_json"]


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run; the run folder keeps it as `config.json`.

    Args:
        recipe: name of the preset that this configuration started from.
        model, conv, width, growth, dropout: the net, as in `build_model`.
        factory: "package.module:function" that builds the net instead, called without arguments; or None.
        lines: taps of the RotateConv2d layers that the net's dense convolutions become ("free", "shared",
            "profile"), as `convert` chooses them; None leaves the net as it is.
        line_path, line_groups: path and angle_groups of those layers.
        only: of the convolutions that become lines, names or patterns such as layer3.*, commas between; None for
            all.
        source: the trained net that the run starts from: a run folder, or with a factory a file of weights; its
            convolutions become the nearest lines. None starts from fresh weights.
        data, data_dir, image_size, svhn_extra, skip_bad_images, mean, std: the images, as in `load_data`.
        augment: "none", "paper" (zero padding 4, random crop, random flip) or "fast" (reflected borders,
            alternating flip).
        validation: hold the fixed validation split out; False trains on it too.
        optimizer: "sgd" or "adamw".
        lr: learning rate that the schedule multiplies.
        momentum: SGD's momentum, AdamW's β₁.
        nesterov: Nesterov's form of SGD's momentum.
        weight_decay: for the weights; biases and norms are never pulled to 0.
        angle_lr_scale: factor on the learning rate of the angles: 1 is for SGD, AdamW trains better with 10 to 30.
        angle_grad_scale: factor on the angles' gradient, 1.0 for none; None keeps each layer's natural one.
        angle_weight_decay: for the learned angles, which it pulls to 0: to show why there should be none.
        angle_init: of learned angles, "uniform" over a turn or "axes": one of the four directions of the grid.
        profile_init: of profiles, "random" or "bank": four shapes dealt out, as in `rotate2b`.
        epochs: passes over the training images; the schedule stretches to them.
        batch_size: images per optimizer step, over all processes together.
        schedule: "constant", "steps", "cosine" or "one-cycle" (see `rotateconv.lab.train.schedule.factor`).
        milestones: for "steps": fractions of the run after which the learning rate drops.
        gamma: for "steps": factor of each drop.
        warmup: fraction of the run in which the learning rate first rises to `lr`.
        label_smoothing: share of the target spread evenly over the classes.
        clip_grad_norm: largest 2-norm of all gradients together, or None.
        ema_decay: decay of the averaged weights that are evaluated and kept, or None for the last weights.
        teacher: trained net to distil from, as `source`; or None.
        teacher_weight: share of the teacher's term in the loss.
        teacher_temperature: temperature at which teacher and student are compared.
        qat: quantisation-aware training: every pass sees rounded numbers, and the run keeps those.
        weight_bits, angle_bits, dense_bits: of the rounding, as in `quantize`.
        precision: "no" (float32), "bf16" or "fp16" autocast; angles stay float32.
        channels_last: memory format of images and weights.
        compile: run the net through `torch.compile`.
        seed: of initial weights, order and augmentation of the images, and dropout.
        checkpoint_seconds: besides after every epoch, a checkpoint is due this long after the last one.
        checkpoint_steps: and after every so many steps, or 0.

    Raises:
        ConfigError: a value out of range, or a combination that has no meaning.

    Example:
        >>> config = make_config("resnet-cifar", overrides=["conv=rotate2p", "epochs=6"])
        >>> config.conv, config.epochs, config.lr
        ('rotate2p', 6, 0.1)
    """

    recipe: str = "digits"

    model: str = "resnet20"
    conv: str = "rotate4"
    width: float = 1.0
    growth: int | None = None
    dropout: float = 0.0
    factory: str | None = None
    lines: Literal["free", "shared", "profile"] | None = None
    line_path: Literal["circle", "square"] = "circle"
    line_groups: int | None = None
    only: str | None = None
    source: str | None = None

    data: str = "digits"
    data_dir: str | None = None
    image_size: int | None = None
    svhn_extra: bool = False
    skip_bad_images: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Literal["none", "paper", "fast"] = "none"
    validation: bool = True

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    angle_lr_scale: float = 1.0
    angle_grad_scale: float | None = None
    angle_weight_decay: float = 0.0
    angle_init: Literal["uniform", "axes"] = "uniform"
    profile_init: Literal["random", "bank"] = "random"

    epochs: int = 1
    batch_size: int = 128
    schedule: Literal["constant", "steps", "cosine", "one-cycle"] = "constant"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.0

    label_smoothing: float = 0.0
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    teacher: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 4.0

    qat: bool = False
    weight_bits: int = 4
    angle_bits: int = 5
    dense_bits: int = 8

    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False
    seed: int = 0

    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, coerce(RunConfig, field.name, getattr(self, field.name)))
        for keys, holds, expected in _RANGES:
            for key in keys.split():
                value = getattr(self, key)
                if value is not None and not (math.isfinite(value) and holds(value)):
                    raise ConfigError(f"{key} must be {expected}, not {value:g}")
        rising = all(a < b for a, b in zip((0.0, *self.milestones), (*self.milestones, 1.0), strict=True))
        if not rising:
            raise ConfigError(f"milestones must be rising fractions between 0 and 1, not {self.milestones}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError(
                f"nesterov needs optimizer=sgd with momentum above 0, not optimizer={self.optimizer} with "
                f"momentum={self.momentum:g}: set nesterov=false"
            )
        if self.svhn_extra and self.data != "svhn":
            raise ConfigError(f"svhn_extra belongs to data=svhn, not data={self.data}: leave it out")
        if self.skip_bad_images and self.data != "folder":
            raise ConfigError(f"skip_bad_images belongs to data=folder, not data={self.data}: leave it out")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std belong together: give both, or none to compute them from the images")
        for key, default in (("line_path", "circle"), ("line_groups", None), ("only", None)):
            if self.lines is None and getattr(self, key) != default:
                raise ConfigError(f"{key} says which lines convolutions become: set lines too, or leave it out")


_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("width lr teacher_temperature clip_grad_norm angle_grad_scale", lambda v: v > 0, "above 0"),
    ("epochs batch_size growth image_size line_groups", lambda v: v >= 1, "1 or more"),
    ("weight_bits dense_bits", lambda v: 2 <= v <= 8, "from 2 to 8"),
    ("angle_bits", lambda v: 3 <= v <= 8, "from 3 to 8"),
    (
        "weight_decay angle_weight_decay angle_lr_scale checkpoint_seconds checkpoint_steps",
        lambda v: v >= 0,
        "0 or more",
    ),
    ("dropout momentum warmup label_smoothing", lambda v: 0 <= v < 1, "from 0 to below 1"),
    ("teacher_weight gamma", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("ema_decay", lambda v: 0 < v < 1, "between 0 and 1"),
    ("seed", lambda v: 0 <= v < 2**63, "from 0 to below 2^63"),
)

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
    changes: Mapping[str, object] | None = None,
    overrides: Iterable[str] = (),
) -> RunConfig:
    """Return a preset with changes, the later over the earlier: recipe < file < changes < overrides.

    Args:
        recipe: key of `PRESETS`; None takes the file's `recipe`, or "digits".
        file: TOML file of flat `key = value` lines.
        changes: values by key, as a program has them.
        overrides: strings "key=value", as a command line has them; "none" empties an optional value.

    Raises:
        ConfigError: unknown recipe or key (with the nearest names), another type, an unreadable file.

    Example:
        >>> make_config("quick", changes={"lr": 0.3}, overrides=["milestones=0.5,0.8"]).milestones
        (0.5, 0.8)
    """
    values = dict(read_toml(file)) if file is not None else {}
    values.update(changes or {})
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, not {text!r}")
        key = key.strip()
        values[key] = parse(RunConfig, key, value.strip())
    recipe = recipe if recipe is not None else str(values.get("recipe", "digits"))
    if recipe not in PRESETS:
        raise ConfigError(f"unknown recipe {recipe!r}{nearest(recipe, PRESETS)}")
    return _replace(PRESETS[recipe], {**values, "recipe": recipe})


def to_json(config: RunConfig) -> str:
    """Return the configuration as JSON; `from_json` gives an equal one back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> RunConfig:
    """Return the configuration that `to_json` wrote; ConfigError for anything else."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the configuration is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"expected a JSON object with the configuration's keys, not {type(values).__name__}")
    return _replace(RunConfig(), values)


def differences(expected: RunConfig, found: RunConfig) -> dict[str, tuple[object, object]]:
    """Return {key: (expected, found)} for the keys that differ."""
    keys = (field.name for field in dataclasses.fields(RunConfig))
    pairs = {key: (getattr(expected, key), getattr(found, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def net_name(config: RunConfig) -> str:
    """Return what people call a configuration's net.

    Example:
        >>> net_name(RunConfig(conv="conv3x3", lines="free", width=0.5))
        'resnet20 with conv3x3 of width 0.5, converted to free taps'
    """
    name = config.factory if config.factory is not None else f"{config.model} with {config.conv}"
    width = "" if config.width == 1 else f" of width {config.width:g}"
    converted = "" if config.lines is None else f", converted to {config.lines} taps"
    rounded = f", rounded to {config.weight_bits} bits" if config.qat else ""
    return name + width + converted + rounded


def _replace(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    typed: dict[str, Any] = {key: coerce(RunConfig, key, value) for key, value in values.items()}
    return dataclasses.replace(config, **typed)
