"""The kernels of many layers as one node of the autograd graph, each with gradients of its own, or none."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rotateconv.kernels import fused_native
from rotateconv.kernels.fused import _gradients, _has_memory, _reference_gradients, fused_line_kernel
from rotateconv.kernels.line import Path


class BatchOptions(NamedTuple):
    """What the layers of a batch have in common, and the factors on the gradients of their angles.

    Attributes:
        size: k.
        path: "circle" or "square".
        dtype: Of the kernels.
        channels_last: Whether they are wanted in that order; where they are made in one piece, they are contiguous.
        scales: One for each layer.
    """

    size: int
    path: Path
    dtype: torch.dtype
    channels_last: bool
    scales: tuple[float, ...]


def fused_line_kernels(
    weights: Sequence[Tensor], angles: Sequence[Tensor], options: BatchOptions
) -> tuple[Tensor, ...]:
    """`fused_line_kernel` of every pair of weights (out, in, T) and angles (out, in).

    A kernel that takes no part in a loss gives its layer no gradient, and losses of different layers may each run
    backward: the node holds the parameters themselves, and refuses those that were changed in between.

    Args:
        weights, angles: One pair for each layer, all of the same types, device and T.
        options: Common to them.

    Returns:
        The kernels, (out, in, k, k).

    Example:
        >>> options = BatchOptions(3, "circle", torch.float32, False, (1.0, 1.0))
        >>> weights, angles = [torch.randn(4, 2, 3), torch.randn(8, 4, 3)], [torch.randn(4, 2), torch.randn(8, 4)]
        >>> [tuple(kernel.shape) for kernel in fused_line_kernels(weights, angles, options)]
        [(4, 2, 3, 3), (8, 4, 3, 3)]
    """
    kernels: tuple[Tensor, ...] = _LineKernels.apply(options, *weights, *angles)
    return kernels


class _LineKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: BatchOptions, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Not by save_for_backward, which a first backward pass through any of the kernels would empty.
        ctx.sources = sources
        ctx.versions = [source._version for source in sources]
        ctx.options = options
        weights, angles = sources[: len(sources) // 2], sources[len(sources) // 2 :]
        size, path, dtype, last, _ = options
        layout = torch.channels_last if last else torch.contiguous_format
        kernels = []
        for weight, angle in zip(weights, angles, strict=True):
            kernel = torch.empty((*angle.shape, size, size), dtype=dtype, device=angle.device, memory_format=layout)
            if not fused_native.can_compute(weight, angle, size, kernel):
                return _in_one_piece(weights, angles, options)
            fused_native.line_kernel_forward(weight, angle, size, path, kernel, last)
            kernels.append(kernel)
        return tuple(kernels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if [source._version for source in ctx.sources] != ctx.versions:
            raise RuntimeError(
                "expected the weights and angles that the kernels were made of, found them modified by an in-place "
                "operation: run backward before the optimizer's step"
            )
        count = len(grads)
        size, path, _, _, scales = ctx.options
        weights, angles, needed = ctx.sources[:count], ctx.sources[count:], ctx.needs_input_grad[1:]
        found: list[Tensor | None] = [None] * (2 * count)
        left: list[int] = []
        for i, grad in enumerate(grads):
            if grad is None or not (needed[i] or needed[count + i]):
                continue
            arguments = weights[i], angles[i], grad, size, path, scales[i]
            if torch.is_grad_enabled() or not _has_memory(grad):
                found[i], found[count + i] = _reference_gradients(*arguments)
            elif fused_native.can_compute(weights[i], angles[i], size, grad):
                both = needed[i], needed[count + i]
                found[i], found[count + i] = fused_native.line_kernel_backward(*arguments, both)
            else:
                left.append(i)
        if left:
            _gradients_in_one_piece(left, weights, angles, grads, ctx.options, found)
        return None, *found


def _in_one_piece(weights: Sequence[Tensor], angles: Sequence[Tensor], options: BatchOptions) -> tuple[Tensor, ...]:
    """The kernels put end to end: the calls of one layer, not of each."""
    size = options.size
    kernels = fused_line_kernel(*_end_to_end(weights, angles), size, options.path, dtype=options.dtype)
    parts = kernels.split([angle.numel() for angle in angles])
    return tuple(part.view(*angle.shape, size, size) for part, angle in zip(parts, angles, strict=True))


def _gradients_in_one_piece(
    left: Sequence[int],
    weights: Sequence[Tensor],
    angles: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    options: BatchOptions,
    found: list[Tensor | None],
) -> None:
    """Write the gradients of the layers `left`, put end to end, into `found`: weights first, then angles."""
    weights, angles = [weights[i] for i in left], [angles[i] for i in left]
    grad = torch.cat([kernel.flatten(0, 1) for i in left if (kernel := grads[i]) is not None])
    together = _gradients(*_end_to_end(weights, angles), grad, options.size, options.path, 1.0)
    counts = [angle.numel() for angle in angles]
    scaled = torch._foreach_mul(together[1].split(counts), [float(options.scales[i]) for i in left])
    for i, weight, angle, to_weight, to_angle in zip(
        left, weights, angles, together[0].split(counts), scaled, strict=True
    ):
        found[i], found[len(grads) + i] = to_weight.view(weight.shape), to_angle.view(angle.shape)


def _end_to_end(weights: Sequence[Tensor], angles: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([weight.flatten(0, 1) for weight in weights]), torch.cat([angle.flatten() for angle in angles])
