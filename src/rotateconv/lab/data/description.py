"""What a model must know of the images that it was trained on."""

from dataclasses import dataclass
from typing import TypedDict

from rotateconv.lab.data.image_data import ImageData
from rotateconv.lab.plain import Plain


class About(TypedDict):
    """What a file of a model says of the images that it takes, as arguments of what writes it."""

    classes: list[str] | None
    mean: list[float] | None
    std: list[float] | None
    input_size: list[int]


@dataclass(frozen=True)
class DataDescription(Plain):
    """What a model must know of the images it was trained on; the run folder keeps it as `data.json`.

    Args:
        name: of the data set.
        classes: names of the classes, in the order of the model's outputs.
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

    @property
    def about(self) -> About:
        """What a file of a model says of these images."""
        shape = list(self.input_shape)
        return About(classes=list(self.classes), mean=list(self.mean), std=list(self.std), input_size=shape)

    @classmethod
    def of(cls, data: ImageData) -> "DataDescription":
        """Describe a data set."""
        channels, height, width = data.train.images.shape[1:]
        counts = (len(split.labels) for split in (data.train, data.validation, data.test))
        shape = (channels, height, width)
        return cls(data.name, data.classes, data.mean, data.std, shape, data.flip, *counts)
