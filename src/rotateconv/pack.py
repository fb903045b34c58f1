"""A trained model in few bytes: packed into a file of quantised numbers, and loaded from it."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.conv import RotateConv2d
from rotateconv.fusion import fuse
from rotateconv.models import build_model
from rotateconv.packed_file import Description, read_packed, write_packed
from rotateconv.quantize import Entry, entries, quantize
from rotateconv.rounding import decode_angle, decode_weight, encode_angle, encode_weight, to_half
from rotateconv.walk import replace_modules


def pack(
    model: nn.Module,
    path: str | Path,
    *,
    weight_bits: int = 4,
    angle_bits: int = 5,
    dense_bits: int = 8,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: Sequence[int] | None = None,
) -> None:
    """Write a model into one small file, rounded as by `quantize` with the same bits.

    The file is described byte by byte in docs/packed-format.md. `load_packed` builds nets of `build_model` from
    it alone; of any other model it keeps the numbers and which convolutions are rotated, and needs the rest.

    Args:
        model: Of float32 parameters; not changed.
        path: The file to write, exactly.
        weight_bits, angle_bits, dense_bits: As in quantize.
        classes: Names of the classes, in the order of the outputs.
        mean, std: Per channel, of images between 0 and 1: the model sees (image - mean) / std.
        input_size: (channels, height, width) of an image.

    Raises:
        ValueError: If bits are out of range, a parameter is not float32 or not finite, or nothing can be
            written at path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pack(build_model("resnet20", "rotate2"), Path(folder) / "net.rotateconv")
        ...     net = load_packed(Path(folder) / "net.rotateconv")
        >>> sum(parameter.numel() for parameter in net.parameters())
        61850
    """
    quantised = quantize(model, weight_bits, angle_bits, dense_bits=dense_bits)
    tensors = entries(quantised, weight_bits, angle_bits, dense_bits)
    for entry in tensors:
        if entry.tensor.is_floating_point() and entry.tensor.dtype != torch.float32:
            raise ValueError(f"pack needs float32 numbers, and {entry.name} is {entry.tensor.dtype}: call model.float()")
    build = _build_arguments(quantised)
    description = {
        "class": type(model).__qualname__,
        "build": build,
        "lines": {} if build is not None else _lines(quantised),
        "bits": [weight_bits, angle_bits, dense_bits],
        "layout": _layout(tensors),
        "classes": None if classes is None else list(classes),
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "input_size": None if input_size is None else list(input_size),
    }
    write_packed(path, description, _encode(tensors))


def load_packed(path: str | Path, *, fused: bool = False, model: nn.Module | None = None) -> nn.Module:
    """The model in a packed file, equal to `quantize` of the model that was packed, bit for bit.

    Args:
        path: A file that `pack` wrote.
        fused: Whether every RotateConv2d becomes the nn.Conv2d with the same output: faster, not trainable as
            lines.
        model: The structure, for a file of a model that is not from build_model: that model before or after
            `convert`, with any values. Not changed.

    Returns:
        A model on the CPU (or the template's device) in evaluation mode.

    Raises:
        ValueError: If the file is missing, cut off, altered, foreign or of another version, or needs another
            `model`, or is given one that it does not need.

    Example:
        >>> load_packed("README.md")
        Traceback (most recent call last):
        ValueError: README.md is no packed model, or it was cut off: ...
    """
    description, streams = read_packed(path)
    try:
        kept = _Description(**{key: value for key, value in description.items() if key != "streams"})
        skeleton = _skeleton(kept, model)
        tensors = entries(skeleton, *kept.bits)
        found = _layout(tensors)
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is no packed model that can be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"cannot load {path}: {error}") from None
    if found != kept.layout:
        where = "the model given" if model is not None else "this rotateconv's net of that name"
        raise ValueError(f"{path} holds a {kept.class_name} of other tensors than {where}: give the one that was packed")
    if model is None:
        skeleton = skeleton.to_empty(device="cpu")
        tensors = entries(skeleton, *kept.bits)
    try:
        _decode(tensors, streams)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is no packed model that can be read: {error}") from None
    return (fuse(skeleton) if fused else skeleton).eval()
