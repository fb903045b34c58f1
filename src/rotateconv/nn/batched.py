"""The kernels of all layers of a model made at once, in its forward pass: the calls of one layer, not of each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from rotateconv.kernels.batch_options import BatchOptions
from rotateconv.kernels.fused import needs_reference
from rotateconv.kernels.fused_batch import fused_line_kernels
from rotateconv.kernels.separable import compute_dtype
from rotateconv.kernels.watched import has_memory
from rotateconv.nn._kernel_cache import KernelBatch, MadeKernel, current_batch
from rotateconv.nn.conv import RotateConv2d


@contextmanager
def batched_kernels(model: nn.Module) -> Iterator[None]:
    """A context whose first forward pass of the model finds the kernels of all its layers made, by one call.

    For training on a GPU in eager mode, where layer by layer each takes launches of its own. Here the first layer that
    needs its kernel makes those of all layers, as one node of the graph: by Triton in one launch each way, by the
    compiled kernel one after the other, else put end to end, with the same numbers and gradients to rounding. On a CPU
    with the node in C++ (`rotateconv.native`) each layer still makes its own, which takes no longer. `fuse` is for
    inference.

    A kernel is used once, and only as long as its parameters are the ones that it was made of, unchanged: any other
    forward pass of a layer, in the context or after it, makes its own. (What is written through `.data` in the middle
    of the forward pass is not seen.) Under torch.compile and in torch.func's transforms, which see to this themselves,
    in the parts of a model that are checkpointed, and for layers with angle_groups or parametrizations, nothing is
    made ahead. A layer that takes no part in the loss has no gradient, and frozen layers cost none.

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
    batch = KernelBatch(lambda channels_last: _make(model, channels_last))
    token = current_batch.set(batch)
    try:
        yield
    finally:
        batch.close()
        current_batch.reset(token)


def _make(model: nn.Module, channels_last: bool) -> dict[nn.Module, MadeKernel]:
    groups: dict[tuple[Any, ...], dict[RotateConv2d, list[Tensor]]] = {}
    for layer in [] if needs_reference() else _modules(model):
        if not isinstance(layer, RotateConv2d) or layer.config.angle_groups is not None:
            continue
        if layer._modules and is_parametrized(layer):
            continue
        sources = layer.kernel_sources()
        if not all(map(has_memory, sources)) or True in [source.is_inference() for source in sources]:
            continue
        weight, angle, config = sources[0], sources[1], layer.config
        alike = config.taps, config.path, layer.kernel_size, weight.dtype, angle.dtype, weight.device
        # Apart, for a node of the graph goes backward as a whole where any of its kernels needs it.
        trained = True in [source.requires_grad for source in sources]
        groups.setdefault((alike, trained), {})[layer] = sources
    with_grad = torch.is_grad_enabled()
    return {
        layer: MadeKernel(kernel, sources, [source._version for source in sources], with_grad)
        for group in groups.values()
        for (layer, sources), kernel in zip(group.items(), _kernels(group, channels_last), strict=True)
    }


def _modules(model: nn.Module) -> Iterable[nn.Module]:
    """Those of `model.modules()`, in a third of the time."""
    found: dict[nn.Module, None] = {}
    ahead: list[nn.Module | None] = [model]
    for module in ahead:
        if module is not None and module not in found:
            found[module] = None
            ahead += module._modules.values()
    return found


def _kernels(layers: Mapping[RotateConv2d, Sequence[Tensor]], channels_last: bool) -> tuple[Tensor, ...]:
    """The kernels of layers of one sort and their sources, each (out, in, k, k)."""
    weights, angles, *profiles = zip(*layers.values(), strict=True)
    dtype = compute_dtype(weights[0], weights[0])
    scales = tuple([layer.step_scale for layer in layers])
    layer = next(iter(layers))
    options = BatchOptions(layer.kernel_size[0], layer.path, dtype, channels_last, scales)
    return fused_line_kernels(weights, angles, options, *profiles)
