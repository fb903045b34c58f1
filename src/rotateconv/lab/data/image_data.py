"""What a data set is here: uint8 images and labels in three splits, with their mean and deviation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rotateconv.errors import DataError

# Which images are held out must never depend on the seed of a run, or runs could not be compared.
_SPLIT_SEED = 20_240_229


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Args:
        images: (N, C, H, W), uint8.
        labels: (N,), int64, counted from 0.

    Raises:
        DataError: If shapes, dtypes or lengths are others.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise DataError(
                f"expected images of dtype uint8 and shape (N, C, H, W), got {self.images.dtype} "
                f"and {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"expected {len(self.images)} labels of dtype int64, got {self.labels.dtype} "
                f"and shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> "Split":
        """The images at `index` (int64), in that order."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageData:
    """A data set for classification, whole in memory.

    Args:
        name: the name it has in records and tables.
        classes: name of each label.
        train: what the weights are fitted to.
        validation: held out of the official training set; it chooses.
        test: touched once, after the last epoch.
        mean: of each channel of `train` or given, in units of 0..1.
        std: of each channel of `train` or given, in units of 0..1.
        flip: whether a mirrored image keeps its class.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    def normalized_by(self, mean: Sequence[float], std: Sequence[float]) -> "ImageData":
        """The same images with given constants, such as those that a pretrained model was trained with.

        Raises:
            DataError: If they are no constants, or not one for each channel.
        """
        check_constants(mean, std)
        channels = self.train.images.shape[1]
        if not len(mean) == len(std) == channels:
            raise DataError(
                f"images of {channels} channels need {channels} means and standard deviations, "
                f"got {len(mean)} and {len(std)}"
            )
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def check_constants(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise DataError unless both or none are given, the means are in 0..1 and the deviations positive."""
    if (mean is None) != (std is None):
        raise DataError("mean and std belong together: give both, or none to compute them from the training split")
    if mean is None or std is None:
        return
    if not all(0 <= value <= 1 for value in mean):  # false for NaN, too
        listed = ", ".join(f"{value:g}" for value in mean)
        raise DataError(f"mean (--mean) must be numbers from 0 to 1, 1 being the brightest pixel, not {listed}")
    if not all(0 < value < math.inf for value in std):
        raise DataError(f"expected standard deviations above 0 and finite, got {tuple(std)}")


def build_data(
    name: str, classes: tuple[str, ...], train: Split, test: Split, *, flip: bool, most_validation: int | None = None
) -> ImageData:
    """Hold a validation split out of `train` and measure the constants on what is left.

    A tenth of `train` is held out, or `most_validation` images where these are less.

    Raises:
        DataError: If a split is empty, labels lie outside the classes, or images differ in shape.
    """
    if len(train) < 2 or not len(test):
        raise DataError(
            f"{name}: expected at least 2 training images and 1 test image, got {len(train)} and {len(test)}"
        )
    for split, images in (("training", train), ("test", test)):
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(classes):
            raise DataError(
                f"{name}: expected {split} labels in 0..{len(classes) - 1} for {len(classes)} classes, "
                f"got {low}..{high}"
            )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{name}: training images have shape {tuple(train.images.shape[1:])} and test images "
            f"{tuple(test.images.shape[1:])}; both must be the same (channels, height, width)"
        )
    tenth = max(1, len(train) // 10)
    kept, held = hold_out(train.labels, tenth if most_validation is None else min(most_validation, tenth))
    fitted = train.select(kept)
    mean, std = channel_statistics(fitted.images)
    return ImageData(name, classes, fitted, train.select(held), test, mean, std, flip)


def hold_out(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw `count` of N images, the same at every call, from each class in proportion to its size.

    Shuffled images are laid out class by class, and every (N / count)-th is held out: each class gives its
    share, rounded up or down.

    Args:
        labels: (N,), int64.
        count: how many to hold out, 1..N.

    Returns:
        (kept, held): ascending int64 indices of N - count and of count images.

    Example:
        >>> kept, held = hold_out(torch.tensor([0, 1] * 10), 4)
        >>> len(kept), sorted((held % 2).tolist())
        (16, [0, 0, 1, 1])
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    centers = (2 * torch.arange(count) + 1) * len(labels) // (2 * count)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[by_class[centers]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in units of 0..1, from exact counts of the 256 values.

    The standard deviation of a constant channel is given as 1, so that it can be divided by.

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float((share * values).sum())
        deviation = float((share * (values - mean) ** 2).sum().sqrt())
        means.append(mean)
        deviations.append(deviation or 1.0)
    return tuple(means), tuple(deviations)
