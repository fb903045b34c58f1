"""Image folders: train/<class>/* and test/<class>/*, decoded once and then read from a cache."""

import hashlib
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rotateconv.errors import DataError
from rotateconv.lab.data.decode import Decoded, Progress, decode_images
from rotateconv.lab.data.image_cache import read_cache, write_cache
from rotateconv.lab.data.image_data import ImageData, Split, build_data

SPLITS = ("train", "test")
NAMED = 3  # bad images that a message names; the rest are counted


@dataclass(frozen=True)
class Listing:
    """The files of an image folder, in order.

    Args:
        classes: sorted names of the class folders.
        paths: of all images relative to the folder, those of train first.
        labels: of all images, (N,), int64.
        train_count: how many images are those of train.
        key: a hash of every path, size and time of change.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Tensor
    train_count: int
    key: str


def load_folder(folder: Path, *, image_size: int | None, skip_bad_images: bool, progress: Progress | None) -> ImageData:
    """An image folder as RGB images of one size, named after the folder; a tenth of train validates.

    Every file below a class folder counts as an image, hidden ones excepted. The decoded images are cached in
    `folder`/.rotateconv, or in the user's cache directory where that cannot be written; changed files or a
    damaged cache are decoded again.

    Args:
        folder: holds train/<class>/* and test/<class>/*.
        image_size: height and width in pixels: the shorter side is resized to it and the middle of the longer
            one kept; None keeps the images as they are, and then all must have the same size.
        skip_bad_images: leave out images that do not decode, with a warning that names and counts them.
        progress: called as progress(done, total) while images are decoded; not at all on a cached folder.

    Raises:
        DataError: If folders or images are missing or do not agree, or images do not decode.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"--image-size must be at least 1 pixel, got {image_size}")
    try:
        listing = list_folder(folder)
    except OSError as error:  # a link to nowhere, a folder that may not be read
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    decoded = read_cache(folder, image_size, listing.key)
    # The cache of an earlier run that skipped images must not skip them silently in this one.
    if decoded is None or (decoded.bad and not skip_bad_images):
        decoded = decode_images(folder, listing.paths, image_size, progress)
        if decoded.bad and not skip_bad_images:
            raise DataError(
                f"{_bad_images(decoded, listing)} do not decode as images: repair or remove them, "
                "or leave them out with --skip-bad-images"
            )
        write_cache(folder, image_size, listing.key, decoded)
    if decoded.bad:
        warnings.warn(f"skipped {_bad_images(decoded, listing)} that do not decode as images", stacklevel=2)
    return _build(folder.resolve().name, decoded, listing)


def list_folder(folder: Path) -> Listing:
    """Find the classes and images of a folder without opening any.

    Raises:
        DataError: If there is no train or test, they differ in their classes, or a class has no image.
    """
    classes = {}
    for split in SPLITS:
        root = folder / split
        if not root.is_dir():
            raise DataError(
                f"no folder {split!r} in {folder.absolute()}: an image folder holds train/<class>/* and "
                "test/<class>/*; name it with --data-dir"
            )
        entries = (entry for entry in root.iterdir() if entry.is_dir())
        classes[split] = sorted(entry.name for entry in entries if not _hidden(entry.name))
        if not classes[split]:
            raise DataError(f"no class folder in {root}: images belong into {split}/<class>/")
    alone = sorted(set(classes["train"]) ^ set(classes["test"]))
    if alone:
        raise DataError(
            f"{folder}: train has {len(classes['train'])} classes and test {len(classes['test'])}, and "
            f"{_first(alone)} only in one of them: both need the same class folders"
        )
    paths: list[str] = []
    labels: list[int] = []
    digest = hashlib.blake2b(digest_size=16)
    train_count = 0
    for split in SPLITS:
        for label, name in enumerate(classes[split]):
            found = _files(folder, f"{split}/{name}")
            if not found:
                raise DataError(f"the class folder {folder / split / name} is empty: put images in or remove it")
            digest.update(repr(found).encode())
            paths += [path for path, _, _ in found]
            labels += [label] * len(found)
        train_count = train_count or len(paths)
    every_label = torch.tensor(labels, dtype=torch.int64)
    return Listing(tuple(classes["train"]), tuple(paths), every_label, train_count, digest.hexdigest())


def _build(name: str, decoded: Decoded, listing: Listing) -> ImageData:
    good = torch.ones(len(listing.paths), dtype=torch.bool)
    good[list(decoded.bad)] = False
    labels = listing.labels[good]
    train_count = int(good[: listing.train_count].sum())
    train = Split(decoded.images[:train_count], labels[:train_count])
    # Copied, so that the training images, which are copied when they are split, do not stay in memory twice.
    test = Split(decoded.images[train_count:].clone(), labels[train_count:])
    for split, images in zip(SPLITS, (train, test), strict=True):
        counts = images.labels.bincount(minlength=len(listing.classes)).tolist()
        empty = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
        if empty:
            raise DataError(f"no image of {_first(empty)} in {split} decodes: every class needs at least one")
    return build_data(name, listing.classes, train, test, flip=True)


def _files(folder: Path, path: str) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change in ns) of each file below `folder`/`path` that is not hidden, sorted."""
    found = []
    # Strings: a Path for each of 60,000 files takes longer than all the rest of a cached load.
    with os.scandir(f"{folder}/{path}") as entries:
        for entry in entries:
            below = f"{path}/{entry.name}"
            if _hidden(entry.name):
                continue
            if entry.is_dir():
                found += _files(folder, below)
            else:
                status = entry.stat()
                found.append((below, status.st_size, status.st_mtime_ns))
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _bad_images(decoded: Decoded, listing: Listing) -> str:
    names = [listing.paths[index] for index in decoded.bad]
    return f"{len(names)} of {len(listing.paths)} files ({_first(names)})"


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    rest = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + rest
