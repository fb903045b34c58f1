"""The bits of a quantized model as options: those that it was trained with, unless others are asked for."""

import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv.lab.run_config import Bits

WeightBits = Annotated[
    int | None,
    Parameter(
        name="--weight-bits", metavar="INTEGER", help="Of a weight of a convolution, 1 to 8.", show_default=False
    ),
]
AngleBits = Annotated[
    int | None, Parameter(name="--angle-bits", metavar="INTEGER", help="Of an angle, 2 to 8.", show_default=False)
]
DenseBits = Annotated[
    int | None,
    Parameter(
        name="--dense-bits",
        metavar="INTEGER",
        help="Of a weight of the stem, of 1x1 convolutions and linear layers, 1 to 8.",
        show_default=False,
    ),
]


def choose(source: Path, trained: Bits | None, asked: tuple[int | None, int | None, int | None], default: Bits) -> Bits:
    """Return the bits that were asked for, else those that a model has; a warning where the two are not the same.

    Args:
        source: Of the model, for the warning.
        trained: Bits that the model was trained with or has, None for one that is not quantized.
        asked: Those of the command; None where it says nothing.
        default: For a model that is not quantized.
    """
    found = Bits(*(given if given is not None else own for given, own in zip(asked, trained or default, strict=True)))
    if trained is not None and found != trained:
        warnings.warn(
            f"{source} has {described(trained)}, and is quantized again to {described(found)}: less accurate than a "
            "model that was trained with these bits",
            stacklevel=2,
        )
    return found


def described(bits: Bits) -> str:
    """Return the bits in words.

    Example:
        >>> described(Bits())
        '4 bits per weight, 5 per angle, 8 in stem, 1x1 and linear layers'
    """
    return f"{bits.weight} bits per weight, {bits.angle} per angle, {bits.dense} in stem, 1x1 and linear layers"
