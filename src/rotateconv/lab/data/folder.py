"""Image folders: train/<class>/* and test/<class>/*, decoded once and then read from a cache."""

import functools
import hashlib
import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rotateconv.errors import DataError
from rotateconv.lab.data.decode import MAX_PIXELS, Decoded, Progress, decode_images
from rotateconv.lab.data.image_cache import read_cache, write_cache
from rotateconv.lab.data.image_data import ImageData, Split, build_data

_SPLITS = ("train", "test")
_NAMED = 3  # bad images that a message names; the rest are counted


@dataclass(frozen=True)
class Listing:
    """The files of an image folder, in order: of all images path and label, those of train first.

    `key` is a hash of every path, size, time of change and place on the disk: equal only if nothing was changed.
    `hidden` are files that were left out.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Tensor
    train_count: int
    key: str
    hidden: tuple[str, ...] = ()


def load_folder(
    folder: Path,
    *,
    image_size: int | None,
    skip_bad_images: bool,
    progress: Progress | None,
    max_image_pixels: int | None = None,
) -> ImageData:
    """An image folder as RGB images of one size, named after the folder; a tenth of train validates.

    Every file below a class folder counts as an image, hidden ones excepted. The decoded images are cached in
    `folder`/.rotateconv, or in the user's cache directory where that cannot be written; changed files or a
    damaged cache are decoded again. The options are those of `load_data`.

    Raises:
        DataError: If folders or images are missing or do not agree, or images do not decode.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size (--image-size) must be at least 1 pixel, got {image_size}")
    try:
        listing = list_folder(folder)
    except OSError as error:  # a link to nowhere, a folder that may not be read
        name = str(error.filename)
        shown = name if len(name) < 200 else f"{name[:100]}...{name[-60:]}"
        raise DataError(f"cannot read {shown}: {error.strerror}") from None
    if listing.hidden:
        warnings.warn(f"left out {len(listing.hidden)} hidden files ({_first(listing.hidden)})", stacklevel=2)
    content = functools.cache(lambda: _content(folder, listing.paths))  # every file is read for it: once
    decoded = read_cache(folder, image_size, listing.key, content)
    # The cache of an earlier run that skipped images must not skip them silently in this one.
    if decoded is None or (decoded.bad and not skip_bad_images):
        limit = MAX_PIXELS if max_image_pixels is None else max_image_pixels
        decoded = decode_images(folder, listing.paths, image_size, progress, max_pixels=limit)
        if decoded.bad and not skip_bad_images:
            raise DataError(
                f"{_bad_images(decoded, listing)} do not decode as images: repair or remove them, "
                "or leave them out with skip_bad_images (--skip-bad-images)"
            )
        write_cache(folder, image_size, listing.key, content(), decoded)
    if decoded.bad:
        warnings.warn(f"skipped {_bad_images(decoded, listing)} that do not decode as images", stacklevel=2)
    return _build(folder.resolve().name, decoded, listing)


def list_folder(folder: Path) -> Listing:
    """Find the classes and images of a folder without opening any; DataError where train and test do not agree."""
    classes = {}
    for split in _SPLITS:
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
    hidden: list[str] = []
    digest = hashlib.blake2b(digest_size=16)
    train_count = 0
    for split in _SPLITS:
        for label, name in enumerate(classes[split]):
            found = _files(folder, f"{split}/{name}", hidden)
            if not found:
                raise DataError(f"the class folder {folder / split / name} is empty: put images in or remove it")
            digest.update(repr(found).encode(errors="surrogateescape"))
            paths += [path for path, *_ in found]
            labels += [label] * len(found)
        train_count = train_count or len(paths)
    every_label = torch.tensor(labels, dtype=torch.int64)
    return Listing(tuple(classes["train"]), tuple(paths), every_label, train_count, digest.hexdigest(), tuple(hidden))


def _build(name: str, decoded: Decoded, listing: Listing) -> ImageData:
    good = torch.ones(len(listing.paths), dtype=torch.bool)
    good[list(decoded.bad)] = False
    labels = listing.labels[good]
    train_count = int(good[: listing.train_count].sum())
    train = Split(decoded.images[:train_count], labels[:train_count])
    # Copied, so that the training images, which are copied when they are split, do not stay in memory twice.
    test = Split(decoded.images[train_count:].clone(), labels[train_count:])
    for split, images in zip(_SPLITS, (train, test), strict=True):
        counts = images.labels.bincount(minlength=len(listing.classes)).tolist()
        empty = [name for name, count in zip(listing.classes, counts, strict=True) if not count]
        if empty:
            raise DataError(f"no image of {_first(empty)} in {split} decodes: every class needs at least one")
    return build_data(name, listing.classes, train, test, flip=True)


def _files(folder: Path, path: str, hidden: list[str]) -> list[tuple[str, int, int, int, int]]:
    """Return what tells each image below `folder`/`path` from a changed one, sorted; hidden ones go to `hidden`.

    That is (path, bytes, time of change and of any change to the file or its name in ns, inode): a copy that keeps
    the time of change, as of rsync or tar, has another of the last two.
    """
    found = []
    ahead: list[tuple[str, frozenset[tuple[int, int]]]] = [(path, frozenset())]
    while ahead:
        path, above = ahead.pop()
        place = (folder / path).stat()
        here = above | {(place.st_dev, place.st_ino)}
        if here == above:
            raise DataError(f"{folder / path} is a link to a folder that it is in: remove it")
        # Strings: a Path for each of 60,000 files takes longer than all the rest of a cached load.
        with os.scandir(f"{folder}/{path}") as entries:
            for entry in entries:
                below = f"{path}/{entry.name}"
                if _hidden(entry.name):
                    hidden.append(below)
                    continue
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    ahead.append((below, here))
                elif stat.S_ISREG(status.st_mode):
                    found.append((below, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
                else:
                    raise DataError(f"{folder / below} is a pipe or a device and no image: remove it")
    return sorted(found)


def _content(folder: Path, paths: Sequence[str]) -> str:
    """Return a hash of the names and contents of all files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with (folder / path).open("rb") as file:
            digest.update(path.encode(errors="surrogateescape") + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _hidden(name: str) -> bool:
    """Whether a system's viewer wrote the file for itself, or its user does not see it."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _bad_images(decoded: Decoded, listing: Listing) -> str:
    names = [listing.paths[index] for index in decoded.bad]
    return f"{len(names)} of {len(listing.paths)} files ({_first(names)})"


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    rest = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + rest
