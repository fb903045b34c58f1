"""Whole numbers below a bound as few bytes, in a form that a graph of ONNX reads back with small numbers only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Radix:
    """How whole numbers below a bound lie in bytes: as `parts` digits each, `count` of which fit a byte.

    ::

        number = Σ_i digit[i] · base^i,      byte = Σ_j digit[j] · base^j,      base^count <= 256

    The digits of all numbers follow each other, the lowest first. Nothing that is computed on the way back is larger
    than a byte or a number: every runtime has it exactly, also one that computes whole numbers in 32 bits or as floats.

    Attributes:
        bound: Number of values.
        base: Of a digit: 2, 3, 4, 16 or 256.
        parts: Digits of a number.
        count: Digits of a byte.

    Example:
        >>> Radix.of(15), Radix.of(32)
        (Radix(bound=15, base=16, parts=1, count=2), Radix(bound=32, base=2, parts=5, count=8))
    """

    bound: int
    base: int
    parts: int
    count: int

    @classmethod
    def of(cls, bound: int) -> "Radix":
        """The layout with the fewest bits per number; of equal ones, that with the fewest digits."""
        choices = [cls(bound, base, _digits(bound, base), count) for base, count in _BASES]
        return min(choices, key=lambda radix: (radix.parts / radix.count, radix.parts))

    def filled(self, size: int) -> int:
        """How many numbers are in the bytes of so many: zeros fill the last ones.

        Example:
            >>> Radix.of(3).filled(6), Radix.of(7).filled(1)
            (10, 8)
        """
        digits = self.count * self.parts if self.parts > 1 and size * self.parts % self.count else self.count
        return -(-size * self.parts // digits) * digits // self.parts

    def pack(self, numbers: NDArray[np.integer]) -> NDArray[np.uint8]:
        """The bytes, (bytes, 1).

        Example:
            >>> Radix.of(16).pack(np.array([1, 2, 3]))
            array([[33],
                   [ 3]], dtype=uint8)
        """
        filled = np.zeros((self.filled(numbers.size), 1), dtype=np.int64)
        filled[: numbers.size, 0] = numbers.ravel()
        digits = filled // self.base ** np.arange(self.parts) % self.base
        return (digits.reshape(-1, self.count) @ self.base ** np.arange(self.count))[:, None].astype(np.uint8)


_BASES = ((2, 8), (3, 5), (4, 4), (16, 2), (256, 1))


def _digits(bound: int, base: int) -> int:
    parts = 1
    while base**parts < bound:
        parts += 1
    return parts
