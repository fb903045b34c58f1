"""What a study compares: its configurations, and the dense models of equal size beside them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from rotateconv.errors import ConfigError, nearest
from rotateconv.lab.config import RunConfig
from rotateconv.lab.keys import one_sentence
from rotateconv.lab.naming import run_name
from rotateconv.lab.run_config import Names

if TYPE_CHECKING:
    from rotateconv.lab.data.description import DataDescription

BASELINE = "conv3x3"
"""The dense convolution that the others are compared with."""


@one_sentence
@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True))
class Study:
    """What is compared.

    Raises:
        ConfigError: No model, no convolution, one of them twice, no seed, or a contrast with what is not compared.
    """

    base: RunConfig
    """The recipe that all runs share; its model, conv and seed are not read."""
    models: Names = ("resnet20",)
    """Models, commas between; resnet20."""
    convs: Names = (BASELINE, "rotate4", "rotate2", "rotate2p")
    """Convolutions, commas between; conv3x3,rotate4,rotate2,rotate2p."""
    seeds: Annotated[int, Ge(1), Le(1000)] = 3
    """Runs of each configuration: seeds 0, 1, ...; 3."""
    equal_params: bool = False
    """Add the dense model narrowed to each RotateConv model's parameters."""
    contrasts: Mapping[str, Names] = field(default_factory=dict)
    """For one of `convs` those of them that show whether a part of it does anything."""

    def __post_init__(self) -> None:
        for key in ("models", "convs"):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names):
                raise ConfigError(f"{key} must be one name or more, each once, not {', '.join(names) or 'none'}")
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


@dataclasses.dataclass(frozen=True)
class PlannedRuns:
    """A configuration of runs that differ in the seed; a narrowed dense model names the convolution it is equal to."""

    config: RunConfig
    equal_to: str | None = None

    def seeded(self, seed: int) -> RunConfig:
        """Return the configuration of a run."""
        return dataclasses.replace(self.config, seed=seed)

    def run(self, seed: int) -> str:
        """Return the name of a run's folder."""
        return run_name(self.seeded(seed))


def plan(study: Study, data: "DataDescription") -> list[PlannedRuns]:
    """Return a study's configurations: for each model the dense one, then the others as named.

    A narrowed dense model follows the first one that it is as large as.
    """
    import torch  # not to wait for it where a study is only described

    from rotateconv.lab.train.build import build_configured, rotate_layers
    from rotateconv.models import equal_size_width

    entries: list[PlannedRuns] = []
    convs = sorted(study.convs, key=lambda conv: conv != BASELINE)
    for model in study.models:
        widths = {study.base.width}
        for conv in convs:
            config = dataclasses.replace(study.base, model=model, conv=conv, seed=0)
            entries.append(PlannedRuns(config))
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
                entries.append(PlannedRuns(narrow, equal_to=conv))
    return entries
