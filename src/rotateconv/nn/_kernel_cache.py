"""Kernels that were made ahead of a forward pass: each is taken once, by the layer that it was made for."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MadeKernel:
    """A kernel, and what it was made of.

    Attributes:
        kernel: (out, in, k, k).
        sources: The tensors that it follows from, each with its version: as it was when the kernel was made.
        with_grad: Whether gradients were recorded.
    """

    kernel: Tensor
    sources: list[tuple[Tensor, int]]
    with_grad: bool

    def is_current(self, sources: Sequence[Tensor]) -> bool:
        """Whether it would be made of these tensors, as they are now, in the same way."""
        return (
            len(sources) == len(self.sources)
            and self.with_grad == torch.is_grad_enabled()
            and all(
                now is made and now._version == version
                for now, (made, version) in zip(sources, self.sources, strict=True)
            )
        )


made_kernels: ContextVar[dict[nn.Module, MadeKernel] | None] = ContextVar("made_kernels", default=None)
"""By layer; None outside of `batched_kernels`."""


def take_kernel(layer: nn.Module, sources: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """The kernel that was made for a layer, (out, in, k, k), or None where there is none of these sources.

    Args:
        layer: The one that is about to convolve.
        sources: The tensors that its kernel follows from.
        dtype: Of the kernel that is wanted.
    """
    if torch.compiler.is_compiling() or not (made := made_kernels.get()):
        return None
    found = made.pop(layer, None)
    return found.kernel.to(dtype) if found is not None and found.is_current(sources) else None
