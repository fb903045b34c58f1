"""The decoded images of a folder in one safetensors file, keyed by the files they came from."""

import hashlib
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rotateconv._files import atomic_replace, read_regular
from rotateconv.lab.data.decode import Decoded

VERSION = "3-"  # to be raised when the same files decode to other images


def read_cache(folder: Path, image_size: int | None, key: str, content: Callable[[], str]) -> Decoded | None:
    """Return the images cached for `folder`, or None if there are none, or of other files, or damaged ones.

    `key` is of paths, sizes, times and places on the disk: if it is that of the cache, no file was changed. `content`
    gives a hash of the contents of all files, for a folder that was copied or touched.
    """
    for path in _places(folder, image_size):
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if not metadata.get("content", "").startswith(VERSION):
                    continue
                same = _read_key(path) == key
                if not same and metadata["content"] != VERSION + content():
                    continue
                images, bad = file.get_tensor("images"), file.get_tensor("bad")
        except (OSError, SafetensorError):
            continue
        if metadata.get("checksum") == _checksum(images, bad):
            if not same:
                _write_key(path, key)
            return Decoded(images, tuple(bad.tolist()))
    return None


def write_cache(folder: Path, image_size: int | None, key: str, content: str, decoded: Decoded) -> None:
    """Keep `decoded` for the next run, in the first place that can be written; a warning if there is none."""
    bad = torch.tensor(decoded.bad, dtype=torch.int64)
    metadata = {"content": VERSION + content, "checksum": _checksum(decoded.images, bad)}
    failure: Exception | None = None
    for path in _places(folder, image_size):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_replace(path) as temporary:
                save_file({"images": decoded.images, "bad": bad}, temporary, metadata=metadata)
            _write_key(path, key)
            return
        except (OSError, SafetensorError) as error:
            failure = error
    warnings.warn(f"cannot keep the decoded images for the next run ({failure})", stacklevel=3)


def _places(folder: Path, image_size: int | None) -> list[Path]:
    """Where the cache may be: beside the images or, for folders one cannot write to, the user's cache."""
    name = f"{image_size or 'full'}.safetensors"
    own = hashlib.blake2b(str(folder.resolve()).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    places = [folder / ".rotateconv" / name]
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder
        return places
    return [*places, user / "rotateconv" / own / name]


def _read_key(path: Path) -> str | None:
    try:
        return read_regular(path.with_suffix(".key"), 1024).decode(errors="replace")
    except OSError:
        return None


def _write_key(path: Path, key: str) -> None:
    """Note which files the cache is of; where that fails, their contents are hashed each time."""
    try:
        with atomic_replace(path.with_suffix(".key")) as temporary:
            temporary.write_text(key, encoding="utf-8")
    except OSError:
        return


def _checksum(images: Tensor, bad: Tensor) -> str:
    """Against bad disks, not bad people: a safetensors file itself does not notice changed bytes."""
    checksum = zlib.crc32(bad.numpy().data, zlib.crc32(images.numpy().data))
    return f"{checksum:08x} {tuple(images.shape)}"
