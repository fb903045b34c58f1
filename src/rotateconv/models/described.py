"""A model that a file describes: its arguments are checked, and its size is known before it takes memory."""

import math
from collections.abc import Mapping
from typing import cast

from torch import nn

from rotateconv.errors import InputError
from rotateconv.models.registry import BuildArguments, build_model
from rotateconv.nn.outline import outlined

MAX_PARAMETERS = 50_000_000
"""Numbers (parameters and buffers) of a described model above which it is refused, unless the caller allows more: 29
times those of the largest ResNet here, 200 MB."""

_WHOLE = ("num_classes", "in_channels", "growth")
_KEYS = tuple(BuildArguments.__annotations__)


def check_build(arguments: object) -> BuildArguments:
    """Return the arguments of `build_model` as a file gives them, if each has its type.

    Raises:
        ValueError: If they are no mapping, one is unknown or has another type, or the name of the model is missing.

    Example:
        >>> check_build({"name": "resnet20", "width": "wide"})
        Traceback (most recent call last):
        rotateconv.errors.InputError: width of the model must be a number above 0, got 'wide'
    """
    if not isinstance(arguments, Mapping) or "name" not in arguments:
        raise InputError(f"the arguments of build_model must be an object with a name, got {_short(arguments)}")
    if unknown := sorted(set(arguments) - set(_KEYS)):
        raise InputError(f"the arguments of build_model are {', '.join(_KEYS)}, got {_short(unknown[0])}")
    for key, value in arguments.items():
        if key in ("name", "conv"):
            right, what = isinstance(value, str), "a text"
        elif key in _WHOLE:
            right = (type(value) is int and 0 < value < 2**31) or (key == "growth" and value is None)
            what = "a whole number above 0"
        else:
            right = type(value) in (int, float) and math.isfinite(value) and (value > 0 or key == "dropout")
            what = "a number above 0"
        if not right:
            raise InputError(f"{key} of the model must be {what}, got {_short(value)}")
    return cast(BuildArguments, arguments)


def outline_model(arguments: BuildArguments) -> nn.Module:
    """Return the model that `build_model` makes of these arguments, without values.

    Raises:
        ValueError: If build_model cannot build it, or its sizes are beyond any memory.

    Example:
        >>> outline_model({"name": "resnet20", "width": 100.0}).classifier
        Linear(in_features=6400, out_features=10, bias=True)
    """
    try:
        with outlined():
            return build_model(**arguments)
    except (RuntimeError, OverflowError, TypeError):  # sizes that no integer of torch holds
        raise InputError("its model is larger than any memory") from None


def check_size(model: nn.Module, most: int, advice: str = "give max_parameters") -> None:
    """Raise ValueError if a model has more than `most` numbers: parameters and buffers; with advice to who means it.

    Example:
        >>> check_size(outline_model({"name": "resnet20"}), MAX_PARAMETERS)
    """
    count = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if count > most:
        raise InputError(f"its model has {count:,} numbers, more than the {most:,} allowed: if you trust it, {advice}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
