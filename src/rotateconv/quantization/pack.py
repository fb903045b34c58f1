"""A trained model in few bytes: packed into a file of quantized numbers, and loaded from it."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from rotateconv.convert.fuse import fold_statistics, fuse
from rotateconv.convert.layers import added_layers, put_layers, rotate_configs
from rotateconv.errors import InputError
from rotateconv.models import build_model
from rotateconv.models.described import MAX_PARAMETERS, check_size, outline_model
from rotateconv.models.registry import BuildArguments
from rotateconv.nn.config import RotateConfig
from rotateconv.nn.copying import copy_model
from rotateconv.quantization.bits import Bits, levels_of
from rotateconv.quantization.pack_description import PackedDescription
from rotateconv.quantization.pack_file import LARGEST, PackedFile, read_packed, write_packed
from rotateconv.quantization.pack_streams import check_counts, decode, encode
from rotateconv.quantization.quantize import Entry, entries, quantized_entries

_ANY = Bits(8, 8, 8)  # where only names, kinds and shapes are asked for


def pack(
    model: nn.Module,
    path: str | Path,
    *,
    weight_bits: int = 4,
    angle_bits: int = 5,
    dense_bits: int = 8,
    weight_levels: int | None = None,
    profile_bits: int | None = None,
    layer_bits: Mapping[str, tuple[int, int]] | None = None,
    fold_norms: bool = False,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: Sequence[int] | None = None,
) -> None:
    """Write a model into one small file, quantized as by `quantize` with the same bits.

    docs/packed-format.md describes the file byte by byte. `load_packed` builds a model of `build_model` from it
    alone; of any other model it holds the numbers and which convolutions are RotateConv2d layers, and
    `load_packed` is given the rest.

    Args:
        model: Of float32 numbers; not changed.
        path: The file to write, exactly; whole or not at all.
        weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits: As in quantize.
        fold_norms: Whether the statistics of batch norms go into their weights and biases first: a file that is about
            two bytes per channel smaller, for inference; `load_packed` gives a model to go on training with only
            without it.
        classes: Names of the classes, in the order of the outputs.
        mean, std: Per channel, of images between 0 and 1: the model sees (image - mean) / std.
        input_size: (channels, height, width) of an image.

    Raises:
        ValueError: If bits are out of range, a number is not float32 or not finite, or the disk takes nothing
            at path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pack(build_model("resnet20", "rotate2"), f"{folder}/model.rotateconv")
        ...     model = load_packed(f"{folder}/model.rotateconv")
        >>> sum(parameter.numel() for parameter in model.parameters())
        61850
    """
    if fold_norms:
        model = copy_model(model)
        fold_statistics(model)
    bits = Bits.of(weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits)
    quantized, tensors = quantized_entries(model, bits)
    for entry in tensors:
        if entry.kind != "integer" and entry.tensor.dtype != torch.float32:
            raise InputError(
                f"pack needs float32 numbers, and {entry.name} is {entry.tensor.dtype}: call model.float()"
            )
    build, layers = _recipe(quantized)
    description = PackedDescription(
        architecture=type(model).__qualname__,
        build=build,
        layers=layers,
        bits=[weight_bits, angle_bits, dense_bits],
        # Two levels of one bit go without saying, but layers with bits of their own have levels without a 0 then, too.
        levels=None if weight_levels in (None, levels_of(weight_bits)) and not layer_bits else weight_levels,
        profile_bits=profile_bits,
        layer_bits={name: list(own) for name, own in layer_bits.items()} if layer_bits else None,
        layout=_layout(tensors),
        classes=None if classes is None else list(classes),
        mean=None if mean is None else list(mean),
        std=None if std is None else list(std),
        input_size=None if input_size is None else list(input_size),
    )
    write_packed(path, description.to_dict(), encode(tensors))


def load_packed(
    path: str | Path,
    *,
    fused: bool = False,
    model: nn.Module | None = None,
    max_parameters: int = MAX_PARAMETERS,
) -> nn.Module:
    """The model in a packed file: bit for bit what `quantize` makes of the model that was packed.

    A file may come from anybody: nothing in it is run, and its model and its streams take no memory before they are
    known to be of one size.

    Args:
        path: A file that `pack` wrote.
        fused: Whether every RotateConv2d becomes the nn.Conv2d with the same output: faster, and no
            longer to be trained as line segments.
        model: For a file of a model that build_model did not build: that model, before or after `convert`, with
            any values. Not changed.
        max_parameters: Numbers (parameters and buffers) above which a model that the file describes is refused.

    Returns:
        A new model in evaluation mode, on the CPU or the device of the model given.

    Raises:
        ValueError: If the file is missing, cut off, altered, foreign or of another version, holds numbers that are
            not finite or a model that is too large, or the model given is not the one it needs.

    Example:
        >>> load_packed("nothing.rotateconv")
        Traceback (most recent call last):
        rotateconv.errors.InputError: cannot read nothing.rotateconv: No such file or directory
    """
    # A number takes at most eight bytes and a bit; the rest is the description.
    packed = read_packed(path, max(LARGEST, 10 * max_parameters))
    try:
        skeleton = _skeleton(packed, model, max_parameters)
        decode(_entries(skeleton, packed.description), packed.codes)
    except ValueError as error:
        raise InputError(f"cannot load {path}: {error}") from error
    return (fuse(skeleton) if fused else skeleton).eval()


def describe_packed(path: str | Path) -> PackedDescription:
    """The description in a packed file: how it was built, its bits, its classes and normalization.

    Raises:
        ValueError: If the file is missing, cut off, altered, foreign or of another version.
    """
    return read_packed(path).description


def _recipe(model: nn.Module) -> tuple[BuildArguments | None, dict[str, RotateConfig]]:
    """Arguments of build_model, and the layers to put into what it builds.

    None and all layers of the model, where that would not give this model.
    """
    build: BuildArguments | None = getattr(model, "build_arguments", None)
    if build is not None:
        built = _build(build)
        added = added_layers(model, built)
        with suppress(AttributeError, InputError):  # changed by hand, it may have layers where the other has none
            put_layers(built, added)
            same = _layout(entries(built, _ANY)) == _layout(entries(model, _ANY))
            if type(built) is type(model) and same:
                return build, added
    return None, rotate_configs(model)


def _skeleton(packed: PackedFile, model: nn.Module | None, max_parameters: int) -> nn.Module:
    """The model of the description, with any values, once its size and its streams are known to be right."""
    description = packed.description
    if description.build is not None:
        if model is not None:
            raise InputError("it says itself how its model is built: leave the argument model out")
        outline = outline_model(description.build)
        check_size(outline, max_parameters)
        _put(outline, description)
        check_size(outline, max_parameters)
        _check_tensors(outline, packed, "this version builds for its name")
        skeleton = _build(description.build)
    elif model is None:
        raise InputError(
            f"it holds a {description.architecture}, which build_model does not build: give one as the argument model"
        )
    else:
        skeleton = copy_model(model)
    _put(skeleton, description)
    if model is not None:
        _check_tensors(skeleton, packed, "the model given has")
    return skeleton


def _put(model: nn.Module, description: PackedDescription) -> None:
    try:
        put_layers(model, description.layers)
    except AttributeError as error:
        raise InputError(f"its layers are those of another model: {error}") from None


def _check_tensors(model: nn.Module, packed: PackedFile, other: str) -> None:
    description = packed.description
    tensors = _entries(model, description)
    if _layout(tensors) != description.layout:
        raise InputError(f"it holds the numbers of a {description.architecture} with other tensors than {other}")
    check_counts(tensors, packed.stored)


def _entries(model: nn.Module, description: PackedDescription) -> list[Entry]:
    return entries(model, description.widths)


def _build(arguments: BuildArguments) -> nn.Module:
    # Not on the meta device, which takes more than a second to import; and not with the caller's random numbers.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return build_model(**arguments).float()


def _layout(tensors: list[Entry]) -> str:
    """A hash of what the tensors are; numbers that fit by chance must not be loaded into another model."""
    rows = [
        # Bfloat16 is called "half" in the hashes of version 1 of the format.
        f"{entry.name} {'half' if entry.kind == 'bf16' else entry.kind} {entry.bits} {list(entry.tensor.shape)}"
        for entry in tensors
    ]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
