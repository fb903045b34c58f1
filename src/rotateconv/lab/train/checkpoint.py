"""Checkpoints: weights in safetensors, the rest beside them; whole or not there, the last two kept.

A run's folder `checkpoints` holds numbered folders. Each is filled under a temporary name and renamed, so a
crash leaves the earlier ones untouched; its `manifest.json` has the SHA-256 of every file, so damage is seen.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rotateconv.errors import InputError, RunError
from rotateconv.lab.train.run_folder import disk_errors, write_bytes, write_json

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint as read from the disk.

    Args:
        path: its folder.
        weights: by name of the model ("model", "average"): the state dict.
        state: what was saved beside them.
        damaged: newer checkpoints that were passed over because they are damaged.
    """

    path: Path
    weights: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    damaged: tuple[Path, ...] = ()


def save_checkpoint(folder: Path, models: Mapping[str, nn.Module], state: Mapping[str, Any]) -> Path:
    """Write the next numbered checkpoint, remove all but the last two, and return its folder.

    Args:
        folder: where the checkpoints of the run are.
        models: nets by name; each becomes NAME.safetensors.
        state: nested dicts and lists of tensors, numbers, strings and None.

    Raises:
        RunError: the disk takes nothing more; the earlier checkpoints are still there.
    """
    files = {f"{name}.safetensors": weights_bytes(model) for name, model in models.items()}
    buffer = io.BytesIO()  # torch.save into a file turns a full disk into an unreadable RuntimeError
    torch.save(dict(state), buffer)
    files["state.pt"] = buffer.getvalue()

    numbers = [int(path.name) for path in list_checkpoints(folder)]
    target = folder / f"{max(numbers, default=0) + 1:06d}"
    temporary = folder / f".{target.name}.tmp"
    try:
        with disk_errors(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        for name, data in files.items():
            write_bytes(temporary / name, data)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        write_json(temporary / "manifest.json", {"sha256": hashes})
        with disk_errors(folder):
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, naming damaged newer ones; None where there is none yet.

    Raises:
        RunError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            hashes = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["sha256"]
            files = {name: (path / name).read_bytes() for name in hashes}
            if any(hashlib.sha256(data).hexdigest() != hashes[name] for name, data in files.items()):
                raise InputError("a file differs from its hash")
            state = torch.load(io.BytesIO(files.pop("state.pt")), map_location="cpu", weights_only=True)
            weights = {name.removesuffix(".safetensors"): read_weights(data) for name, data in files.items()}
            return Checkpoint(path, weights, state, tuple(damaged))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UnpicklingError):
            damaged.append(path)
    if damaged:
        raise RunError(f"every checkpoint in {folder} is damaged: overwrite the run to start again")
    return None


def weights_bytes(model: nn.Module) -> bytes:
    """Return the state dict as a safetensors file; a tensor of several names is stored once."""
    kept: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        first = kept.setdefault(place, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor.detach().cpu().contiguous()
        else:
            aliases[name] = first
    data: bytes = save_tensors(tensors, metadata=aliases)
    return data


def read_weights(data: bytes) -> dict[str, Tensor]:
    """Return the state dict that `weights_bytes` stored; ValueError where the bytes are something else."""
    try:
        tensors: dict[str, Tensor] = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        aliases = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except safetensors.SafetensorError as error:
        raise InputError(f"expected a safetensors file, but {error}") from None
    return tensors | {name: tensors[first] for name, first in aliases.items()}


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints, the newest last."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit())
