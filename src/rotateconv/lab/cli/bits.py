"""The bits of a quantized model as options: those that it was trained with, unless others are asked for."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv.errors import ConfigError
from rotateconv.lab.run_config import bits_by_name
from rotateconv.quantization.bits import Bits

_Whole = Parameter(metavar="INTEGER", show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
    """The bits that a command is given; None where it says nothing."""

    weight_bits: Annotated[int | None, _Whole, Parameter(help="Of a weight of a convolution, 1 to 8.")] = None
    angle_bits: Annotated[int | None, _Whole, Parameter(help="Of an angle, 2 to 8.")] = None
    dense_bits: Annotated[
        int | None, _Whole, Parameter(help="Of a weight of the stem, of 1x1 convolutions and linear layers, 1 to 8.")
    ] = None
    weight_levels: Annotated[
        int | None, _Whole, Parameter(help="Values of such a weight, to 2^bits; an odd number of them has a 0.")
    ] = None
    profile_bits: Annotated[
        int | None, _Whole, Parameter(help="Of a profile, 2 to 8; without it they are of bfloat16.")
    ] = None

    layer_bits: Annotated[
        str | None,
        Parameter(
            metavar="A,B",
            show_default=False,
            help="Other bits of layers, of weight and angle, by name or pattern: 'layer3.*=2+3'.",
        ),
    ] = None

    def choose(self, source: Path, trained: Bits | None, default: Bits) -> Bits:
        """Return the bits that were asked for, else those that a model was trained with or has, else the default.

        A warning about the source says where they are others than its own.
        """
        own = trained or default
        weight = own.weight if self.weight_bits is None else self.weight_bits
        levels = own.levels if self.weight_levels is None and weight == own.weight else self.weight_levels
        angle = own.angle if self.angle_bits is None else self.angle_bits
        profile = own.profile if self.profile_bits is None else self.profile_bits
        dense = own.dense if self.dense_bits is None else self.dense_bits
        layers = dict(own.layers) if (weight, angle) == (own.weight, own.angle) else {}
        if self.layer_bits is not None:
            layers = bits_by_name(self.layer_bits.split(","), angle)
        found = Bits.of(weight, angle, dense, levels, profile, layers)
        if trained is not None and found != trained:
            warnings.warn(
                f"{source} has {described(trained)}, and is quantized again to {described(found)}: less accurate than "
                "a model that was trained with these bits",
                stacklevel=2,
            )
        return found


def described(bits: Bits) -> str:
    """Return the bits in words.

    Example:
        >>> described(Bits())
        '4 bits per weight, 5 per angle, 8 in stem, 1x1 and linear layers'
    """
    levels = "" if bits.levels is None else f" ({bits.levels} levels)"
    profile = "" if bits.profile is None else f", {bits.profile} in profiles"
    own = "".join(f", {weight} + {angle} in {name}" for name, (weight, angle) in bits.layers)
    rest = f"{bits.dense} in stem, 1x1 and linear layers{profile}{own}"
    return f"{bits.weight} bits per weight{levels}, {bits.angle} per angle, {rest}"


def refuse(values: Mapping[str, object], called: Mapping[str, str]) -> None:
    """Raise ConfigError where bits are given that a budget decides."""
    for key in ("weight_bits", "angle_bits", "weight_levels", "layer_bits"):
        if values.get(key) is not None:
            raise ConfigError(f"--budget chooses the bits: leave {called.get(key, key)} out, or --budget")
