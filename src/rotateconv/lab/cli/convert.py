"""`rotateconv convert`: a trained net of dense convolutions becomes one of lines."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rotateconv.errors import ConfigError, RunInterrupted
from rotateconv.lab.cli import options
from rotateconv.lab.config import RunConfig

if TYPE_CHECKING:
    from rotateconv.lab.study.conversions import ConversionRecord

EXAMPLES = options.examples(
    ("A run of this library:", "rotateconv convert runs/digits-resnet20-conv3x3-seed0 --taps profile"),
    (
        "Your own net and its weights:",
        "rotateconv convert net.pt --model mine:net --data folder --data-dir photos",
    ),
    ("To few bits at once:", "rotateconv convert runs/dense --taps free --qat --out runs/small"),
    ("Layer by layer, in three stages:", "rotateconv convert runs/dense --stages 3 --epochs 6"),
)
_PANEL = "Conversion"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Run folder of a trained net, or with --model its weights.", show_default=False
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PACKAGE.MODULE:FUNCTION",
            help="What builds the net of a weights file (safetensors, or a state dict of torch.save).",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    taps: Annotated[
        str,
        typer.Option(
            "--taps",
            metavar="NAME",
            help="free (rotate4), shared (rotate2) or profile (rotate2p).",
            rich_help_panel=_PANEL,
        ),
    ] = "free",
    path: Annotated[
        str, typer.Option("--path", metavar="NAME", help="circle or square.", rich_help_panel=_PANEL)
    ] = "circle",
    angle_groups: Annotated[
        int | None,
        typer.Option("--angle-groups", help="Groups of output channels that share angles.", rich_help_panel=_PANEL),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", metavar="A,B", help="Convert these layers alone, such as layer3.*.", rich_help_panel=_PANEL
        ),
    ] = None,
    stages: Annotated[
        int,
        typer.Option(
            "--stages",
            help="Convert a part of the layers at a time, the nearest fits first, each with its part of the epochs.",
            rich_help_panel=_PANEL,
        ),
    ] = 1,
    qat: options.Qat = None,
    weight_bits: options.WeightBits = None,
    angle_bits: options.AngleBits = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    image_size: options.ImageSize = None,
    recipe: options.Recipe = None,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of order and augmentation.", rich_help_panel="Training")
    ] = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run folder; runs/SOURCE-TAPS.", rich_help_panel="Run"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again in a folder that holds a run.", rich_help_panel="Run")
    ] = False,
) -> None:
    """Convert a trained net to lines, fine-tune it with its original as the teacher, and report what it cost.

    A run's own recipe with half its epochs and learning rate is what it is fine-tuned with, unless told otherwise;
    its data too. A net of your own may want its own normalisation: --set mean=0.5,0.5,0.5 --set std=0.2,0.2,0.2.
    SOURCE is never changed. The same command goes on after Ctrl-C.
    """
    changes = {
        "convert_taps": taps,
        "convert_path": path,
        "convert_angle_groups": angle_groups,
        "convert_only": only,
        "qat": qat,
        "weight_bits": weight_bits,
        "angle_bits": angle_bits,
        "data_dir": data_dir and str(data_dir),
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "precision": precision,
        "compile": compile,
    }
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("convert runs in one process: run it without torchrun")
    if model is None:
        options.refuse({"--recipe": recipe, "--config": config, "--data": data}, "a run folder, which has its own")
        base = options.fine_tuned(source)
    else:
        base = options.fine_tuned(source, model, recipe, {"data": data}, config)
    settings = options.changed(base, changes, set_ or [])
    run = out if out is not None else Path("runs", f"{source.stem}-{taps}")
    _convert(settings, run, stages=stages, overwrite=overwrite)


def _convert(settings: RunConfig, run: Path, *, stages: int, overwrite: bool) -> None:
    """Convert, and show how it goes."""
    from rotateconv.lab.cli.console import make_console, say
    from rotateconv.lab.cli.loading import load_shown
    from rotateconv.lab.cli.progress import TrainingProgress
    from rotateconv.lab.study.convert_run import convert_run
    from rotateconv.lab.study.events import ConversionEvent, ModelFitted, StageStart

    console = make_console()
    options.check_names(settings)
    images = load_shown(settings, console)
    progress: list[TrainingProgress] = []

    def on_event(event: ConversionEvent) -> None:
        match event:
            case ModelFitted():
                say(console, str(event.report))
                say(
                    console,
                    f"validation accuracy: {event.source:.2f} % trained, {event.fitted:.2f} % fitted, "
                    f"{event.calibrated:.2f} % with the norms recalibrated",
                )
            case StageStart():
                for shown in progress:
                    shown.__exit__(None, None, None)
                if event.stages > 1:
                    say(console, f"stage {event.stage} of {event.stages}")
                progress.append(TrainingProgress(console, event.config, images))
            case _ if progress:
                progress[-1](event)

    try:
        result = convert_run(settings, run, data=images, stages=stages, overwrite=overwrite, on_event=on_event)
    except RunInterrupted:
        raise RunInterrupted(f"stopped and saved: go on with {options.again()}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped at once: go on from the last checkpoint with {options.again()}") from None
    finally:
        for shown in progress:
            shown.__exit__(None, None, None)
    _tell(console, run, result)


def _tell(console: Any, run: Path, result: "ConversionRecord") -> None:
    """Print what the conversion cost and what to do with its run."""
    from rich import box
    from rich.table import Table

    from rotateconv.lab.cli.console import facts
    from rotateconv.lab.study.convert_run import nets_of

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for head in ("net", "parameters", "validation %", "test %"):
        table.add_column(head, justify="left" if head == "net" else "right")
    for name, told in nets_of(result).items():
        count = result.parameters_before if name == "source" else result.parameters_after
        accuracies = (getattr(found, name) for found in (result.validation_accuracy, result.test_accuracy))
        rounded = ", rounded" if name == "fine_tuned" and result.bits is not None else ""
        table.add_row(told + rounded, f"{count:,}", *(f"{accuracy:.2f}" for accuracy in accuracies))
    console.print(table)
    facts(console, {"run": str(run), "report": str(run / "conversion.md"), "records": str(run / "conversion.json")})
