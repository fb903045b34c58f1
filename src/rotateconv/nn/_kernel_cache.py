"""Kernels that are made for all layers of a model when the first one needs its own: each is taken once."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class MadeKernel(NamedTuple):
    """A kernel, and what it was made of.

    Attributes:
        kernel: (out, in, k, k).
        sources: The tensors that it follows from.
        versions: Theirs when the kernel was made.
        with_grad: Whether gradients were recorded.
    """

    kernel: Tensor
    sources: Sequence[Tensor]
    versions: Sequence[int]
    with_grad: bool

    def is_current(self, sources: Sequence[Tensor]) -> bool:
        """Whether it would be made of these tensors, as they are now, in the same way."""
        return (
            len(sources) == len(self.sources)
            and all(map(is_, sources, self.sources))
            and [source._version for source in sources] == self.versions
            and self.with_grad == torch.is_grad_enabled()
        )


open_batches: list["KernelBatch"] = []
"""Of all threads: without one, a layer need not ask for its kernel."""


class KernelBatch:
    """The kernels of one model's next forward pass.

    Args:
        make: Makes them, by layer, in channels-last order or not.
    """

    def __init__(self, make: Callable[[bool], dict[nn.Module, MadeKernel]]) -> None:
        self._make = make
        self._made: dict[nn.Module, MadeKernel] | None = None
        self._closed = False
        open_batches.append(self)

    def close(self) -> None:
        """Make and give nothing any more, though a context that was left out of order may still name it."""
        open_batches.remove(self)
        self._closed = True
        self._made = None

    def take(self, layer: nn.Module, channels_last: bool) -> MadeKernel | None:
        """The kernel of a layer, if it is the first time that it is asked for."""
        if self._closed:
            return None
        if self._made is None:
            self._made = self._make(channels_last)
        return self._made.pop(layer, None)


current_batch: ContextVar[KernelBatch | None] = ContextVar("current_batch", default=None)
"""None outside of `batched_kernels`."""

# Of torch.utils.checkpoint, which runs a part of the model again and expects the same from it. Where torch has it no
# more, every layer makes its own.
_saved_tensor_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_tracing: True
)


def take_kernel(
    layer: nn.Module, sources: Callable[[], Sequence[Tensor]], dtype: torch.dtype, channels_last: bool = False
) -> Tensor | None:
    """The kernel that was made for a layer, (out, in, k, k), or None where there is none of these sources.

    Args:
        layer: The one that is about to convolve.
        sources: Gives the tensors that its kernel follows from.
        dtype: Of the kernel that is wanted.
        channels_last: The order that is wanted; the kernels follow the first layer that asks.
    """
    if torch.compiler.is_compiling() or (batch := current_batch.get()) is None or _saved_tensor_hooks(True):
        return None
    found = batch.take(layer, channels_last)
    if found is None or not found.is_current(sources()):
        return None
    return found.kernel if found.kernel.dtype is dtype else found.kernel.to(dtype)
