"""The registry of models, the function that builds one by name, and the width of equal size."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Required, TypedDict

import torch
from torch import nn

from rotateconv.errors import InputError
from rotateconv.models.convs import Convolution
from rotateconv.models.densenet import GROWTH, DenseNet
from rotateconv.models.lookup import find_name
from rotateconv.models.resnet import BASE_CHANNELS, ResNet
from rotateconv.nn import arguments

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": partial(ResNet, 20),
    "resnet32": partial(ResNet, 32),
    "resnet44": partial(ResNet, 44),
    "resnet56": partial(ResNet, 56),
    "resnet110": partial(ResNet, 110),
    "densenet40": partial(DenseNet, 40),
    "densenet100": partial(DenseNet, 100),
    "densenet-bc100": partial(DenseNet, 100, bottleneck=True, compression=0.5),
}


class BuildArguments(TypedDict, total=False):
    """Arguments of `build_model`, as JSON can hold them."""

    name: Required[str]
    conv: str
    num_classes: int
    in_channels: int
    width: float
    growth: int | None
    dropout: float


def build_model(
    name: str,
    conv: str | Convolution = "rotate4",
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    *,
    growth: int | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Build the model `name` with every 3x3 convolution but the stem made by `conv`.

    Args:
        name: A name of `MODELS`.
        conv: A name of `CONVS`, or any callable with the signature of nn.Conv2d, which keeps the
            initialization it gives itself.
        num_classes: Outputs.
        in_channels: Channels of the image; its height and width may be anything from 8 x 8 up.
        width: Factor on a ResNet's 16, 32, 64 channels (all follow from round(16 · width)), and on a
            DenseNet's growth rate.
        growth: Of a DenseNet: the channels that each layer adds at width 1; 12 if not given.
        dropout: Of a DenseNet: the share dropped after every convolution but the stem.

    Returns:
        The model, float32 (or the default dtype), in training mode. Its attribute `build_arguments` has these
        arguments, if conv is a name.

    Raises:
        ValueError: If a name is unknown, a number is out of its range, or the model has no growth or dropout.

    Example:
        >>> sum(p.numel() for p in build_model("resnet20", conv="rotate4").parameters())
        121242
    """
    build = find_name("model", MODELS, name)
    options: dict[str, float] = {}
    if growth is not None:
        options["growth"] = growth
    if dropout != 0:
        options["dropout"] = dropout
    for option, value in options.items():
        if option not in inspect.signature(build).parameters:
            raise InputError(f"{name} has no {option}, got {option}={value}: leave it out")
    model = build(conv, num_classes, in_channels, width, **options)
    if isinstance(conv, str):
        # What JSON can hold: a packed file builds the model again from it.
        model.build_arguments = BuildArguments(  # type: ignore[assignment]
            name=name,
            conv=conv,
            num_classes=int(num_classes),
            in_channels=int(in_channels),
            width=float(width),
            growth=growth,
            dropout=dropout,
        )
    return model


def equal_size_width(
    name: str, parameters: int, *, conv: str | Convolution = "conv3x3", num_classes: int = 10, in_channels: int = 3
) -> float:
    """The width at which a model comes nearest to a number of parameters: the baseline of equal size.

    Args:
        name: A name of `MODELS`.
        parameters: The number to come near to.
        conv: Of the model that is made narrower or wider.
        num_classes: Outputs.
        in_channels: Channels of the image.

    Returns:
        The width: a multiple of 1/16 for a ResNet (one channel of the first stage), of 1/12 for a DenseNet
        (one channel per layer). Of two equally near, the smaller.

    Raises:
        ValueError: If parameters is not a positive integer, or a model of that width cannot be built.

    Example:
        >>> equal_size_width("resnet20", 121_242) * 16
        11.0
    """
    arguments.positive("parameters", parameters)
    steps = GROWTH if "growth" in inspect.signature(find_name("model", MODELS, name)).parameters else BASE_CHANNELS

    def count(step: int) -> int:
        with torch.device("meta"):  # counts need no memory and no random numbers
            model = build_model(name, conv, num_classes, in_channels, step / steps)
        return sum(parameter.numel() for parameter in model.parameters())

    # The count grows with the width: bracket the target by doubling, then halve the bracket.
    below, above = 1, 2
    while count(above) < parameters:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if count(middle) < parameters else (below, middle)
    return min(below, above, key=lambda step: abs(count(step) - parameters)) / steps
