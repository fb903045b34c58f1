"""Values of runs that differ in the seed alone, and what they say together."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Values of runs that differ in the seed alone."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Sample | None":
        """Return the sample, or None without values or where one is missing."""
        found = list(values)
        known = tuple(value for value in found if value is not None)
        return cls(known) if known and len(known) == len(found) else None

    @property
    def n(self) -> int:
        """How many."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Their standard deviation with n - 1, None for one value."""
        return statistics.stdev(self.values) if self.n > 1 else None


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of a sample's values, or None without values or where one is missing.

    Example:
        >>> mean_of([1, 2]), mean_of([1, None]), mean_of([])
        (1.5, None, None)
    """
    sample = Sample.of(values)
    return None if sample is None else sample.mean
