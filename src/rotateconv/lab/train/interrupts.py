"""Ctrl-C and SIGTERM as a request that a training loop reads between two steps."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")


class Interrupts:
    """A context where the first SIGINT or SIGTERM only sets `requested`; a second one raises KeyboardInterrupt at once.

    SIGTERM is what Slurm and containers send before they kill. A KeyboardInterrupt in the middle of an optimizer
    step would leave half of the weights updated, and nothing could be saved. Outside the main thread signals cannot
    be caught, and the context does nothing.

    Of several processes, one may leave before the others wait for it, such as while images are loaded. What they
    meet then, a RuntimeError of the connection, becomes a KeyboardInterrupt: it is how the stop reached them.

    Example:
        >>> with Interrupts() as interrupts:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupts.requested
        True
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupts":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            signals = signal.SIGINT, signal.SIGTERM
            self._previous = {number: signal.signal(number, self._on_signal) for number in signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        if self.requested and isinstance(error, RuntimeError) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise KeyboardInterrupt from error

    def deferred(self, callback: Callable[[T], object] | None) -> Callable[[T], None]:
        """Return a callback, or none, whose KeyboardInterrupt only asks for a stop: it cannot tear a step apart."""

        def call(value: T) -> None:
            try:
                if callback is not None:
                    callback(value)
            except KeyboardInterrupt:
                self.requested = True

        return call

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
