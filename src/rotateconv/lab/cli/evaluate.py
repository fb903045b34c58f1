"""`rotateconv evaluate`: a trained net on the images it was trained for, or on others of the same classes."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from rotateconv.errors import ConfigError
from rotateconv.lab.cli import options
from rotateconv.lab.naming import model_name

EXAMPLES = options.examples(
    ("The test images of the run's own data:", "rotateconv evaluate runs/digits-resnet20-rotate4-seed0"),
    (
        "Other images of the same classes:",
        "rotateconv evaluate runs/cifar10 --data folder --data-dir photos",
    ),
)
_LARGEST = 20  # classes whose confusion fits a page


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a trained net.", show_default=False)],
    data: options.Data = None,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    image_size: options.ImageSize = None,
    skip_bad_images: options.SkipBadImages = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="test or validation.")] = "test",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images at a time.")] = 512,
) -> None:
    """Show accuracy, each class's accuracy and the confusion of a trained net."""
    from rotateconv.lab.cli.console import facts, make_console, say
    from rotateconv.lab.cli.loading import load_shown
    from rotateconv.lab.train.load import evaluate_split, load_run

    if split not in ("test", "validation"):
        raise ConfigError(f"--split must be test or validation, not {split!r}")
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be 1 or more, not {batch_size}")
    trained = load_run(run)
    named = {
        "data": data,
        "data_dir": data_dir and str(data_dir),
        "image_size": image_size,
        "skip_bad_images": skip_bad_images,
    }
    changes: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    if data is not None and data != trained.config.data:
        # What was said of the run's own data says nothing of another set.
        changes = {"data_dir": None, "image_size": None, "svhn_extra": False, "skip_bad_images": False, **changes}
    settings = dataclasses.replace(trained.config, **changes)
    options.check_names(settings)
    console = make_console()
    images = load_shown(settings, console, download=download)
    if images.classes != trained.data.classes:
        raise ConfigError(
            f"the net of {run} knows the {_listed(trained.data.classes)}, {images.name} has the "
            f"{_listed(images.classes)}: name data of the same classes"
        )
    channels = images.test.images.shape[1]
    if channels != trained.data.input_shape[0]:
        raise ConfigError(
            f"the net of {run} takes images of {trained.data.input_shape[0]} channels, {images.name} has {channels}"
        )
    found = evaluate_split(trained.model, trained.config, trained.data, getattr(images, split), batch_size)
    device = next(trained.model.parameters()).device
    facts(
        console,
        {
            "run": str(run),
            "model": f"{model_name(trained.config)}, trained on {trained.data.name}",
            "data": f"{images.name}: {found.count:,} {split} images",
            "device": str(device),
        },
    )
    if split == "validation" and not settings.validation and images.name == trained.data.name:
        say(console, "warning: this run was trained on its validation images too")
    console.print(f"[bold]{split} accuracy {found.accuracy:.2f} %, loss {found.loss:.4f}[/bold]")
    _show_classes(console, found)


def _show_classes(console: Any, found: Any) -> None:
    """Print the accuracy of each class, and where its images went."""
    from rich import box
    from rich.table import Table

    confusion = found.confusion.tolist()
    whole = len(found.classes) <= _LARGEST
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.title = "images by class (rows) and answer (columns)" if whole else "accuracy by class"
    for head in ("", "class", "images", "%"):
        table.add_column(head, justify="left" if head == "class" else "right", overflow="fold")
    if whole:
        for number in range(len(found.classes)):
            table.add_column(str(number), justify="right", no_wrap=True)
    else:
        table.add_column("most often taken for", overflow="fold")
    for number, (name, accuracy) in enumerate(found.class_accuracy.items()):
        row = confusion[number]
        if whole:
            told = [_cell(count, number == place) for place, count in enumerate(row)]
        else:
            count, wrong = max((count, place) for place, count in enumerate(row) if place != number)
            told = [f"{found.classes[wrong]} ({count})" if count else ""]
        table.add_row(str(number), name, f"{sum(row):,}", "-" if accuracy is None else f"{accuracy:.1f}", *told)
    console.print(table)


def _cell(count: int, right: bool) -> str:
    return f"[bold]{count}[/bold]" if right else str(count) if count else "[dim]·[/dim]"


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes {shown}"
