"""What a model must know of the images that it was trained on."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from rotateconv.errors import RunError
from rotateconv.lab.data.image_data import ImageData


@dataclass(frozen=True)
class DataDescription:
    """What a model must know of the images it was trained on; the run folder keeps it as `data.json`.

    Args:
        name: of the data set.
        classes: names of the classes, in the order of the net's outputs.
        mean, std: per channel, of images between 0 and 1; the model sees (image - mean) / std.
        input_shape: channels, height, width.
        flip: whether a mirrored image keeps its class.
        train, validation, test: number of images.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, int, int]
    flip: bool
    train: int
    validation: int
    test: int

    @classmethod
    def of(cls, data: ImageData) -> "DataDescription":
        """Describe a data set."""
        channels, height, width = data.train.images.shape[1:]
        counts = (len(split.labels) for split in (data.train, data.validation, data.test))
        shape = (channels, height, width)
        return cls(data.name, data.classes, data.mean, data.std, shape, data.flip, *counts)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "DataDescription":
        """Return what `to_record` wrote; RunError where a key is missing or unknown."""
        try:
            values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
            return cls(**values)
        except TypeError:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise RunError(f"a run's data.json must have {names}, not {', '.join(record)}") from None

    def to_record(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
