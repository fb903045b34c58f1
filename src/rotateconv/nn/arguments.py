"""The arguments of nn.Conv2d, checked when a layer is built: one sentence with what was expected and found."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn

from rotateconv.errors import InputError
from rotateconv.kernels.line import check_kernel_size

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Size = int | tuple[int, int]


def square_kernel_size(kernel_size: Size) -> int:
    """The k of a k x k kernel given as k or (k, k); ValueError unless k is odd and at least 3."""
    height, width = _pair("kernel_size", kernel_size, least=1)
    if height != width:
        raise InputError(f"kernel_size must be one odd number >= 3 or an equal pair, got {kernel_size}")
    check_kernel_size(height)
    return height


def positive(name: str, value: int) -> int:
    """`value`, if it is an integer of at least 1."""
    if not _is_integer(value) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}")
    return value


def pair(name: str, value: Size, least: int) -> tuple[int, int]:
    """`value` as a (height, width) pair of integers of at least `least`."""
    return _pair(name, value, least)


def padding_pair(
    padding: Size | str, kernel_size: int, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """The padding on each side, in pixels; an odd kernel needs the same on both sides also for "same".

    Args:
        padding: a number, a (height, width) pair, "same" or "valid".
        kernel_size: k, odd.
        stride: (height, width); "same" needs (1, 1), as in nn.Conv2d.
        dilation: (height, width).

    Returns:
        (height, width).

    Raises:
        ValueError: If padding is none of the above, or negative, or "same" with a stride.
    """
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise InputError(f"padding must be a number, a pair, 'same' or 'valid', got {padding!r}")
        if padding == "valid":
            return 0, 0
        if stride != (1, 1):
            raise InputError(f"padding='same' needs stride 1, got stride {stride}: give the padding as a number")
        half = kernel_size // 2
        return half * dilation[0], half * dilation[1]
    return _pair("padding", padding, least=0)


def divides(name: str, groups: int, **channels: int) -> None:
    """Raise ValueError unless the number of groups divides every one of the named channel counts."""
    for what, count in channels.items():
        if count % groups:
            raise InputError(f"{what} must be divisible by {name}, got {what}={count} and {name}={groups}")


def check_padding_mode(padding_mode: str) -> None:
    """Raise ValueError unless nn.Conv2d knows the padding mode."""
    if padding_mode not in _PADDING_MODES:
        raise InputError(f"padding_mode must be one of {', '.join(_PADDING_MODES)}, got {padding_mode!r}")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise ValueError unless parameters of this dtype can be learned."""
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"dtype must be a floating-point type, got {dtype}")


def arguments_of(conv: nn.Module) -> dict[str, Any]:
    """What nn.Conv2d was called with to give this convolution, or a layer in its place: device and dtype too."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    given = {name: getattr(conv, name) for name in names}
    weight: torch.Tensor = conv.weight  # type: ignore[assignment]
    return {**given, "bias": conv.bias is not None, "device": weight.device, "dtype": weight.dtype}


def same_convolution(conv: nn.Module) -> None:
    """Raise unless `conv` is an nn.Conv2d whose kernel can be replaced by line segments."""
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"expected an nn.Conv2d, got {type(conv).__name__}")
    square_kernel_size(conv.kernel_size)  # type: ignore[arg-type]
    check_dtype(conv.weight.dtype)


def _pair(name: str, value: Size, least: int) -> tuple[int, int]:
    values = value if isinstance(value, Sequence) else (value, value)
    if isinstance(value, str) or len(values) != 2 or not all(_is_integer(v) and v >= least for v in values):
        raise InputError(f"{name} must be an integer >= {least} or a pair of them, got {value!r}")
    return int(values[0]), int(values[1])


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
