"""`rotateconv finish`: a trained float model becomes one of few bits, the same way for every kind of layer."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rotateconv.lab.cli.shared import bits, keys, options
from rotateconv.lab.cli.shared.budget import bytes_in, refuse_bits, tell_size
from rotateconv.lab.cli.shared.console import facts, make_console
from rotateconv.lab.cli.shared.errors import without_torchrun
from rotateconv.lab.cli.shared.unread import refuse_unread
from rotateconv.lab.cli.train import run_training
from rotateconv.lab.config import RunConfig, overridden
from rotateconv.lab.naming import default_folder
from rotateconv.lab.run_config import FINISHED_KEYS

EXAMPLES = options.examples(
    ("To 3-bit weights and 4-bit angles:", "rotateconv finish runs/lines --weight-bits 3 --angle-bits 4"),
    ("Into 28 KB, more bits where they help most:", "rotateconv finish runs/lines --budget 28KB"),
    (
        "A ternary model that learns from a wider one:",
        "rotateconv finish runs/narrow --weight-bits 2 --teacher runs/dense",
    ),
)


@keys.takes("changes", RunConfig, without=FINISHED_KEYS)
def finish(
    source: Annotated[Path, Parameter(help="Run folder of a trained model without qat.", show_default=False)],
    /,
    *,
    changes: keys.Given | None = None,
    set_: options.Set = None,
    download: options.Download = False,
    budget: Annotated[
        str | None,
        options.value(
            "--budget",
            "BYTES",
            "Bytes of the packed file (40KB, 40000): bits of weights and angles are chosen for each part of the model.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, options.value("--out", "RUN", "The run folder; runs/SOURCE-wBITS-aBITS.", options.RUN)
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    log_with: options.LogWith = None,
) -> None:
    """Train a finished run on with quantized numbers, learning from it or from another one, and keep them.

    The recipe is the run's own with half its epochs and learning rate, for whatever layers it has; to compare models
    whose recipes differ, give all of them the same --epochs and --lr. Without --teacher the run is its own teacher.
    SOURCE is never changed. The same command goes on after Ctrl-C, and `rotateconv train --resume RUN` does without
    SOURCE; pack and export take the bits from the run.
    """
    values, called = keys.read(RunConfig, changes)
    values |= overridden(set_ or ())
    from rotateconv.lab.study.finish import finishing

    settings = finishing(source, values, called)
    refuse_unread(values, called, [settings])
    if budget is not None:
        settings = _within(budget, settings, values, called, download=download)
    run = out or default_folder("finish", settings, source)
    options.use_device(device)
    again = (run / "config.json").is_file() and not overwrite
    trackers = options.trackers(log_with)
    run_training(settings, run, resume=again, overwrite=overwrite, download=download, trackers=trackers)
    if budget is not None:
        tell_size(make_console(), run, bytes_in(budget))


def _within(
    budget: str, settings: RunConfig, values: dict[str, Any], called: dict[str, str], *, download: bool
) -> RunConfig:
    """Return the configuration with the bits that a budget leaves, and print them."""
    from rotateconv.lab.cli.shared.loading import load_shown
    from rotateconv.lab.study.budget import within_budget

    without_torchrun("finish --budget", jobs=False)
    refuse_bits(values, called)
    size = bytes_in(budget)
    console = make_console()
    images = load_shown(settings.images, console, download=download)
    settings, found = within_budget(settings, images, size)
    facts(console, {"bits": bits.described(found.bits), "packed": f"about {found.bytes:,} bytes, norms folded"})
    return settings
