"""`rotateconv train`: one net, one data set, one run folder."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rotateconv.lab.cli import options
from rotateconv.lab.config import RunConfig
from rotateconv.lab.keys import read_toml

if TYPE_CHECKING:
    from rotateconv.lab.train.run_results import RunSummary

EXAMPLES = options.examples(
    ("The embedded digits, a minute:", "rotateconv train"),
    ("ResNet-20 of rotate4 on CIFAR-10:", "rotateconv train --data cifar10 --download --model resnet20 --conv rotate4"),
    ("An image folder:", "rotateconv train --data folder --data-dir photos --image-size 32 --epochs 30"),
    ("Go on after Ctrl-C:", "rotateconv train --resume runs/digits-resnet20-rotate4-seed0"),
    ("Rounded to 4 bits, from a finished run:", "rotateconv train --source runs/digits-resnet20-rotate4-seed0 --qat"),
    ("Two processes:", "torchrun --nproc-per-node 2 -m rotateconv train --out runs/two"),
)


def train(
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    image_size: options.ImageSize = None,
    svhn_extra: options.SvhnExtra = None,
    skip_bad_images: options.SkipBadImages = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="resnet20, 32, 44, 56 or 110, densenet40, densenet100 or densenet-bc100.",
            rich_help_panel="Net",
        ),
    ] = None,
    conv: Annotated[
        str | None,
        typer.Option(
            "--conv",
            metavar="NAME",
            help="conv3x3, rotate4, rotate2, rotate2p, or a control such as rotate4-fixed.",
            rich_help_panel="Net",
        ),
    ] = None,
    width: options.Width = None,
    recipe: options.Recipe = None,
    config: options.ConfigFile = None,
    set_: options.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of weights, order and augmentation.", rich_help_panel="Training")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="RUN",
            help="Go on from a trained net: its recipe with half the epochs and learning rate, it being the teacher.",
            rich_help_panel="Training",
        ),
    ] = None,
    teacher: options.Teacher = None,
    qat: options.Qat = None,
    weight_bits: options.WeightBits = None,
    angle_bits: options.AngleBits = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run folder; runs/DATA-MODEL-CONV-seedN.", rich_help_panel="Run"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with the run in this folder.", rich_help_panel="Run"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again in a folder that holds a run.", rich_help_panel="Run")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write RUN/tensorboard as well.", rich_help_panel="Run")
    ] = False,
) -> None:
    """Train a net and keep weights, records and configuration in a run folder.

    Ctrl-C saves and says how to go on; a second Ctrl-C leaves at once.
    """
    changes = {
        "data": data,
        "data_dir": data_dir and str(data_dir),
        "image_size": image_size,
        "svhn_extra": svhn_extra,
        "skip_bad_images": skip_bad_images,
        "model": model,
        "conv": conv,
        "width": width,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "teacher": teacher,
        "qat": qat,
        "weight_bits": weight_bits,
        "angle_bits": angle_bits,
        "precision": precision,
        "compile": compile,
    }
    if resume is not None:
        given = {"--out": out, "--recipe": recipe, "--config": config, "--source": source, "--overwrite": overwrite}
        options.refuse(given, "--resume")
        settings, run = _resumed(resume, changes, set_ or []), resume
    elif source is not None:
        given = {"--recipe": recipe, "--config": config, "--data": data, "--model": model, "--conv": conv}
        options.refuse({**given, "--width": width}, "--source, whose own it keeps")
        settings = options.changed(options.fine_tuned(source), changes, set_ or [])
        run = out if out is not None else Path("runs", f"{source.name}-{'qat' if settings.qat else 'tuned'}")
    else:
        settings = options.configure(recipe, changes, set_ or [], read_toml(config) if config else None)
        run = out if out is not None else Path("runs", options.run_name(settings))
    _run(settings, run, resume=resume is not None, overwrite=overwrite, download=download, tensorboard=tensorboard)


def _resumed(run: Path, changes: dict[str, Any], overrides: list[str]) -> RunConfig:
    """Return the configuration of the run that is resumed, with what the command line says differently."""
    from rotateconv.lab.train.run_folder import read_config

    return options.changed(read_config(run), changes, overrides)


def _run(settings: RunConfig, run: Path, *, resume: bool, overwrite: bool, download: bool, tensorboard: bool) -> None:
    """Train, and show how it goes."""
    from rotateconv.lab.cli.console import make_console, say
    from rotateconv.lab.cli.loading import load_shown
    from rotateconv.lab.cli.progress import TrainingProgress
    from rotateconv.lab.cli.scalars import Scalars
    from rotateconv.lab.train.events import Event
    from rotateconv.lab.train.loop import fit
    from rotateconv.lab.train.run_folder import check_run

    console = make_console()
    options.check_names(settings)
    check_run(run, settings, resume=resume, overwrite=overwrite)
    if resume and (run / "summary.json").is_file():
        say(console, f"{run} is finished already")
        _tell(console, run, fit(settings, run, resume=True), settings.epochs)
        return
    scalars = Scalars(run / "tensorboard") if tensorboard else None
    try:
        images = load_shown(settings, console, download=download)
        with TrainingProgress(console, settings, images) as progress:

            def on_event(event: Event) -> None:
                progress(event)
                if scalars is not None:
                    scalars(event)

            summary = fit(settings, run, data=images, resume=resume, overwrite=overwrite, on_event=on_event)
        _tell(console, run, summary, settings.epochs)
    except KeyboardInterrupt:
        again = f"rotateconv train --resume {shlex.quote(str(run))}"
        how = f"go on from the last checkpoint with {again}" if (run / "config.json").is_file() else "nothing was saved"
        raise KeyboardInterrupt(f"stopped at once: {how}") from None
    finally:
        if scalars is not None:
            scalars.close()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


def _tell(console: Any, run: Path, summary: "RunSummary", epochs: int) -> None:
    """Print what a finished run found, and what to do with it."""
    from rotateconv.lab.cli.console import duration, say

    text = f"test accuracy {summary.test_accuracy:.2f} %, loss {summary.test_loss:.4f}"
    if summary.best_epoch is not None:
        text += f"; best validation accuracy {summary.best_validation_accuracy:.2f} % in epoch {summary.best_epoch}"
    console.print(f"[bold]{text}[/bold]", soft_wrap=True)
    say(console, f"{epochs} epochs in {duration(summary.seconds)}, kept in {run}")
    say(console, f"look closer with: rotateconv evaluate {shlex.quote(str(run))}")
