"""From images as they lie on the disk to what a trained model takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.errors import DataError
from rotateconv.lab.data.decode import decode_image
from rotateconv.lab.data.description import DataDescription


class Preprocessing(nn.Module):
    """Normalize images as in training: ``(image / 255 - mean) / std`` per channel.

    Attributes:
        input_shape: Channels, height and width that the model takes.

    Example:
        >>> from rotateconv.lab.data import load_data
        >>> digits = load_data("digits")
        >>> preprocessing = Preprocessing(DataDescription.of(digits))
        >>> preprocessing(digits.test.images[:2]).shape
        torch.Size([2, 1, 8, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data: DataDescription) -> None:
        super().__init__()
        self.input_shape = data.input_shape
        self.register_buffer("mean", torch.tensor(data.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(data.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalized images.

        Args:
            images: (N, C, H, W), uint8, of the model's input shape.

        Raises:
            DataError: They have another shape or type.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != torch.Size(self.input_shape):
            expected = " x ".join(map(str, self.input_shape))
            found = " x ".join(map(str, images.shape[1:]))
            raise DataError(f"expected images of {expected} in uint8, not {found} in {images.dtype}")
        return (images.float() / 255 - self.mean) / self.std

    def read(self, paths: Sequence[str | Path]) -> tuple[Tensor, list[bool]]:
        """Return image files as uint8 images of the model's input shape, and which of them had to be resized.

        The shorter side is resized and the middle of the longer one kept, as `image_size` does; a model of one
        channel gets the luminance.

        Raises:
            DataError: A file is missing or no image.
        """
        images, resized = zip(*map(self._read, map(Path, paths)), strict=True)
        return torch.stack(images), list(resized)

    def _read(self, path: Path) -> tuple[Tensor, bool]:
        if not path.is_file():
            raise DataError(f"there is no image {path}")
        pixels = decode_image(path)
        if pixels is None:
            raise DataError(f"{path} does not decode as an image")
        channels, height, width = self.input_shape
        resized = pixels.shape[:2] != (height, width)
        return torch.from_numpy(_fit(pixels, channels, height, width)).permute(2, 0, 1), resized


def _fit(pixels: Any, channels: int, height: int, width: int) -> Any:
    import numpy
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise DataError(f"the model takes {channels} channels, and an image file has 1 or 3")
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return numpy.array(image).reshape(height, width, channels)
