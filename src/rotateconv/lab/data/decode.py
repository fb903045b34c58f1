"""Image files to one uint8 tensor, in parallel."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rotateconv.errors import DataError, needing

Progress = Callable[[int, int], None]  # images done, images in total
CHUNK = 64  # images a task: small enough for a smooth progress bar, large enough that tasks cost nothing
MAX_PIXELS = 50_000_000
"""Pixels of a file above which it is refused: RGB and what is made of it take ten bytes for each."""


@dataclass(frozen=True)
class Decoded:
    """Images decoded from a list of files.

    Attributes:
        images: (N, 3, H, W), uint8: RGB images of the files that decode, in order.
        bad: Places in the list of the files that do not.
    """

    images: Tensor
    bad: tuple[int, ...]


def decode_image(path: Path, image_size: int | None = None, max_pixels: int = MAX_PIXELS) -> Any:
    """Return the pixels of an image file as RGB, upright as a viewer shows it.

    16 bits are scaled by 1/257 to 8.

    Args:
        path: of the file.
        image_size: height and width in pixels: the shorter side is resized to it and the middle of the longer one
            kept; None keeps the image as it is.
        max_pixels: that are decoded at most; a large JPEG is decoded at an eighth of its size where that is plenty.

    Returns:
        A NumPy array (H, W, 3), uint8; None if the file is no image.

    Raises:
        DataError: Pillow is missing, the image has too many pixels, or numbers whose range nobody can know.
    """
    with needing("lab", "image folders need Pillow and NumPy, which do not import", DataError):
        import numpy
        from PIL import Image, ImageOps
    try:
        with Image.open(path) as image:
            if image_size is not None:
                image.draft("RGB", (2 * image_size, 2 * image_size))
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"{path} has {image.width * image.height:,} pixels, more than the {max_pixels:,} allowed: "
                    "make it smaller, or allow more with max_image_pixels (--max-image-pixels)"
                )
            whole = _to_rgb(_upright(image, ImageOps), image.format, path, Image, numpy)
            if image_size is not None:
                whole = ImageOps.fit(whole, (image_size, image_size), Image.Resampling.BILINEAR)
            return numpy.asarray(whole)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}: make it smaller") from None
    except Exception:  # a decoder may trip over a broken file in any way
        return None


def decode_images(
    folder: Path,
    paths: Sequence[str],
    image_size: int | None,
    progress: Progress | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """Decode files as RGB, all resized and cropped to `image_size` or all of the same size.

    Raises:
        DataError: If no file decodes, or sizes differ without an `image_size`, or as of `decode_image`.
    """

    def decode(path: str) -> Any:
        return decode_image(folder / path, image_size, max_pixels)

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
                    f"{pixels.shape[1]} x {pixels.shape[0]} pixels: give them one with image_size (--image-size)"
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


def _upright(image: Any, operations: Any) -> Any:
    """Turn an image as its camera was held: so viewers show it, and so it was labeled."""
    try:
        return operations.exif_transpose(image)
    except Exception:  # what the EXIF data say is broken, and the pixels may be whole
        return image


def _to_rgb(image: Any, file_format: str | None, path: Path, library: Any, numpy: Any) -> Any:
    # Pillow opens a PGM of 16 bits, and once opened a PNG, as 32-bit integers, scaled to 16 bits. Its own conversions
    # of all these cut off at 255.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = numpy.asarray(image).astype(numpy.float64)
        return library.fromarray((values / 257).round().astype(numpy.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(f"{path} holds {kind}, whose range the file does not say: convert it to 8 or 16 bits")
    return image.convert("RGB")
