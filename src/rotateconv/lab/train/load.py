"""A run folder's net: built from its configuration, and loaded with its weights."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rotateconv.convert.convert import convert_architecture
from rotateconv.cost import ModelCost, cost
from rotateconv.errors import ConfigError, RunError, nearest
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData, Split
from rotateconv.lab.train.checkpoint import load_checkpoint, read_weights
from rotateconv.lab.train.evaluate import Evaluation, evaluate
from rotateconv.lab.train.factory import build_from
from rotateconv.lab.train.run_folder import CHECKPOINTS, WEIGHTS, Record, read_config, read_json
from rotateconv.models import build_model
from rotateconv.models.convs import deal_profiles
from rotateconv.nn.conv import RotateConv2d
from rotateconv.quantization.pack import pack

CALIBRATION = 2048
"""Training images that norms measure their statistics on, where a net was changed after its training."""


@dataclass(frozen=True)
class DataDescription:
    """What a net must know of the images it was trained on; the run folder keeps it as `data.json`.

    Args:
        name: of the data set.
        classes: names of the classes, in the order of the net's outputs.
        mean, std: per channel, of images between 0 and 1; the net sees (image - mean) / std.
        input_shape: channels, height, width.
        flip: whether a mirrored image keeps its class.
        train, validation, test: number of images.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, int, int]
    flip: bool
    train: int
    validation: int
    test: int

    @classmethod
    def of(cls, data: ImageData) -> "DataDescription":
        """Describe a data set."""
        channels, height, width = data.train.images.shape[1:]
        counts = (len(split.labels) for split in (data.train, data.validation, data.test))
        shape = (channels, height, width)
        return cls(data.name, data.classes, data.mean, data.std, shape, data.flip, *counts)

    @classmethod
    def from_record(cls, record: Record) -> "DataDescription":
        """Return what `to_record` wrote; RunError where a key is missing or unknown."""
        try:
            values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
            return cls(**values)
        except TypeError:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise RunError(f"a run's data.json must have {names}, not {', '.join(record)}") from None

    def to_record(self) -> Record:
        """Return the fields as JSON has them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class TrainedRun:
    """What `load_run` returns: the run's configuration, its net in evaluation mode, its data."""

    config: RunConfig
    model: nn.Module
    data: DataDescription


def build_net(config: RunConfig, data: DataDescription) -> nn.Module:
    """Return the configuration's net for these data, with fresh weights.

    Raises:
        ValueError: an unknown name, a factory that builds no net, or no convolution that could become lines.
    """
    if config.factory is not None:
        net = build_from(config.factory)
    else:
        net = build_model(
            config.model,
            conv=config.conv,
            num_classes=len(data.classes),
            in_channels=data.input_shape[0],
            width=config.width,
            growth=config.growth,
            dropout=config.dropout,
        )
    if config.rotate is not None:
        convert_architecture(net, config.rotate, where=chosen_lines(net, config))
    set_angle_grad_scale(net, config)
    for module in net.modules():
        if isinstance(module, RotateConv2d):
            _start(module, config)
    return net


def set_angle_grad_scale(model: nn.Module, config: RunConfig) -> None:
    """Give the RotateConv layers of a model the scale that a configuration has instead of their own."""
    for module in model.modules():
        if isinstance(module, RotateConv2d) and config.angle_grad_scale is not None:
            module.angle_grad_scale = config.angle_grad_scale


@torch.no_grad()
def _start(layer: RotateConv2d, config: RunConfig) -> None:
    """Give a RotateConv layer the starting values that a configuration has instead of its own."""
    if config.angle_init == "axes" and layer.learn_angle:
        layer.angle.copy_(torch.randint(4, layer.angle.shape, device=layer.angle.device) * (math.pi / 2))
    if config.profile_init == "bank" and layer.profile is not None:
        deal_profiles(layer)


def net_cost(config: RunConfig, data: DataDescription) -> ModelCost:
    """Return what the configuration's net costs for one of these images."""
    # A user's own function may compute while it builds, which nothing can on the meta device.
    device = "cpu" if config.factory is not None else "meta"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        net = build_net(config, data)
    return cost(net, data.input_shape)


