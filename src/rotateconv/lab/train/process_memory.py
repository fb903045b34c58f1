"""The most memory that this process has held, and keeping what it has freed."""

import ctypes
import os
import sys

# mallopt's numbers of the size from which a block is mapped by itself, and of the free end of the heap that is kept.
_MALLOC = {-3: 1 << 30, -1: (1 << 31) - 1}
_BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the C library keep the memory that tensors free, for the next ones, in this whole process.

    By default glibc hands the memory of a step's activations back to the system, which then maps it again page by page
    in the next step, more or fewer pages by chance from process to process. For commands; a library must not decide it.

    Returns:
        Whether it was done: not without glibc, and not where the user's environment sets these numbers.

    Reference:
        mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD.
    """
    if any(name in os.environ for name in _BY_HAND):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not a POSIX system, or another C library
        return False
    results = [mallopt(number, value) for number, value in _MALLOC.items()]  # both, whatever the first one says
    return results == [1, 1]


def peak_memory() -> int:
    """Return the largest resident set of this process since it began, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_gpu_memory() -> int | None:
    """Return the most memory that tensors held on the GPU since the last call, in bytes; None without one."""
    import torch  # not for the sake of the others, which a command calls before it loads torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
