"""A small image folder, and what it must be read as."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rotateconv.errors import DataError
from rotateconv.lab.data import ImageData, folder, load_data

CLASSES = ("apple", "bird", "cat")


def write_folder(root: Path) -> Path:
    """12 training and 6 test images of 6 x 5 pixels in three classes, each of its own colors."""
    pixels = np.random.default_rng(0)
    for split, each in (("train", 4), ("test", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                image = Image.fromarray(pixels.integers(0, 256, (5, 6, 3), dtype=np.uint8))
                image.save(root / split / name / f"{number}.png")
    return root


def held(data: ImageData, split: str) -> dict[bytes, str]:
    """The class of every image, by its bytes."""
    parts = (data.train, data.validation) if split == "train" else (data.test,)
    return {
        image.numpy().tobytes(): data.classes[label]
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    }


def on_disk(root: Path, split: str) -> dict[bytes, str]:
    """The slow twin: each file opened by itself."""
    return {
        np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).tobytes(): path.parent.name
        for path in root.glob(f"{split}/*/*.png")
    }


def check_holds(data: ImageData, root: Path) -> None:
    for split, count in (("train", 12), ("test", 6)):
        assert len(on_disk(root, split)) == count
        assert held(data, split) == on_disk(root, split)


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load_data("folder", root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*args: object, **options: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder, "decode_images", decode)
