"""How many bits each kind of number of a model has: one value, for all that quantizes, trains, packs and exports."""

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

from rotateconv.errors import InputError


class BitsArguments(TypedDict):
    """What `quantize`, `pack` and the like call the numbers of `Bits`, in their order."""

    weight_bits: int
    angle_bits: int
    dense_bits: int
    weight_levels: int | None
    profile_bits: int | None
    layer_bits: Mapping[str, tuple[int, int]] | None


BITS_KEYS = tuple(BitsArguments.__annotations__)
"""Its names."""


class Bits(NamedTuple):
    """Bits of a quantized number: of a convolution's weight, of an angle, of the stem, 1x1 and linear layers.

    Also the levels of a weight, where they are not those that so many bits have by themselves, and the bits of a
    profile, where it is not of bfloat16; and other bits of weight and angle for layers by patterns of their names, of
    which the last one that fits counts.
    """

    weight: int = 4
    angle: int = 5
    dense: int = 8
    levels: int | None = None
    profile: int | None = None
    layers: tuple[tuple[str, tuple[int, int]], ...] = ()

    @classmethod
    def of(
        cls,
        weight_bits: int,
        angle_bits: int,
        dense_bits: int,
        weight_levels: int | None,
        profile_bits: int | None,
        layer_bits: Mapping[str, tuple[int, int]] | None,
    ) -> "Bits":
        """The arguments of `quantize`, `pack` and the like as one value."""
        layers = tuple((layer_bits or {}).items())
        return cls(weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layers)

    @property
    def arguments(self) -> BitsArguments:
        """Of `quantize`, `pack` and the like."""
        return {
            "weight_bits": self.weight,
            "angle_bits": self.angle,
            "dense_bits": self.dense,
            "weight_levels": self.levels,
            "profile_bits": self.profile,
            "layer_bits": dict(self.layers) or None,
        }

    @property
    def levels_of_weight(self) -> int:
        """The number of levels of a weight.

        Raises:
            ValueError: If codes of so many bits are too few for the levels, or one bit less would do.

        Example:
            >>> Bits(weight=2).levels_of_weight, Bits(weight=2, levels=4).levels_of_weight
            (3, 4)
        """
        bits, levels = self.weight, self.levels
        if levels is None:
            return levels_of(bits)
        least, most = 2 ** (bits - 1) + 1, 2**bits if bits < 8 else 255
        right = isinstance(levels, int) and not isinstance(levels, bool) and least <= levels <= most
        if not right or (bits == 8 and levels != most):
            allowed = f"from {least} to {most}" if 1 < bits < 8 else f"{most}"
            raise InputError(f"weight_levels must be {allowed} with {bits} bits, got {levels!r}")
        return levels

    def own_levels(self, bits: int) -> int:
        """The number of levels of a weight in a layer with bits of its own: without a 0 where the others have none.

        Example:
            >>> Bits(weight=2, levels=4).own_levels(3), Bits(weight=2).own_levels(3), Bits(weight=1).own_levels(2)
            (8, 7, 3)
        """
        even = self.levels is not None and self.levels % 2 == 0
        return 2**bits if even and bits < 8 else levels_of(bits)

    def check(self) -> None:
        """Raise InputError for a number of bits out of its range, or levels that do not fit."""
        for name, bits, least in (
            ("weight_bits", self.weight, 1),
            ("angle_bits", self.angle, 2),
            ("dense_bits", self.dense, 1),
            ("profile_bits", 8 if self.profile is None else self.profile, 2),
            *((f"layer_bits of {pattern}: a weight's", bits[0], 1) for pattern, bits in self.layers),
            *((f"layer_bits of {pattern}: an angle's", bits[1], 2) for pattern, bits in self.layers),
        ):
            if not isinstance(bits, int) or isinstance(bits, bool) or not least <= bits <= 8:
                raise InputError(f"{name} must be a whole number from {least} to 8, got {bits!r}")
        _ = self.levels_of_weight


def levels_of(bits: int) -> int:
    """The number of levels that a weight of so many bits has unless others are asked for: 2^bits - 1, one of them 0.

    Example:
        >>> [levels_of(bits) for bits in (1, 2, 4)]
        [2, 3, 15]
    """
    return 2 if bits == 1 else 2**bits - 1
