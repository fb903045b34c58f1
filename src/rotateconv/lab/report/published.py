"""Accuracies that others published, to stand beside ours in a picture."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rotateconv.lab.keys import read_toml
from rotateconv.lab.plain import Plain, from_json

PUBLISHED = "published.toml"
"""Name of their file, in a folder of studies."""


@dataclass(frozen=True)
class Published(Plain):
    """An accuracy that others measured, in a recipe of their own.

    Attributes:
        name: Of the model.
        parameters: As published.
        accuracy: On the test set, in percent.
        source: Where it stands.
        data: The data sets in whose pictures it is shown.
        note: What a legend says of it.
    """

    name: str
    parameters: float
    accuracy: float
    source: str
    data: tuple[str, ...]
    note: str


def find_published(paths: Iterable[str | Path]) -> list[Published]:
    """Return the points of every published.toml in or below the folders; RunError for what is no point."""
    files = [file for path in paths for file in sorted(Path(path).rglob(PUBLISHED))]
    return [from_json(Published, point, file) for file in files for point in read_toml(file).get("point", [])]
