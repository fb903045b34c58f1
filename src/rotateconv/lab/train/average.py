"""The exponential average of a model, updated without reading a number from the device."""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn


class RunningAverage:
    """average = decay · average + (1 - decay) · model, of parameters and buffers; the model itself at first.

    An index or a count among the buffers has no average: it is copied.

    Args:
        model: whose copy becomes the average.
        decay: between 0 and 1.

    Attributes:
        module: the average.
        n_averaged: how many updates are done; the caller counts, for an update that is captured counts only once.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.n_averaged = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's numbers into the average."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        averaged = [pair for pair in pairs if self.n_averaged and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (self.n_averaged and pair[0].is_floating_point())]
        if averaged:
            mine, others = map(list, zip(*averaged, strict=True))
            torch._foreach_lerp_(mine, others, 1 - self.decay)
        if copied:
            mine, others = map(list, zip(*copied, strict=True))
            torch._foreach_copy_(mine, others)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
