"""A run folder's net: built from its configuration, and loaded with its weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rotateconv.checkpoint import load_checkpoint, read_weights
from rotateconv.config import RunConfig
from rotateconv.conv import RotateConv2d
from rotateconv.data.sets import ImageData
from rotateconv.models import build_model
from rotateconv.runs import CHECKPOINTS, WEIGHTS, Record, RunError, read_config, read_json


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
    """Return the configuration's net for these data, with fresh weights."""
    net = build_model(
        config.model,
        conv=config.conv,
        num_classes=len(data.classes),
        in_channels=data.input_shape[0],
        width=config.width,
        growth=config.growth,
        dropout=config.dropout,
    )
    if config.angle_grad_scale is not None:
        for module in net.modules():
            if isinstance(module, RotateConv2d):
                module.angle_grad_scale = config.angle_grad_scale
    return net


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
        rotateconv.runs.RunError: runs/nothing is no run folder: it has no readable config.json
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
