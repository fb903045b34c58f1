"""`rotateconv predict`: what a trained model makes of images."""

import csv as csv_files
import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rotateconv._files import atomic_write
from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import options
from rotateconv.lab.cli.shared.console import make_console, say, show_table
from rotateconv.lab.table import Table

if TYPE_CHECKING:
    from rotateconv.lab.predictions import Prediction

EXAMPLES = options.examples(
    ("The likeliest classes of an image:", "rotateconv predict runs/cifar10 cat.jpg"),
    ("All images of a folder, for a table program:", "rotateconv predict cifar10.onnx photos --csv answers.csv"),
    ("For another program:", "rotateconv predict cifar10.rcp cat.jpg dog.jpg --top 1 --json"),
)


def predict(
    model: options.AnyModel,
    /,
    *images: Annotated[Path, Parameter(help="Image files, or folders of them.", show_default=False)],
    built_by: options.BuiltBy = None,
    top: Annotated[int, options.value("--top", "INTEGER", "Classes of each image.")] = 5,
    json: Annotated[bool, options.switch("--json", "Print JSON instead of a table.")] = False,
    csv: Annotated[Path | None, options.value("--csv", "FILE", "Write a CSV file too.", show_default=False)] = None,
) -> None:
    """Classify images, with the preprocessing of the model's training.

    An image of another size is resized by its shorter side, and the middle of the longer one is kept.
    """
    if not images:
        raise ConfigError("name at least one image, or a folder of images")
    from rotateconv.lab.predictions import predict as classify

    found = classify(model, images, top=top, factory=built_by)
    if csv is not None:
        _write_csv(csv, found)
    if json:
        _print_json(found)
    else:
        _print_table(found)


def _print_table(found: "list[Prediction]") -> None:
    console = make_console()
    rows = [
        ("" if place else str(prediction.image), name, f"{100 * value:.1f}")
        for prediction in found
        for place, (name, value) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True))
    ]
    show_table(console, Table(("image", "class", "%"), tuple(rows), 2), fold=True)
    resized = [prediction for prediction in found if prediction.resized]
    if resized:
        say(console, f"resized to what the model takes: {len(resized):,} of {len(found):,} images")


def _print_json(found: "list[Prediction]") -> None:
    rows = [
        {
            "image": str(prediction.image),
            "resized": prediction.resized,
            "classes": [
                {"class": name, "probability": value}
                for name, value in zip(prediction.classes, prediction.probabilities, strict=True)
            ],
        }
        for prediction in found
    ]
    print(json_text.dumps(rows, indent=2))


def _write_csv(path: Path, found: "list[Prediction]") -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv_files.writer(file)
        writer.writerow(["image", "resized", "rank", "class", "probability"])
        for prediction in found:
            for rank, (name, value) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True), 1):
                writer.writerow([prediction.image, int(prediction.resized), rank, name, value])
