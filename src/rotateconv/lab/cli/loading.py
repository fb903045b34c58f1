"""Images for a command, with a progress bar where they are decoded."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rotateconv.errors import RotateConvError
from rotateconv.lab.cli.console import say
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.parts import ImageSource
from rotateconv.lab.train.load import TrainedRun, evaluate_model


def load_shown(source: ImageSource, console: Console, *, download: bool = False) -> ImageData:
    """Return the images of a configuration."""
    if not console.is_terminal:
        told = [False]

        def tell(done: int, total: int) -> None:
            if not told[0]:
                say(console, f"decoding {total:,} images, once: the next run reads them from a cache")
            told[0] = True

        return load_images(source, download=download, progress=tell)
    columns = (TextColumn("decoding images"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, expand=True, transient=True) as progress:
        task = None

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = progress.add_task("", total=total)
            progress.update(task, completed=done)

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
