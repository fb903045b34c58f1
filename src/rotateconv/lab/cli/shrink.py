"""`rotateconv shrink`: the most accurate file of so many bytes that a trained model can become."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

from rich.console import Console

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.convert import NAMES, OF_THE_SOURCE
from rotateconv.lab.cli.shared import executors, keys, options
from rotateconv.lab.cli.shared.budget import bytes_in
from rotateconv.lab.cli.shared.console import facts, make_console
from rotateconv.lab.cli.shared.errors import going_on, without_torchrun
from rotateconv.lab.cli.shared.settings import check_names, fine_tuned
from rotateconv.lab.config import RunConfig, overridden
from rotateconv.lab.naming import counted, default_folder
from rotateconv.lab.run_config import FINISHED_KEYS, QAT_KEYS
from rotateconv.lab.study.shrink_record import ONNX, PACKED, TABLE, Count, ShrinkRecord

EXAMPLES = options.examples(
    ("A run of this library in 40,000 bytes:", "rotateconv shrink runs/dense --budget 40KB"),
    (
        "Your own model and its weights:",
        "rotateconv shrink model.pt --model m:f --data folder --data-dir . --budget 90KB",
    ),
    (
        "By the packed file, and trained for longer:",
        "rotateconv shrink runs/dense --budget 30KB --count rcp --epochs 20",
    ),
)
_FIXED = (*OF_THE_SOURCE, *(key for key in FINISHED_KEYS if key not in ("recipe", "data")), *QAT_KEYS, "prune")
_SHOWN = {key: NAMES[key] for key in ("mean", "std")}


@keys.takes("changes", RunConfig, without=_FIXED, names=_SHOWN)
def shrink(
    source: options.TrainedSource,
    /,
    *,
    budget: Annotated[
        str, options.value("--budget", "BYTES", "Of the file: 40KB, 40000 or 0.1MB.", show_default=False)
    ],
    count: Annotated[
        Count,
        options.value(
            "--count", "onnx|rcp", "Whose bytes: the compact ONNX file's, which runs anywhere, or the packed file's."
        ),
    ] = "onnx",
    model: options.WeightsBuiltBy = None,
    changes: keys.Given | None = None,
    dense_bits: Annotated[
        int, options.value("--dense-bits", "INTEGER", "Of stem, 1x1 and linear layers.", show_default=True)
    ] = 8,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    out: Annotated[
        Path | None, options.value("--out", "DIR", "For files and report; runs/SOURCE-BUDGET.", options.RUN)
    ] = None,
    jobs: executors.Jobs = None,
    device: options.Device = None,
) -> None:
    """Write a trained model into so many bytes, in the form and with the bits with which it loses least.

    The model is tried as it is and as RotateConv layers of every kind (a run of this library also as kernel codebooks),
    without training at the largest bits that fit; the best third, and the model as it is, also with bits of their own
    for each part; then the better of both trained with quantized numbers and their original (or the run of --teacher)
    as the teacher, for a quarter of the epochs; then the best two for all of them. A narrower model is another SOURCE.
    The validation split decides, and the test split is evaluated once, in the end. DIR gets model.onnx, model.rcp and
    a report of all that was tried. SOURCE is never changed. The same command goes on after Ctrl-C.
    """
    without_torchrun("shrink")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be 1 or more, not {jobs}")
    size = bytes_in(budget)
    values, called = keys.read(RunConfig, changes, _SHOWN)
    extra = overridden(set_ or ())
    if fixed := sorted(set(extra) & set(_FIXED) - {"data", "recipe"}):
        raise ConfigError(f"{fixed[0]} is the source's, or searched: leave it out")
    settings = fine_tuned(source, model, config, {**values, **extra}, called, tries_lines=True)
    folder = out or default_folder("shrink", settings, source, size)
    options.use_device(device)
    _shrink(settings, folder, size, count, dense_bits, jobs)


def _shrink(settings: RunConfig, out: Path, budget: int, count: Count, dense_bits: int, jobs: int | None) -> None:
    """Search, show how it goes, and say what was written."""
    from rotateconv.lab.cli.shared.loading import load_shown
    from rotateconv.lab.cli.shared.shrink_progress import ShrinkProgress
    from rotateconv.lab.data.description import DataDescription
    from rotateconv.lab.study.shrink import shrink as library

    console = make_console()
    check_names(settings.data, settings.model, settings.conv)
    images = load_shown(settings.images, console)
    progress = ShrinkProgress(console, settings, DataDescription.of(images), out)
    with going_on(lambda: "what is tried is kept; go on"), closing(progress):
        found = library(
            settings,
            out,
            budget=budget,
            data=images,
            count=count,
            dense_bits=dense_bits,
            jobs=jobs,
            on_event=progress,
        )
    _tell(console, found, out)


def _tell(console: Console, found: ShrinkRecord, out: Path) -> None:
    """Print what was written."""
    winner = found.winner
    assert winner is not None
    onnx = {} if winner.onnx_bytes is None else {"onnx": f"{out / ONNX}: {winner.onnx_bytes:,} bytes"}
    trained = f"trained for {counted(winner.epochs, 'epoch')}" if winner.epochs else "not trained"
    facts(
        console,
        {
            "best": f"{winner.name}, {trained}",
            "validation": f"{winner.validation_accuracy:.2f} %, of the source's {found.source_accuracy:.2f} % in "
            f"{found.source_bytes:,} bytes",
            "test": f"{winner.test_accuracy:.2f} %, evaluated once",
            **onnx,
            "packed": f"{out / PACKED}: {winner.packed_bytes:,} bytes",
            "report": str(out / TABLE),
        },
    )
