"""The layers that the tests of RotateConv2d go through: every argument, and every form of the kernel."""

from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv import batched_kernels

# (in, out) channels and nn.Conv2d's arguments; every argument appears, and those that meet appear together.
ARGUMENTS: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((2, 4), {}),
    ((2, 4), {"bias": False}),
    ((1, 2), {"padding": 1, "stride": 2}),
    ((2, 4), {"padding": (2, 0), "stride": (1, 3)}),
    ((2, 4), {"padding": "valid", "stride": (2, 1)}),
    ((2, 4), {"padding": "same"}),
    ((2, 2), {"padding": "same", "dilation": 2}),
    ((2, 4), {"padding": (1, 3), "dilation": (1, 2)}),
    ((2, 2), {"padding": 3, "stride": 2, "dilation": (2, 1), "bias": False}),
    ((4, 4), {"groups": 2, "padding": 1}),
    ((4, 4), {"groups": 4, "padding": "same"}),  # depthwise
    ((2, 4), {"groups": 2, "stride": 2, "dilation": 2, "padding": (4, 2)}),  # depthwise, two outputs a channel
    *(((2, 2), {"padding": (2, 3), "padding_mode": mode}) for mode in ("zeros", "reflect", "replicate", "circular")),
    *(((2, 2), {"padding": "same", "padding_mode": mode}) for mode in ("zeros", "reflect", "replicate", "circular")),
    ((4, 4), {"groups": 2, "stride": 2, "padding": 2, "padding_mode": "circular", "bias": False}),
    ((2, 4), {"dilation": 2, "padding": "same", "padding_mode": "reflect"}),
]

FORMS: list[dict[str, Any]] = [
    {"taps": taps, "path": path, "angle_groups": angle_groups}
    for taps, path, angle_groups in product(("free", "shared", "profile"), ("circle", "square"), (None, 2))
]

SIZES = (3, 5, 7, 9)


def image_for(channels: int, **options: Any) -> Tensor:
    """Large enough for a 9 x 9 kernel with dilation 2, small enough for the twin; height and width differ."""
    return torch.randn(2, channels, 18, 19, **options)


def forward(model: nn.Module, images: Tensor, batched: bool) -> Tensor:
    """The output of a model whose layers make their kernels at once, or each its own."""
    with batched_kernels(model) if batched else nullcontext():
        return model(images)


def gradients(layer: nn.Module, output: Tensor) -> dict[str, Tensor]:
    """The gradient of the sum of squares of an output, by the name of the parameter."""
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(output.square().sum(), parameters), strict=True))


def name(case: Any) -> str:
    """A readable test id."""
    if isinstance(case, dict):
        return ",".join(f"{key}={value}" for key, value in case.items()) or "default"
    return str(case)
