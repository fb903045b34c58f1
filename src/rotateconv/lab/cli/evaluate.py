"""`rotateconv evaluate`: a trained model on the images it was trained for, or on others of the same classes."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.text import Text

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import keys, options
from rotateconv.lab.cli.shared.console import facts, make_console, new_table, say
from rotateconv.lab.cli.shared.errors import refuse
from rotateconv.lab.cli.shared.settings import check_names, check_there
from rotateconv.lab.cli.shared.unread import refuse_unread
from rotateconv.lab.config import RunConfig, changed
from rotateconv.lab.naming import model_name

if TYPE_CHECKING:
    from rotateconv.lab.train.evaluate import Evaluation

EXAMPLES = options.examples(
    ("The test images of the run's own data:", "rotateconv evaluate runs/digits-resnet20-rotate4-seed0"),
    ("Other images of the same classes:", "rotateconv evaluate runs/cifar10 --data folder --data-dir photos"),
    ("A file, which does not say what it was trained on:", "rotateconv evaluate digits.rcp --data digits"),
)
_LARGEST = 20  # classes whose confusion fits a page


@keys.takes("changes", RunConfig, only=("data", "data_dir", "image_size", "skip_bad_images"))
def evaluate(
    run: options.AnyModel,
    /,
    *,
    changes: keys.Given | None = None,
    download: options.Download = False,
    split: Annotated[
        Literal["test", "validation", "train"], options.value("--split", "test|validation|train", "Which images.")
    ] = "test",
    model: options.BuiltBy = None,
    batch_size: Annotated[int, options.value("--batch-size", "INTEGER", "Images at a time.")] = 512,
    device: options.Device = None,
) -> None:
    """Show accuracy, each class's accuracy and the confusion of a trained model."""
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be 1 or more, not {batch_size}")
    check_there(run, ", a packed file or an ONNX file")
    options.use_device(device)
    given, called = keys.read(RunConfig, changes)
    if run.is_file() and "data" not in given:
        raise ConfigError(f"name --data: the file {run} does not say what its model was trained on")
    if not run.is_file():
        refuse({"--model": model}, "a run folder, which says what builds its model")
    from rotateconv.lab.cli.shared.loading import load_shown
    from rotateconv.lab.predictions import open_file
    from rotateconv.lab.train.load import evaluate_model, load_run

    trained = open_file(run, model) if run.is_file() else load_run(run)
    # What was said of the run's own data says nothing of another set.
    others = {"data_dir": None, "image_size": None, "svhn_extra": False, "skip_bad_images": False}
    another = given.get("data", trained.config.data) != trained.config.data
    settings = changed(trained.config, {**(others if another else {}), **given}, called)
    refuse_unread(given, called, [settings])
    check_names(settings.data)
    console = make_console()
    images = load_shown(settings.images, console, download=download)
    if images.classes != trained.data.classes:
        raise ConfigError(
            f"the model of {run} knows the {_listed(trained.data.classes)}, {images.name} has the "
            f"{_listed(images.classes)}: name data of the same classes"
        )
    channels = images.test.images.shape[1]
    if channels != trained.data.input_shape[0]:
        raise ConfigError(
            f"the model of {run} takes images of {trained.data.input_shape[0]} channels, {images.name} has {channels}"
        )
    found = evaluate_model(trained.model, trained.config.execution, trained.data, getattr(images, split), batch_size)
    used = next((parameter.device for parameter in trained.model.parameters()), "cpu")
    named = "of a file" if run.is_file() else f"{model_name(trained.config)}, trained on {trained.data.name}"
    facts(
        console,
        {
            "run": str(run),
            "model": named,
            "data": f"{images.name}: {found.count:,} {split} images",
            "device": str(used),
        },
    )
    if split == "validation" and not settings.validation and images.name == trained.data.name:
        say(console, "warning: this run was trained on its validation images too")
    console.print(f"{split} accuracy {found.accuracy:.2f} %, loss {found.loss:.4f}", style="bold")
    _show_classes(console, found)


def _show_classes(console: Console, found: "Evaluation") -> None:
    """Print the accuracy of each class, and where its images went."""
    confusion = found.confusion.tolist()
    whole = len(found.classes) <= _LARGEST
    table = new_table("images by class (rows) and answer (columns)" if whole else "accuracy by class")
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
            cells: list[Any] = [_cell(count, number == place) for place, count in enumerate(row)]
        else:
            count, wrong = max((count, place) for place, count in enumerate(row) if place != number)
            cells = [f"{found.classes[wrong]} ({count})" if count else ""]
        table.add_row(str(number), name, f"{sum(row):,}", "-" if accuracy is None else f"{accuracy:.1f}", *cells)
    console.print(table)


def _cell(count: int, right: bool) -> Text:
    return Text(str(count), style="bold") if right else Text(str(count)) if count else Text("·", style="dim")


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} classes {shown}"
