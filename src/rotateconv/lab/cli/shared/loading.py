"""Images for a command, with a progress bar where they are decoded."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rotateconv.errors import RotateConvError
from rotateconv.lab.cli.shared.console import say
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.parts import ImageSource
from rotateconv.lab.train.load import TrainedRun, evaluate_model


def load_shown(source: ImageSource, console: Console, *, download: bool = False) -> ImageData:
    """Return the images of a configuration."""
    columns = (TextColumn("decoding images"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, expand=True, transient=True, disable=quiet) as progress:

        def advance(done: int, total: int) -> None:
            if not progress.tasks:
                progress.add_task("", total=total)
                if quiet:
                    say(console, f"decoding {total:,} images, once: the next run reads them from a cache")
            progress.update(progress.tasks[0].id, completed=done)

        return load_images(source, download=download, progress=advance)


def validation_accuracy(trained: TrainedRun, console: Console) -> str:
    """Return the accuracy of a model on the validation images of its run, or why it was not measured: a few words."""
    if not trained.config.validation:
        return "not measured: the run kept no validation images"
    try:
        images = load_shown(trained.config.images, console)
    except RotateConvError as error:
        return f"not measured: {error}"
    if DataDescription.of(images) != trained.data:
        return f"not measured: these are other images of {trained.data.name}"
    found = evaluate_model(trained.model, trained.config.execution, trained.data, images.validation)
    return f"{found.accuracy:.2f} % of {found.count:,} validation images"
