"""The data sets by name: `load_data` and its table, and the one set that needs no files."""

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rotateconv.errors import DataError, nearest, needing
from rotateconv.lab.data.decode import Progress
from rotateconv.lab.data.folder import load_folder
from rotateconv.lab.data.image_data import ImageData, Split, build_data, check_constants, hold_out
from rotateconv.lab.data.torchvision_sets import load_cifar10, load_cifar100, load_mnist, load_svhn

__all__ = ["DATASETS", "DataError", "ImageData", "Split", "load_data"]


def load_data(
    name: str,
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
    image_size: int | None = None,
    svhn_extra: bool = False,
    skip_bad_images: bool = False,
    max_image_pixels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Read a data set whole into memory.

    Args:
        name: a key of `DATASETS`.
        data_dir: where the files are: what torchvision calls root, or the image folder itself for "folder";
            the environment variable ROTATECONV_DATA if None, and ./data without it.
        download: fetch missing files into `data_dir` (mnist, cifar10, cifar100, svhn; digits has them).
        image_size: height and width to resize and crop to, in pixels (folder).
        svhn_extra: add the 531,131 extra images to the training set (svhn).
        skip_bad_images: leave out, with a warning, images that do not decode (folder).
        max_image_pixels: of an image, above which it is refused; None for 50 million (folder).
        mean: of each channel in units of 0..1, to normalise by; those of the training split if None.
        std: of each channel in units of 0..1, given together with `mean`.
        progress: called as progress(done, total) while the images of a folder are decoded.

    Raises:
        DataError: If the name is unknown, an option has no meaning for this set, files are missing or
            damaged, or mean and std are not one number for each channel.

    Example:
        >>> data = load_data("digits")
        >>> data.train.images.shape, len(data.classes)
        (torch.Size([1295, 1, 8, 8]), 10)
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}: {nearest(name, DATASETS)}")
    load = DATASETS[name]
    options = {
        "download": download,
        "image_size": image_size,
        "svhn_extra": svhn_extra,
        "skip_bad_images": skip_bad_images,
        "max_image_pixels": max_image_pixels,
    }
    taken = inspect.signature(load).parameters
    for option, value in options.items():
        if value is not None and value is not False and option not in taken:
            flag = option.replace("_", "-")
            raise DataError(f"{option} (--{flag}) has no meaning for the data set {name}: leave it out")
    check_constants(mean, std)  # before minutes of reading; whether they fit the channels is known after it
    # Only decoding takes long enough to be watched, so a set without it never calls `progress`.
    given = {**options, "progress": progress}
    folder = Path(data_dir or os.environ.get("ROTATECONV_DATA") or "data").expanduser()
    data = load(folder, **{option: value for option, value in given.items() if option in taken})
    return data if mean is None or std is None else data.normalized_by(mean, std)


def load_digits(folder: Path, *, download: bool) -> ImageData:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8, in a fixed split of 1,295 + 143 + 359 images.

    The set has no official split. A fifth of each class is the test set and a tenth of the rest validates,
    both drawn with the library's fixed seed. Values 0..16 become 0..255.
    """
    with needing("lab", "the data set digits needs scikit-learn, which does not import", DataError):
        from sklearn import datasets
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)  # [N, 1, 8, 8]
    everything = Split(images, torch.tensor(bunch.target, dtype=torch.int64))
    train, test = hold_out(everything.labels, len(everything) // 5)
    classes = tuple(str(digit) for digit in range(10))
    return build_data("digits", classes, everything.select(train), everything.select(test), flip=False)


DATASETS: dict[str, Callable[..., ImageData]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
    "folder": load_folder,
}
