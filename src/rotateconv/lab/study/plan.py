"""What a study compares: its configurations, and the dense models of equal size beside them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from rotateconv.errors import ConfigError, nearest
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.naming import run_name
from rotateconv.lab.train.build import build_configured, rotate_layers
from rotateconv.models import equal_size_width

BASELINE = "conv3x3"
"""The dense convolution that the others are compared with."""


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        base: The recipe that all runs share; its model, conv and seed are not read.
        models: Keys of `MODELS`.
        convs: Keys of `CONVS`.
        seeds: Number of runs of each configuration, with the seeds 0, 1, ...
        equal_params: Add the dense model narrowed to the parameter count of each model with RotateConv2d.
        contrasts: For one of `convs` those of them that show whether a part of it does anything.

    Raises:
        ConfigError: No model, no convolution, one of them twice, no seed, or a contrast with what is not compared.
    """

    base: RunConfig
    models: tuple[str, ...] = ("resnet20",)
    convs: tuple[str, ...] = (BASELINE, "rotate4", "rotate2", "rotate2p")
    seeds: int = 3
    equal_params: bool = False
    contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("models", "convs"):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names):
                raise ConfigError(f"{key} must be one name or more, each once, not {', '.join(names) or 'none'}")
        if self.seeds < 1:
            raise ConfigError(f"seeds must be 1 or more, not {self.seeds}")
        for conv, others in self.contrasts.items():
            for name in (conv, *others):
                if name not in self.convs:
                    raise ConfigError(f"contrasts names {name}, which is not in convs: {nearest(name, self.convs)}")


def contrasts_from(value: object) -> dict[str, tuple[str, ...]]:
    """Return `Study.contrasts` from what a study.toml holds under that key; ConfigError for anything else.

    Example:
        >>> contrasts_from({"rotate4": ["mask4", "line"]})
        {'rotate4': ('mask4', 'line')}
    """
    lists = value.values() if isinstance(value, Mapping) else [None]
    if all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        assert isinstance(value, Mapping)
        return {conv: tuple(names) for conv, names in value.items()}
    raise ConfigError(f'contrasts must be lists of names such as rotate4 = ["mask4"], not {value!r}')


@dataclass(frozen=True)
class Entry:
    """A configuration of runs that differ in the seed; a narrowed dense model names the convolution it is equal to."""

    config: RunConfig
    equal_to: str | None = None

    def seeded(self, seed: int) -> RunConfig:
        """Return the configuration of a run."""
        return dataclasses.replace(self.config, seed=seed)

    def run(self, seed: int) -> str:
        """Return the name of a run's folder."""
        return run_name(self.seeded(seed))


def plan(study: Study, data: DataDescription) -> list[Entry]:
    """Return a study's configurations: for each model the dense one, then the others as named.

    A narrowed dense model follows the first one that it is as large as.
    """
    entries: list[Entry] = []
    convs = sorted(study.convs, key=lambda conv: conv != BASELINE)
    for model in study.models:
        widths = {study.base.width}
        for conv in convs:
            config = dataclasses.replace(study.base, model=model, conv=conv, seed=0)
            entries.append(Entry(config))
            with torch.device("meta"):
                built = build_configured(config.architecture, data)
            if not study.equal_params or not rotate_layers(built):
                continue
            parameters, channels = sum(p.numel() for p in built.parameters()), data.input_shape[0]
            classes = len(data.classes)
            width = equal_size_width(model, parameters, conv=BASELINE, num_classes=classes, in_channels=channels)
            if width not in widths:
                widths.add(width)
                narrow = dataclasses.replace(config, conv=BASELINE, width=width, growth=None)
                entries.append(Entry(narrow, equal_to=conv))
    return entries
