"""The exponential average of a model, updated without reading a number from the device."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


class RunningAverage:
    """average = decay · average + (1 - decay) · model, of parameters and buffers; the model itself at first.

    An index or a count among the buffers has no average: it is copied. `beside` is averaged too: what is learned beside
    the model, such as scales. `n_averaged` is counted by the caller, for an update that is captured counts only once.
    """

    def __init__(self, model: nn.Module, decay: float, beside: Collection[Tensor] = ()) -> None:
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.beside = [tensor.detach().clone() for tensor in beside]
        self.n_averaged = 0

    @torch.no_grad()
    def update(self, model: nn.Module, beside: Collection[Tensor] = ()) -> None:
        """Take the numbers of the model, and of the tensors beside it, into the average."""
        mine = [*self.module.parameters(), *self.module.buffers(), *self.beside]
        pairs = list(zip(mine, [*model.parameters(), *model.buffers(), *beside], strict=True))
        averaged = [pair for pair in pairs if self.n_averaged and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (self.n_averaged and pair[0].is_floating_point())]
        if averaged:
            mine, others = map(list, zip(*averaged, strict=True))
            torch._foreach_lerp_(mine, others, 1 - self.decay)
        if copied:
            mine, others = map(list, zip(*copied, strict=True))
            torch._foreach_copy_(mine, others)
