"""The registries that tests go through: `make test` takes one of each kind, `make test-slow` all the others."""

from collections.abc import Iterable

import pytest

from rotateconv.models import CONVS, MODELS

FIRST = {
    "conv3x3",
    "rotate4",
    "rotate2p",
    "rotate2p-g4",
    "rotate2p-k5",
    "rotate4-fixed",
    "mask4",
    "pattern4",
    "separable",
    "codebook16",
    "lowrank4",
    "outer",
    "resnet20",
    "densenet40",
}
"""Names in `CONVS` and `MODELS`: a layer of each class and form of taps, a model of each family."""


def first(names: Iterable[str]) -> list[object]:
    """The names as values of a test's argument: those that are not in `FIRST` are slow."""
    return [pytest.param(name, id=name, marks=() if name in FIRST else pytest.mark.slow) for name in names]


each_conv = pytest.mark.parametrize("conv", first(CONVS))
"""For a test of a whole model or a training, of every kind of layer."""
each_model = pytest.mark.parametrize("name", first(MODELS))
