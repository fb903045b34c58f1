"""Checkpoints: weights in safetensors, the rest beside them; whole or not there, the last two kept.

A run's folder `checkpoints` holds numbered folders. Each is filled under a temporary name and renamed, so a
crash leaves the earlier ones untouched; its `manifest.json` has the SHA-256 of every file, so damage is seen.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rotateconv._files import JSON_BYTES, TEMPORARY, limited_memory, parse_json, read_regular
from rotateconv.errors import InputError, RunError
from rotateconv.lab.files import disk_errors, write_bytes, write_json

_KEEP = 2
MANIFEST = "manifest.json"
LARGEST = 2**36
"""Bytes of a checkpoint's file above which it is refused."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint as read from the disk: the weights of "model" and "average", and what was saved beside them.

    `damaged` are newer ones that were passed over.
    """

    path: Path
    weights: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    damaged: tuple[Path, ...] = ()


def save_checkpoint(folder: Path, models: Mapping[str, nn.Module], state: Mapping[str, Any]) -> Path:
    """Write the next numbered checkpoint, remove all but the last two, and return its folder.

    Raises:
        RunError: the disk takes nothing more; the earlier checkpoints are still there. Or `folder` is a link.
    """
    files = {f"{name}.safetensors": weights_bytes(model) for name, model in models.items()}
    buffer = io.BytesIO()  # torch.save into a file turns a full disk into an unreadable RuntimeError
    torch.save(dict(state), buffer)
    files["state.pt"] = buffer.getvalue()

    number = max((_number(path.name) for path in list_checkpoints(folder)), default=0) + 1
    while os.path.lexists(target := folder / f"{number:06d}"):
        number += 1  # something of somebody else's has that name
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=TEMPORARY, dir=folder))
    try:
        for name, data in files.items():
            write_bytes(temporary / name, data)
        manifest = {
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "bytes": {name: len(data) for name, data in files.items()},
        }
        write_json(temporary / MANIFEST, manifest)
        with disk_errors(folder):
            temporary.chmod(folder.stat().st_mode)  # mkdtemp's are for their owner alone
            temporary.replace(target)
    finally:
        if temporary.exists():
            _remove(temporary)
    for path in list_checkpoints(folder)[:-_KEEP]:
        _remove(path)
    return target


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None; RunError where there are some, and all are damaged."""
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            files = {name: _read_file(path / name, *stated) for name, stated in _read_manifest(path).items()}
            state = read_pickled(files.pop("state.pt"))
            weights = {name.removesuffix(".safetensors"): read_weights(data) for name, data in files.items()}
            if not isinstance(state, dict) or "model" not in weights:
                raise InputError("it holds something else")
            return Checkpoint(path, weights, state, tuple(damaged))
        except Exception:  # the bytes of anything make the unpickler raise anything
            damaged.append(path)
    if damaged:
        raise RunError(f"every checkpoint in {folder} is damaged: overwrite the run to start again")
    return None


def read_pickled(data: bytes) -> Any:
    """Return what torch.save wrote; any error, MemoryError too, for a file that asks for more memory than it holds."""
    # A pickle may call for a bytearray of any size, and one of torch before 1.6 for tensors of any.
    with limited_memory(2 * len(data) + 2**29):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints, the newest last; RunError where `folder` is a link."""
    if folder.is_symlink():
        raise RunError(f"{folder} is a link, and checkpoints are kept in the run folder itself: remove the link")
    found = (path for path in folder.glob("[0-9]*") if path.name == f"{_number(path.name):06d}")
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=lambda p: _number(p.name))


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints that a run wrote into its folder, and the folder where nothing else is in it."""
    for path in list_checkpoints(folder):
        _remove(path)
    for path in folder.glob(f".[0-9]*{TEMPORARY}"):
        _remove(path)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove(path: Path) -> None:
    """Remove what `save_checkpoint` wrote: the files of its names, and the folder if nothing else was in it."""
    if path.is_symlink():
        return
    with contextlib.suppress(OSError):
        (path / MANIFEST).unlink(missing_ok=True)  # first: what is left is no checkpoint any more
        for file in path.iterdir():
            if file.name in ("model.safetensors", "average.safetensors", "state.pt") or TEMPORARY in file.suffixes:
                file.unlink()
        path.rmdir()


def _read_manifest(path: Path) -> dict[str, tuple[str, int | None]]:
    """Return hash and size of every file of a checkpoint; a manifest of older versions states no sizes."""
    manifest = parse_json(read_regular(path / MANIFEST, JSON_BYTES))
    hashes, sizes = manifest["sha256"], manifest.get("bytes", {})
    stated = {}
    for name, digest in hashes.items():
        size = sizes.get(name)
        if Path(name).name != name or not (size is None or type(size) is int) or type(digest) is not str:
            raise InputError("its manifest names something else than files of its folder")
        stated[name] = (digest, size)
    return stated


def _read_file(path: Path, digest: str, size: int | None) -> bytes:
    if path.is_symlink():
        raise InputError("a file is a link")
    data = read_regular(path, LARGEST, size=size)
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError("a file differs from its hash")
    return data


def _number(name: str) -> int:
    return int(name) if name.isascii() and name.isdigit() else -1


def weights_bytes(model: nn.Module) -> bytes:
    """Return the state dict as a safetensors file; a tensor of several names is stored once."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"its state has {name!r}, a {type(tensor).__name__}, where only tensors can be kept")
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        first = kept.setdefault(place, name) if tensor.numel() else name
        storage = tensor.device, tensor.untyped_storage().data_ptr()
        if first == name:
            saved = tensor.detach().cpu().contiguous()
            # A part of another tensor, such as a buffer that is a slice of one, is a tensor of its own in a file.
            tensors[name] = saved.clone() if storage in storages else saved
            storages.add(storage)
        else:
            aliases[name] = first
    data: bytes = save_tensors(tensors, metadata={"format": "pt", **aliases})
    return data


def read_weights(data: bytes) -> dict[str, Tensor]:
    """Return the state dict in the bytes of a safetensors file, ours or anybody's; ValueError for anything else.

    Metadata that name a tensor are the other names of that tensor (`weights_bytes`); all else there is left alone.
    """
    try:
        tensors: dict[str, Tensor] = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = parse_json(data[8 : 8 + length]).get("__metadata__") or {}
    except safetensors.SafetensorError as error:
        raise InputError(f"expected a safetensors file, but {error}") from None
    others = {name: tensors[first] for name, first in metadata.items() if first in tensors and name not in tensors}
    return tensors | others
