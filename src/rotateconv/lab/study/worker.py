"""A process that trains what it reads from its standard input: `python -m rotateconv.lab.study.worker COMMAND`.

One line of JSON a run comes in: config, out, resume, overwrite. One line of JSON an event goes out: the events
of `fit`, then "done", "diverged", "interrupted" or "failed". The process ends with its input.
"""

import json
import os
import signal
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from types import FrameType
from typing import Any, TextIO

_EVERY = 0.2  # seconds between two steps that are told


def main() -> None:
    """Do one run after another until the input ends."""
    from rotateconv.lab.train.allocator import keep_freed_memory

    stop = _Stop()
    out = _take_output()
    keep_freed_memory()
    # The parent has read the same data and shown what there was to warn of.
    warnings.simplefilter("ignore")
    sys.argv = sys.argv[1:] or sys.argv  # the run folder names the command that the user gave
    for line in sys.stdin:
        if stop.requested:
            break
        _tell(out, *_do(json.loads(line), stop, out))


class _Stop:
    """A SIGINT between two runs, or while images are loaded; during a run `fit` listens itself."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def _do(task: dict[str, Any], stop: _Stop, out: TextIO) -> tuple[str, dict[str, Any]]:
    """Do a run and return its last event."""
    from rotateconv.errors import INTERRUPTED
    from rotateconv.lab.config import from_json
    from rotateconv.lab.data.images import load_images
    from rotateconv.lab.exit_codes import explain
    from rotateconv.lab.train.loop import fit

    told_at = 0.0

    def on_event(name: str, values: dict[str, Any]) -> None:
        nonlocal told_at
        if stop.requested:
            raise KeyboardInterrupt
        if name == "step" and time.monotonic() - told_at < _EVERY:
            return
        told_at = time.monotonic()
        if name in ("start", "step", "epoch", "warning"):
            _tell(out, name, values)

    try:
        config = from_json(json.dumps(task["config"]))
        images = _loaded.get(config.data) or load_images(config)
        _loaded[config.data] = images
        if stop.requested:
            return "interrupted", {}
        summary = fit(
            config, task["out"], data=images, resume=task["resume"], overwrite=task["overwrite"], on_event=on_event
        )
    except Exception as error:
        failure = explain(error)
        if failure.diverged:
            return "diverged", {"message": failure.sentence}
        if failure.code == INTERRUPTED:
            return "interrupted", {}
        if failure.unexpected:
            traceback.print_exc()
        return "failed", asdict(failure)
    return "done", {"test_accuracy": summary["test_accuracy"], "seconds": summary["seconds"]}


_loaded: dict[str, Any] = {}  # the runs of a comparison share their images


def _take_output() -> TextIO:
    """Return standard output for events alone; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _tell(out: TextIO, name: str, values: dict[str, Any]) -> None:
    out.write(json.dumps({"event": name, "values": values}) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
