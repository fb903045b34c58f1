"""Times of functions, interleaved; the machine's own rate; the peak of the memory that tensors take."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_SAMPLE_SECONDS = 0.005  # a sample is at least this long: a thousand times what the clock resolves
_LEAST_ROUNDS = 7  # the median of fewer is of one of them, and their middle half of two


@dataclass(frozen=True)
class Spread:
    """The middle of some numbers and the range of the middle half of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: list[float]) -> "Spread":
        """The median and the quartiles.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0, 4.0, 100.0])
            Spread(median=3.0, low=2.0, high=4.0)
        """
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)


def measure(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time functions in rounds: each round times every function once, so that all see the same machine.

    Args:
        functions: by name; each has been called before, so that nothing is built or tuned any more.
        seconds: to spend on each function, about; never less than seven rounds.
        device: "cuda" waits for the GPU at both ends of a sample.
        clock: seconds.

    Returns:
        For every name the seconds of one call, one number a round. The n-th numbers belong to the same round.
    """

    def sample(function: Callable[[], object], calls: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(calls):
            function()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - start) / calls

    calls = {name: max(1, round(_SAMPLE_SECONDS / max(1e-9, sample(f, 1)))) for name, f in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = clock() + seconds * len(functions)
    rounds = 0
    while rounds < _LEAST_ROUNDS or clock() < end:
        # Back and forth, so that none is always timed in the wake of the same other.
        for name in list(functions)[:: 1 if rounds % 2 else -1]:
            times[name].append(sample(functions[name], calls[name]))
        rounds += 1
    return times


def ratio(times: Mapping[str, list[float]], name: str, baseline: str) -> Spread:
    """How many times as long as the baseline, round by round.

    Example:
        >>> ratio({"a": [2.0, 4.0, 6.0], "b": [1.0, 2.0, 4.0]}, "a", "b").median
        2.0
    """
    return Spread.of([mine / other for mine, other in zip(times[name], times[baseline], strict=True)])


def multiply_adds(function: Callable[[], object]) -> int:
    """The multiply-adds of the convolutions and matrix products in one call of a function that is not compiled."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops()) // 2


def matrix_rate(dtype: torch.dtype, device: str = "cpu", seconds: float = 0.1) -> float:
    """The multiply-adds a second of the machine's own product of two square matrices."""
    size = 8192 if device == "cuda" else 1024
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(one, other)
    times = measure({"mm": lambda: torch.mm(one, other)}, seconds=seconds, device=device)
    return size**3 / min(times["mm"])


def peak_memory(function: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that tensors made in one call of a function hold at a time, beyond those there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    assert profile.profiler is not None
    results: Any = profile.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        peak = max(peak, held)
    return peak
