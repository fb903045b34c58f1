"""The registry of convolutions that a model can be built with: callables with the signature of nn.Conv2d."""

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from rotateconv.kernels.line import unit_profile
from rotateconv.models.lookup import find_name
from rotateconv.nn import arguments
from rotateconv.nn.arguments import Size
from rotateconv.nn.codebook import CodebookConv2d
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.factored import LowRankConv2d, OuterConv2d, SeparableConv2d
from rotateconv.nn.masked import MaskedConv2d

Convolution = Callable[..., nn.Module]

Arguments = ParamSpec("Arguments")
Layer = TypeVar("Layer", bound=nn.Module)


def find_conv(conv: str | Convolution) -> Convolution:
    """The entry of `CONVS` with this name, or the callable itself.

    Raises:
        ValueError: If conv is a name that `CONVS` does not have.

    Example:
        >>> find_conv("rotate2")(16, 32, 3, padding=1).weight.shape
        torch.Size([32, 16, 1])
    """
    return conv if callable(conv) else find_name("conv", CONVS, conv)


def _initialized(make: Callable[Arguments, Layer], initialize: Callable[[Layer], None]) -> Callable[Arguments, Layer]:
    """`make`, followed by `initialize` on what it made: the same signature, other starting values."""

    @wraps(make)
    def build(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Layer:
        layer = make(*args, **kwargs)
        with torch.no_grad():
            initialize(layer)
        return layer

    return build


def _kaiming(layer: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def _along_the_grid(layer: RotateConv2d) -> None:
    """A row of taps where o + i is even, a column where it is odd."""
    out_channels, fan, taps = layer.weight.shape
    place = torch.arange(out_channels)[:, None] + torch.arange(fan)
    layer.angle.copy_(place % 2 * (math.pi / 2))
    # No tap is spread over several positions: the norm of a slice is that of its taps, not a mean over angles.
    layer.weight.normal_(0, math.sqrt(2 / (fan * taps)))


def deal_profiles(layer: RotateConv2d) -> None:
    """Give the output channels profiles of a bank of four in turn: box, first and second derivative, one end.

    The first three are the orthogonal polynomials of degree 0, 1 and 2 on the taps; for k = 3, (1, 1, 1), (-1, 0, 1)
    and (1, -2, 1); the last has the last tap alone. All have a kernel of norm 1 over a turn.
    """
    assert layer.profile is not None
    if layer.profile.is_meta:
        return
    size, half = layer.kernel_size[0], layer.kernel_size[0] // 2
    t = torch.arange(-half, half + 1.0, dtype=layer.profile.dtype, device=layer.profile.device)
    bank = unit_profile(torch.stack([torch.ones_like(t), t, t**2 - (t**2).mean(), t.eq(half).to(t)]), size, layer.path)
    turn = torch.arange(layer.profile.numel() // size, device=t.device) % len(bank)
    layer.profile.copy_(bank[turn].view_as(layer.profile))


def wider(make: Callable[..., Layer], more: int = 1, spread: int = 1) -> Callable[..., Layer]:
    """`make` with a kernel of `more` positions on each side, `spread` apart, and as much more padding: the same output.

    Example:
        >>> wider(nn.Conv2d, 2)(8, 8, 3, padding=1).kernel_size, wider(nn.Conv2d, 0, 2)(8, 8, 3, padding=1).padding
        ((7, 7), (2, 2))
    """

    def build(
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        *args: Any,
        **kwargs: Any,
    ) -> Layer:
        asked = arguments.square_kernel_size(kernel_size)
        size, apart = asked + 2 * more, arguments.pair("dilation", dilation, least=1)
        reach = tuple(spread * step for step in apart)
        if padding != "same":
            rows, cols = (0, 0) if padding == "valid" else arguments.pair("padding", padding, least=0)  # type: ignore[arg-type]
            gained = [(size // 2) * new - (asked // 2) * old for new, old in zip(reach, apart, strict=True)]
            padding = (rows + gained[0], cols + gained[1])
        return make(in_channels, out_channels, size, stride, padding, reach, *args, **kwargs)

    return build


# A plain nn.Conv2d, not a subclass: tools that match modules by type keep working on the models.
dense = _initialized(nn.Conv2d, _kaiming)
line = _initialized(partial(RotateConv2d, taps="free", learn_angle=False), _along_the_grid)
bank = _initialized(partial(RotateConv2d, taps="profile", learn_profile=False), deal_profiles)

_LONG: dict[str, dict[str, Any]] = {
    "rotate4": {"taps": "free"},
    "rotate2": {"taps": "shared"},
    "rotate2p": {"taps": "profile"},
    "rotate2p-g4": {"taps": "profile", "angle_groups": 4},
}
CONVS: dict[str, Convolution] = {
    "conv3x3": dense,
    "rotate4": partial(RotateConv2d, taps="free"),
    "rotate2": partial(RotateConv2d, taps="shared"),
    "rotate2p": partial(RotateConv2d, taps="profile"),
    "rotate4-fixed": partial(RotateConv2d, taps="free", learn_angle=False),
    "rotate2p-fixed": partial(RotateConv2d, taps="profile", learn_angle=False),
    "line": line,
    "mask4": partial(MaskedConv2d, kept=4),
    "separable": SeparableConv2d,
    "rotate4-g4": partial(RotateConv2d, taps="free", angle_groups=4),
    "rotate2p-g4": partial(RotateConv2d, taps="profile", angle_groups=4),
    "rotate2b": bank,
    "rotate4-k5": wider(RotateConv2d),
    "rotate2p-k5": wider(partial(RotateConv2d, taps="profile")),
    # Rivals: what else makes a model small (docs/rivals.md).
    "codebook16": partial(CodebookConv2d, entries=16),
    "codebook32": partial(CodebookConv2d, entries=32),
    "lowrank4": partial(LowRankConv2d, numbers=4),
    "lowrank2": partial(LowRankConv2d, numbers=2),
    "outer": OuterConv2d,
    "pattern4": partial(MaskedConv2d, kept=4, patterns=8),
    # Dense kernels that reach further, and lines that do.
    "conv5x5": wider(dense, 1),
    "conv7x7": wider(dense, 2),
    "conv3x3-d2": wider(dense, 0, spread=2),
    "rotate2-k5": wider(partial(RotateConv2d, taps="shared")),
    "rotate2p-g4-k5": wider(partial(RotateConv2d, taps="profile", angle_groups=4)),
    **{
        f"{name}-k{3 + 2 * more}": wider(partial(RotateConv2d, **options), more)
        for more in (2, 3)
        for name, options in _LONG.items()
    },
}
