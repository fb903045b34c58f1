"""Runs of one process that take turns, a step each: a small model leaves most of a GPU idle.

Each run is done by a thread of its own, as if it were alone; one thread runs at a time, and passes on after its step.
On a GPU each has a stream of its own, so that what they have launched runs side by side.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from rotateconv.lab.train.device import chosen_device


class Turns:
    """The order of threads that take turns, and the random state of each, as PyTorch has one for all.

    Example:
        >>> turns = Turns()
        >>> with turns.taken():
        ...     turns.pass_on()  # nobody waits: it goes on
    """

    def __init__(self) -> None:
        self._change = threading.Lock()
        self._order: deque[threading.Semaphore] = deque()  # one for each, whose owner waits for it; first who has it

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take turns with the others for as long as the context lasts, which begins with a turn."""
        device = chosen_device()
        stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
        mine = threading.Semaphore(0)
        with self._change:
            self._order.append(mine)
            waits = len(self._order) > 1
        if waits:
            mine.acquire()
        try:
            with stream:
                yield
        finally:
            with self._change:
                self._order.popleft()
                self._begin()

    def pass_on(self) -> None:
        """Let every other thread have its turn, and go on as if there were none."""
        if len(self._order) == 1:
            return
        cpu = torch.get_rng_state()
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        with self._change:
            mine = self._order[0]
            self._order.rotate(-1)
            self._begin()
        mine.acquire()
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)

    def _begin(self) -> None:
        """Give the first one its turn, and wake nobody else."""
        if self._order:
            self._order[0].release()
