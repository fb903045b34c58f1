"""Whole numbers as few bytes, in forms that a graph of ONNX reads back with small numbers only."""

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


@dataclass(frozen=True, eq=False)
class Rice:
    """How numbers of which some are frequent lie in fewer bits: the Golomb-Rice code of their ranks.

    With the values ordered by how often they are there, the most frequent first, the number of rank r is written as
    ⌊r / 2^low⌋ zeros and a one, and r mod 2^low in `low` bits.

    Attributes:
        table: The values by rank.
        low: Bits of a rank that are written as they are, for all numbers apart from the rest.
        marks: The zeros and ones of all numbers, and of more of rank 0 that fill the last byte.
        rest: For each of these numbers, r mod 2^low.

    Example:
        >>> code = Rice.of(np.array([5, 5, 2, 5, 5, 5, 2, 9]))
        >>> code.table, code.low, code.marks
        (array([5, 2, 9], dtype=uint8), 0, array([1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1]))

    Reference:
        Rice, Plaunt, "Adaptive variable-length coding for efficient compression of spacecraft television data", IEEE
        Transactions on Communication Technology 1971.
    """

    table: NDArray[np.uint8]
    low: int
    marks: NDArray[np.integer]
    rest: NDArray[np.integer]

    @classmethod
    def of(cls, values: NDArray[np.integer]) -> "Rice":
        """The code with the fewest bits, of a vector of numbers from 0 to 255."""
        count = np.bincount(values)
        order = np.argsort(-count, kind="stable")
        order = order[count[order] > 0]
        rank = np.argsort(order)[np.searchsorted(np.sort(order), values)]
        low = min(range(9), key=lambda low: int((rank >> low).sum()) + low * len(rank))
        rank = np.append(rank, np.zeros(-(len(rank) + int((rank >> low).sum())) % 8, dtype=rank.dtype))
        ends = np.cumsum((rank >> low) + 1) - 1
        marks = np.zeros(ends[-1] + 1, dtype=np.int64)
        marks[ends] = 1
        return cls(order.astype(np.uint8), low, marks, rank & (2**low - 1))

    @property
    def bytes(self) -> int:
        """Of the table, the marks and the rest."""
        return len(self.table) + len(self.marks) // 8 + -(-len(self.rest) * self.low // 8)


_BASES = ((2, 8), (3, 5), (4, 4), (16, 2), (256, 1))


def _digits(bound: int, base: int) -> int:
    parts = 1
    while base**parts < bound:
        parts += 1
    return parts
