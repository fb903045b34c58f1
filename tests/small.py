"""A model and a data set so small that a run takes a moment, and what the tests of training share."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rotateconv.lab.config import RunConfig, make_config
from rotateconv.lab.data.sets import ImageData, Split, load_data
from rotateconv.lab.files import read_json
from rotateconv.lab.train.checkpoint import load_checkpoint, read_weights
from rotateconv.lab.train.events import StepEnd
from rotateconv.lab.train.run_folder import read_records
from rotateconv.models import CONVS

TIMES = ("seconds", "validation_seconds", "images_per_second", "peak_memory_bytes", "seconds_per_epoch")
BATCHES_AN_EPOCH = 4  # 101 images in batches of 32


class Tiny(nn.Module):
    """One convolution of the given kind between a stem and a classifier, with a norm and dropout."""

    def __init__(
        self, conv: str, num_classes: int, in_channels: int, width: float, dropout: float = 0.0, norm: bool = True
    ) -> None:
        super().__init__()
        channels = round(8 * width)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv = CONVS[conv](channels, channels, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(torch.relu(self.norm(self.stem(images))))
        return self.classifier(self.dropout(torch.relu(features).mean(dim=(2, 3))))


def small_digits(train: int = 101, validation: int = 40, test: int = 37) -> ImageData:
    """The first images of each split of the digits."""
    data = load_data("digits")

    def first(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    return ImageData(
        data.name,
        data.classes,
        first(data.train, train),
        first(data.validation, validation),
        first(data.test, test),
        data.mean,
        data.std,
        data.flip,
    )


def tiny_config(**changes: Any) -> RunConfig:
    values = {"model": "tiny", "epochs": 3, "batch_size": 32, "lr": 0.05, "augment": "paper", **changes}
    return make_config("digits", changes=values)


def without_times(record: Any) -> Any:
    record = dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record
    if isinstance(record, dict):
        return {key: without_times(value) for key, value in record.items() if key not in TIMES}
    return record


def assert_same_run(found: Path, expected: Path) -> None:
    assert without_times(read_json(found / "summary.json")) == without_times(read_json(expected / "summary.json"))
    records = zip(read_records(found), read_records(expected), strict=True)
    assert all(without_times(a) == without_times(b) for a, b in records)
    ours, theirs = (read_weights((run / "model.safetensors").read_bytes()) for run in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    last, reference = (load_checkpoint(run / "checkpoints") for run in (found, expected))
    for model, weights in reference.weights.items():
        assert all(torch.equal(last.weights[model][name], tensor) for name, tensor in weights.items())
    for key in ("step", "epoch", "loader", "n_averaged", "scaler"):
        assert last.state[key] == reference.state[key]
    for key in ("scales", "average_scales"):
        assert last.state[key].keys() == reference.state[key].keys()
        assert all(torch.equal(last.state[key][name], size) for name, size in reference.state[key].items()), key
    assert torch.equal(last.state["processes"][0]["rng"], reference.state["processes"][0]["rng"])
    moments, expected_moments = (run.state["optimizer"]["state"] for run in (last, reference))
    for index, values in expected_moments.items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(moments[index][key]), torch.as_tensor(value)), (index, key)


E = TypeVar("E")


class StopAt:
    """An event callback that acts like Ctrl-C after one step, and keeps what it hears."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.events: list[object] = []

    def __call__(self, event: object) -> None:
        self.events.append(event)
        if isinstance(event, StepEnd) and event.step == self.step:
            raise KeyboardInterrupt

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]
