"""`rotateconv finish`: a trained float model becomes one of few bits, the same way for every kind of layer."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rotateconv.lab.cli import keys, options
from rotateconv.lab.cli.train import run_training
from rotateconv.lab.config import RunConfig, overridden
from rotateconv.lab.run_config import FINISHED_KEYS

EXAMPLES = options.examples(
    ("To 3-bit weights and 4-bit angles:", "rotateconv finish runs/lines --weight-bits 3 --angle-bits 4"),
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
    out: Annotated[
        Path | None, options.value("--out", "RUN", "The run folder; runs/SOURCE-wBITS-aBITS.", options.RUN)
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    log_with: options.LogWith = None,
) -> None:
    """Train a finished run on with quantized numbers, learning from it or from another one, and keep them.

    The recipe is the run's own with half its epochs and learning rate, for whatever layers it has; models of
    different recipes are put on one footing by --epochs and --lr. Without --teacher the run is its own. SOURCE is never
    changed. The same command goes on after Ctrl-C, and `rotateconv train --resume RUN` does without SOURCE; pack and
    export take the bits from the run.
    """
    from rotateconv.lab.study.finish import finishing

    values, called = keys.read(RunConfig, changes)
    settings = finishing(source, {**values, **overridden(set_ or ())}, called)
    run = out
    if run is None:
        run = Path("runs", f"{source.resolve().name}-w{settings.weight_bits}-a{settings.angle_bits}")
    options.use_device(device)
    again = (run / "config.json").is_file() and not overwrite
    trackers = options.trackers(log_with)
    run_training(settings, run, resume=again, overwrite=overwrite, download=download, trackers=trackers)
