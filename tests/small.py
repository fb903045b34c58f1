"""A net and a data set so small that a run takes a second, for the tests of training and what stands on it."""

import torch
from torch import Tensor, nn

from rotateconv.data.sets import ImageData, Split, load_data
from rotateconv.models import CONVS


class Tiny(nn.Module):
    """One convolution of the given kind between a stem and a classifier, with a norm and dropout."""

    def __init__(
        self, conv: str, num_classes: int, in_channels: int, width: float, dropout: float = 0.0, norm: bool = True
    ) -> None:
        super().__init__()
        channels = round(8 * width)
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv = CONVS[conv](channels, channels, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(torch.relu(self.norm(self.stem(images))))
        return self.classifier(self.dropout(torch.relu(features).mean(dim=(2, 3))))


def small_digits(train: int = 101, validation: int = 40, test: int = 37) -> ImageData:
    """The first images of each split of the digits."""
    data = load_data("digits")

    def first(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    return ImageData(
        data.name,
        data.classes,
        first(data.train, train),
        first(data.validation, validation),
        first(data.test, test),
        data.mean,
        data.std,
        data.flip,
    )
