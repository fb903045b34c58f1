"""The kernels of many layers as one node of the autograd graph, each with gradients of its own, or none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rotateconv.kernels import fused_native
from rotateconv.kernels.batch_options import BatchOptions
from rotateconv.kernels.fused import _fused_triton, fused_line_kernel, gradients
from rotateconv.kernels.watched import has_memory, is_watched


def fused_line_kernels(
    weights: Sequence[Tensor], angles: Sequence[Tensor], options: BatchOptions, profiles: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """`fused_line_kernel` of every pair of weights (out, in, T) and angles (out, in).

    On a GPU where Triton is installed, in one launch; and its backward pass in another and a copy.

    A kernel that takes no part in a loss gives its layer no gradient, and losses of different layers may each run
    backward: the node holds the parameters themselves, and refuses those that were changed in between.

    Args:
        weights, angles: One pair for each layer, all of the same types, device and T.
        options: Common to them.
        profiles: (out, k) of each layer, whose taps are then the products with its weights (out, in, 1).

    Returns:
        The kernels, (out, in, k, k).

    Example:
        >>> options = BatchOptions(3, "circle", torch.float32, False, (1.0, 1.0))
        >>> weights, angles = [torch.randn(4, 2, 3), torch.randn(8, 4, 3)], [torch.randn(4, 2), torch.randn(8, 4)]
        >>> [tuple(kernel.shape) for kernel in fused_line_kernels(weights, angles, options)]
        [(4, 2, 3, 3), (8, 4, 3, 3)]
    """
    if profiles and not _fused_triton(angles[0]):
        weights = [weight * profile[:, None] for weight, profile in zip(weights, profiles, strict=True)]
        profiles = ()
    kernels: tuple[Tensor, ...] = _LineKernels.apply(options, *weights, *angles, *profiles)
    return kernels


class _LineKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: BatchOptions, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Not by save_for_backward, which a first backward pass through any of the kernels would empty.
        ctx.sources = sources
        ctx.versions = [source._version for source in sources]
        ctx.options = options
        ctx.kinds = []  # of the compiled library
        if _fused_triton(sources[0]):
            from rotateconv.kernels.fused_triton_batch import line_kernels_forward

            return tuple(line_kernels_forward(sources, options))
        size, path, dtype, last, scales = options
        weights, angles = sources[: len(scales)], sources[len(scales) :]
        for weight, angle, scale in zip(weights, angles, scales, strict=True):
            kind = fused_native.find(weight, angle, size, path, scale, dtype, last)
            # A copy would need a gradient of its own.
            if (
                kind is None
                or fused_native.plain(weight, kind) is not weight
                or fused_native.plain(angle, kind) is not angle
            ):
                ctx.kinds = []
                return _in_one_piece(weights, angles, options)
            ctx.kinds.append(kind)
        return tuple(map(fused_native.forward, ctx.kinds, weights, angles))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if [source._version for source in ctx.sources] != ctx.versions:
            raise RuntimeError(
                "expected the weights and angles that the kernels were made of, found them modified by an in-place "
                "operation: run backward before the optimizer's step"
            )
        count, sources, needed = len(grads), ctx.sources, ctx.needs_input_grad[1:]
        size, path, _, _, scales = ctx.options
        given = [grad for grad in grads if grad is not None]
        is_plain = not torch.is_grad_enabled() and all(map(has_memory, given))
        found: list[Tensor | None] = [None] * len(sources)
        if is_plain and given and _fused_triton(sources[0]):
            from rotateconv.kernels.fused_triton_batch import line_kernels_backward

            found = line_kernels_backward(sources, grads, ctx.options)
            grads = ()  # none is left
        by_library = ctx.kinds and is_plain and not is_watched()
        left: list[int] = []
        for i, grad in enumerate(grads):
            if grad is None or not any(needed[i::count]):
                continue
            if by_library:
                found[i::count] = fused_native.backward(
                    ctx.kinds[i], sources[i], sources[count + i], grad, *needed[i::count]
                )[:2]
            elif is_plain:
                left.append(i)
            else:
                weight, angle, *profile = sources[i::count]
                own = profile[0] if profile else None
                found[i::count] = fused_native.reference_gradients(weight, angle, own, grad, size, path, scales[i])
        if left:
            _gradients_in_one_piece(left, sources, grads, ctx.options, found)
        return None, *[gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True)]


def _in_one_piece(weights: Sequence[Tensor], angles: Sequence[Tensor], options: BatchOptions) -> tuple[Tensor, ...]:
    """The kernels put end to end: the calls of one layer, not of each."""
    size = options.size
    kernels = fused_line_kernel(*_end_to_end(weights, angles), size, options.path, dtype=options.dtype)
    parts = kernels.split([angle.numel() for angle in angles])
    return tuple(part.view(*angle.shape, size, size) for part, angle in zip(parts, angles, strict=True))


def _gradients_in_one_piece(
    left: Sequence[int],
    sources: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    options: BatchOptions,
    found: list[Tensor | None],
) -> None:
    """Write the gradients of the layers `left`, put end to end, into `found`: weights first, then angles."""
    weights, angles = [sources[i] for i in left], [sources[len(grads) + i] for i in left]
    grad = torch.cat([kernel.flatten(0, 1) for i in left if (kernel := grads[i]) is not None])
    together = gradients(*_end_to_end(weights, angles), grad, options.size, options.path, 1.0)
    counts = [angle.numel() for angle in angles]
    scaled = torch._foreach_mul(together[1].split(counts), [float(options.scales[i]) for i in left])
    for i, weight, angle, to_weight, to_angle in zip(
        left, weights, angles, together[0].split(counts), scaled, strict=True
    ):
        found[i], found[len(grads) + i] = to_weight.view(weight.shape), to_angle.view(angle.shape)


def _end_to_end(weights: Sequence[Tensor], angles: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([weight.flatten(0, 1) for weight in weights]), torch.cat([angle.flatten() for angle in angles])
