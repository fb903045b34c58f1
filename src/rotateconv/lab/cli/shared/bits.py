"""The bits of a quantized model as options: those that it was trained with, unless others are asked for."""

import warnings
from pathlib import Path

from rotateconv.lab.cli.shared import keys, options
from rotateconv.lab.config import RunConfig, changed
from rotateconv.lab.run_config import bits_keys
from rotateconv.quantization.bits import BITS_KEYS, Bits

_HELP = {
    "weight_bits": "Of a weight of a convolution, 1 to 8.",
    "angle_bits": "Of an angle, 2 to 8.",
    "dense_bits": "Of a weight of the stem, of 1x1 convolutions and linear layers, 1 to 8.",
    "weight_levels": "Values of such a weight, to 2^bits; an odd number of them has a 0.",
    "profile_bits": "Of a profile, 2 to 8; without it they are of bfloat16.",
    "layer_bits": "Other bits of layers, of weight and angle, by name or pattern: 'layer3.*=2+3'.",
}

takes_bits = keys.takes("asked", RunConfig, only=BITS_KEYS, group=options.OTHER, help=_HELP)
"""Lets a command take the bits of a model as options, for `choose`."""


def choose(asked: keys.Given | None, source: Path, trained: Bits | None, default: Bits) -> Bits:
    """Return the bits that were asked for, else those that a model was trained with or has, else the default.

    A warning about the source says where they are others than its own.
    """
    own = trained or default
    values, called = keys.read(RunConfig, asked)
    for key in ("weight_bits", "angle_bits", "dense_bits"):
        if values.get(key, 0) is None:  # none: as if it was not given
            del values[key]
    weight, angle = values.get("weight_bits", own.weight), values.get("angle_bits", own.angle)
    if weight != own.weight:
        own = own._replace(levels=None)
    if (weight, angle) != (own.weight, own.angle):
        own = own._replace(layers=())
    found = changed(RunConfig(), {**bits_keys(own), **values, "qat": True}, called).bits
    assert found is not None  # with qat
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
