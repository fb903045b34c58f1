"""The decoded images of a folder in one safetensors file, keyed by the files they came from."""

import hashlib
import os
import warnings
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rotateconv._files import atomic_replace
from rotateconv.lab.data.decode import Decoded

VERSION = "2-"  # to be raised when the same files decode to other images


def read_cache(folder: Path, image_size: int | None, key: str) -> Decoded | None:
    """The images cached for `folder` under `key`, or None if there are none, or damaged ones."""
    for path in _places(folder, image_size):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != VERSION + key:
                    continue
                images, bad = file.get_tensor("images"), file.get_tensor("bad")
        except (OSError, SafetensorError):
            continue
        if metadata.get("checksum") == _checksum(images, bad):
            return Decoded(images, tuple(bad.tolist()))
    return None


def write_cache(folder: Path, image_size: int | None, key: str, decoded: Decoded) -> None:
    """Keep `decoded` for the next run, in the first place that can be written; a warning if there is none."""
    bad = torch.tensor(decoded.bad, dtype=torch.int64)
    metadata = {"key": VERSION + key, "checksum": _checksum(decoded.images, bad)}
    failure: Exception | None = None
    for path in _places(folder, image_size):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_replace(path) as temporary:
                save_file({"images": decoded.images, "bad": bad}, temporary, metadata=metadata)
            return
        except (OSError, SafetensorError) as error:
            failure = error
    warnings.warn(f"cannot keep the decoded images for the next run ({failure})", stacklevel=3)


def _places(folder: Path, image_size: int | None) -> list[Path]:
    """Where the cache may be: beside the images or, for folders one cannot write to, the user's cache."""
    name = f"{image_size or 'full'}.safetensors"
    path = str(folder.resolve())
    own = hashlib.blake2b(path.encode(), digest_size=8).hexdigest()
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [folder / ".rotateconv" / name, user / "rotateconv" / own / name]


def _checksum(images: Tensor, bad: Tensor) -> str:
    """Against bad disks, not bad people: a safetensors file itself does not notice changed bytes."""
    checksum = zlib.crc32(bad.numpy().data, zlib.crc32(images.numpy().data))
    return f"{checksum:08x} {tuple(images.shape)}"