def chosen_lines(net: nn.Module, config: RunConfig) -> Callable[[str, nn.Conv2d], bool] | None:
    """Return the filter that `convert` takes for the names in `config.convert_only`; None where there are none.

    Raises:
        ConfigError: a name or pattern that no convolution of the net has.
    """
    if config.convert_only is None:
        return None
    patterns = [pattern.strip() for pattern in config.convert_only.split(",") if pattern.strip()]
    # A net that is partly converted already has lines under some of the names.
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | RotateConv2d)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"convert_only: the net has no convolution {pattern!r}: {nearest(pattern, names[:40])}")
    return lambda name, conv: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def load_run(run: str | Path) -> TrainedRun:
    """Return a run's configuration, net and data, from the folder alone.

    The weights are the final ones; of a run that is not finished, those of its last whole checkpoint; in both
    cases the averaged ones where the run averages.

    Args:
        run: folder that `fit` wrote.

    Returns:
        The net is on the CPU, float32, in evaluation mode.

    Raises:
        RunError: no run folder, no weights yet, or weights that do not fit the configuration.

    Example:
        >>> load_run("runs/nothing")
        Traceback (most recent call last):
        rotateconv.errors.RunError: runs/nothing is no run folder: it has no readable config.json
    """
    run = Path(run)
    config = read_config(run)
    data = DataDescription.from_record(read_json(run / "data.json"))
    if (run / WEIGHTS).is_file():
        try:
            weights = read_weights((run / WEIGHTS).read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read the weights {run / WEIGHTS}: {error}") from None
    else:
        checkpoint = load_checkpoint(run / CHECKPOINTS)
        if checkpoint is None:
            raise RunError(f"the run in {run} has no weights yet: resume it")
        weights = checkpoint.weights.get("average", checkpoint.weights["model"])
    # The initial weights are drawn and thrown away: without the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        net = build_net(config, data)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"the weights in {run} do not fit its configuration: {error}") from None
    return TrainedRun(config, net.eval(), data)


def pack_net(
    model: nn.Module, data: DataDescription, path: str | Path, *, weight_bits: int, angle_bits: int, dense_bits: int
) -> None:
    """Pack a net, as `pack`, together with what its users must know of the data: classes, normalisation, size."""
    pack(
        model,
        path,
        weight_bits=weight_bits,
        angle_bits=angle_bits,
        dense_bits=dense_bits,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        input_size=data.input_shape,
    )


def evaluate_split(
    model: nn.Module, config: RunConfig, data: DataDescription, split: Split, batch_size: int = 512
) -> Evaluation:
    """Evaluate a net on a GPU if there is one, in a run's precision and memory format, normalised as in training.

    Args:
        model: moved to that device.
        config: of the run.
        data: that the net was trained on.
        split: the images.
        batch_size: images at a time.

    Raises:
        ValueError: the split is empty.
    """
    batches = _batches(model, config, data, split, batch_size)
    low = torch.float16 if config.precision == "fp16" else torch.bfloat16
    with torch.autocast(batches.device.type, dtype=low, enabled=config.precision != "no"):
        return evaluate(model, batches, data.classes)


def calibration_batches(model: nn.Module, config: RunConfig, data: DataDescription, split: Split) -> Batches:
    """Return images that a net was trained on, as `recalibrate` and `quantize` take them: not augmented.

    Args:
        model: moved to a GPU if there is one.
        config: of the run; its seed draws the images.
        data: that the net was trained on.
        split: the training images; `CALIBRATION` of them are drawn, or all.
    """
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(config.seed))[:CALIBRATION]
    parts = max(1, math.ceil(len(drawn) / 512))
    size = max(1, math.ceil(len(drawn) / parts))  # equal parts: a last batch of one image would have no variance
    return _batches(model, config, data, Split(split.images[drawn], split.labels[drawn]), size)


def _batches(model: nn.Module, config: RunConfig, data: DataDescription, split: Split, batch_size: int) -> Batches:
    """Return the images as the net takes them, and move the net to where they are."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device).to(memory_format=layout)
    return Batches(split, batch_size, mean=data.mean, std=data.std, device=device, channels_last=config.channels_last)
