"""The kernels of all layers of a model made at once, before its forward pass: the calls of one layer, not of each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.kernels.fused import fused_line_kernel, needs_reference
from rotateconv.kernels.separable import compute_dtype
from rotateconv.nn._kernel_cache import MadeKernel, made_kernels
from rotateconv.nn.conv import RotateConv2d


@contextmanager
def batched_kernels(model: nn.Module) -> Iterator[None]:
    """A context whose first forward pass of the model finds the kernels of all its layers made, by one call.

    Layer by layer, each makes its kernels by some forty small operations, and their gradient by sixty; between the
    convolutions of a model every one of them starts with cold caches, on a GPU with a launch. Here the weights and
    angles of all layers are put end to end and go through `line_kernel` together, once forward and once backward,
    with the same numbers and gradients to rounding. Worth it for training steps in eager mode; `fuse` is for
    inference.

    A kernel is used once, and only as long as its parameters are the ones that it was made of, unchanged: any other
    forward pass of a layer, in the context or after it, makes its own. Under torch.compile and in torch.func's
    transforms, which see to this themselves, and for layers with angle_groups, nothing is made ahead.

    The memory of all kernels and of their gradients is held until the backward pass ends; and since the gradients of
    all layers come at the end, DistributedDataParallel can overlap less of their exchange with the backward pass.

    Args:
        model: holds the layers at any depth; wrapped or not. Layers with other parameters of their own, and
            other modules, are left alone.

    Example:
        >>> from rotateconv import build_model
        >>> model, images = build_model("resnet20", "rotate4"), torch.randn(2, 3, 32, 32)
        >>> with batched_kernels(model):
        ...     scores = model(images)
        >>> scores.sum().backward()
    """
    made = None if torch.compiler.is_compiling() else _make(model)
    token = made_kernels.set(made)
    try:
        yield
    finally:
        made_kernels.reset(token)


def _make(model: nn.Module) -> dict[nn.Module, MadeKernel]:
    groups: dict[tuple[Any, ...], dict[RotateConv2d, list[tuple[Tensor, int]]]] = {}
    for layer in model.modules():
        if not isinstance(layer, RotateConv2d) or layer.angle_groups is not None:
            continue
        sources = layer.kernel_sources()
        if needs_reference(*sources) or any(source.is_inference() for source in sources):
            continue
        weight = layer.weight.shape[1:] if layer.profile is None else layer.profile.shape
        alike = weight[-1], layer.weight.dtype, layer.angle.dtype, layer.weight.device, layer.kernel_size, layer.path
        groups.setdefault(alike, {})[layer] = [(source, source._version) for source in sources]
    with_grad = torch.is_grad_enabled()
    return {
        layer: MadeKernel(kernel, group[layer], with_grad)
        for group in groups.values()
        for layer, kernel in zip(group, _kernels(list(group)), strict=True)
    }


def _kernels(layers: Sequence[RotateConv2d]) -> list[Tensor]:
    """The kernels of layers of one sort, each (out, in, k, k)."""
    size, path, first = layers[0].kernel_size[0], layers[0].path, layers[0].angle
    counts = [layer.angle.numel() for layer in layers]
    scales = [layer.step_scale for layer in layers]
    scale: float | Tensor = scales[0]
    if len(set(scales)) > 1:
        every = torch.tensor(scales, dtype=first.dtype, device=first.device)
        scale = every.repeat_interleave(torch.tensor(counts, device=first.device), output_size=sum(counts))
    kernels = fused_line_kernel(
        torch.cat([layer.tap_weights().flatten(0, 1) for layer in layers]),
        torch.cat([layer.angle.flatten() for layer in layers]),
        size,
        path,
        angle_grad_scale=scale,
        dtype=compute_dtype(layers[0].weight, layers[0].weight),
    )
    shapes = [(*layer.angle.shape, size, size) for layer in layers]
    return [part.view(shape) for part, shape in zip(kernels.split(counts), shapes, strict=True)]
