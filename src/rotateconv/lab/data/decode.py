"""Image files to one uint8 tensor, in parallel."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rotateconv.errors import DataError

Progress = Callable[[int, int], None]  # images done, images in total
CHUNK = 64  # images a task: small enough for a smooth progress bar, large enough that tasks cost nothing


@dataclass(frozen=True)
class Decoded:
    """Images decoded from a list of files.

    Args:
        images: (N, 3, H, W), uint8: RGB images of the files that decode, in order.
        bad: places in the list of the files that do not.
    """

    images: Tensor
    bad: tuple[int, ...]


def decode_images(
    folder: Path, paths: Sequence[str], image_size: int | None, progress: Progress | None = None
) -> Decoded:
    """Decode files as RGB, all resized and cropped to `image_size` or all of the same size.

    Args:
        folder: what `paths` are relative to.
        paths: of the images.
        image_size: height and width in pixels; None keeps the images as they are.
        progress: called as progress(done, total), in the calling thread.

    Raises:
        DataError: If no file decodes, or sizes differ without an `image_size`.
    """
    Image, ImageOps, numpy = _libraries()  # noqa: N806
    upright = ImageOps.exif_transpose  # as a camera was held: viewers show it so, and so it was labelled

    def decode(path: str) -> Any:
        """(H, W, 3), uint8, or None if the file is no image."""
        try:
            with Image.open(folder / path) as image:
                if image_size is None:
                    return numpy.asarray(upright(image).convert("RGB"))
                # A large JPEG is decoded at half, a quarter or an eighth of its size where that is plenty.
                image.draft("RGB", (2 * image_size, 2 * image_size))
                whole = upright(image).convert("RGB")
                return numpy.asarray(ImageOps.fit(whole, (image_size, image_size), Image.Resampling.BILINEAR))
        except Exception:  # a decoder may trip over a broken file in any way
            return None

    pixels = next((pixels for pixels in map(decode, paths) if pixels is not None), None)
    if pixels is None:
        raise DataError(f"none of the {len(paths)} files in {folder.absolute()} decodes as an image")
    height, width = pixels.shape[:2]
    images = torch.empty(len(paths), 3, height, width, dtype=torch.uint8)
    target = images.numpy()

    def decode_chunk(start: int) -> list[int]:
        """Write images start, start + 1, ... in place; returns which are bad."""
        bad = []
        for place, path in enumerate(paths[start : start + CHUNK], start):
            pixels = decode(path)
            if pixels is None:
                bad.append(place)
                continue
            if pixels.shape[:2] != (height, width):
                raise DataError(
                    f"images differ in size, such as {width} x {height} and, in {path}, "
                    f"{pixels.shape[1]} x {pixels.shape[0]} pixels: give them one with --image-size"
                )
            target[place] = pixels.transpose(2, 0, 1)
        return bad

    bad: list[int] = []
    # Threads, not processes: Pillow lets go of the interpreter while it decodes, and nothing is copied.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for number, found in enumerate(pool.map(decode_chunk, range(0, len(paths), CHUNK)), 1):
                bad += found
                if progress is not None:
                    progress(min(number * CHUNK, len(paths)), len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if bad:
        good = torch.ones(len(paths), dtype=torch.bool)
        good[bad] = False
        images = images[good]
    return Decoded(images, tuple(bad))


def _libraries() -> tuple[Any, Any, Any]:
    try:
        import numpy
        from PIL import Image, ImageOps
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"image folders need Pillow and NumPy, which do not import ({error}): pip install 'rotateconv[train]'"
        ) from None
    return Image, ImageOps, numpy
