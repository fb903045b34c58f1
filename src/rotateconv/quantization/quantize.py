"""Quantize the numbers of a model to few bits; the result is an ordinary model of the same class."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from rotateconv.convert.recalibrate import recalibrate
from rotateconv.errors import InputError
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.codebook import CodebookConv2d, nearest_multiple
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.copying import copy_model
from rotateconv.nn.masked import MaskedConv2d
from rotateconv.quantization.bits import Bits, levels_of
from rotateconv.quantization.primitives import (
    angle_period,
    decode_angle,
    decode_weight,
    encode_angle,
    encode_weight,
    encode_weight_at,
    to_bf16,
)

Kind = Literal["weight", "dense", "bf16", "integer", "angle", "codebook", "profile"]


def quantize(
    model: nn.Module,
    weight_bits: int = 4,
    angle_bits: int = 5,
    *,
    dense_bits: int = 8,
    weight_levels: int | None = None,
    profile_bits: int | None = None,
    layer_bits: Mapping[str, tuple[int, int]] | None = None,
    calibration: Iterable[Tensor | Sequence[Tensor]] | None = None,
    scales: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A copy of a model whose numbers are the nearest ones that few bits can hold.

    ::

        convolution kernels  ŵ[o,...] = c[o,...] · 2^(e[o]/8)                      see primitives.encode_weight
        angles               θ̂ = q · period / 2^bits                               see primitives.encode_angle
        codebook slices      ŵ[o,i] = c[o,i] · 2^(e[o]/8) · codebook[n]            see nn.codebook.CodebookConv2d
        profiles             p̂[o,t] = c[o,t] · 2^(e[o]/8), where profile_bits says so
        everything else      bfloat16: other profiles, biases, norms and their statistics; integers stay

    `weight_bits` are for what has a spatial kernel: every RotateConv2d, MaskedConv2d, OuterConv2d, the factors of a
    CodebookConv2d, and a dense convolution beyond 1x1 that is neither the model's first nor grouped. With 2 bits
    these are ternary weight networks (TWN), with 1 bit the binary weights with a scale of XNOR-Net (BWN), with the
    scale per output channel. `weight_levels` says how many of the 2^bits codes there are: an odd number of levels has
    0 in the middle, an even one has none and lies around it. One weight for a whole slice is worth most without a 0,
    which would drop the slice with its angle.
    `dense_bits` are for the first convolution, 1x1 and grouped ones, linear layers and the kernels of a codebook: few
    numbers in a model for small images, and they suffer most from quantization.
    The period of an angle is a full turn, and half of one with taps="shared". A slice whose taps all become 0
    (the center one aside, which does not move) has no direction: its angle becomes 0, which saves its bits in a
    packed file and changes no kernel.

    Args:
        model: Not changed.
        weight_bits: 1 to 8; of 1 bit is the sign, times the scale.
        angle_bits: 2 to 8.
        dense_bits: 1 to 8.
        weight_levels: Above 2^(weight_bits-1), at most 2^weight_bits (and 128, or 255); None for 2^weight_bits - 1, and
            2 with 1 bit.
        profile_bits: Of the profiles of RotateConv2d, 2 to 8, with 2^profile_bits - 1 levels and a scale per profile;
            None for bfloat16, which in a small model is a tenth of the file.
        layer_bits: Other weight_bits and angle_bits for layers by their name, or a pattern such as "layer1.*"; the last
            that fits counts. Such a weight has 2^bits levels where `weight_levels` is even, else as many as its bits
            have by themselves.
        calibration: Batches of images, as `recalibrate` takes them: the batch norms of the copy measure their
            statistics again behind the quantized weights. None keeps those of the training, which with 3 bits and
            fewer no longer fit.
        scales: Scales, (out,), of weights by the name of their tensor, such as `QuantizedTraining.scales`: each
            becomes 2^(e/8) with the nearest e. A tensor without them gets those of the least squared error.

    Returns:
        The copy, with dtypes, devices and training flags as they were. Quantizing it again changes nothing.

    Raises:
        ValueError: If bits are out of their range, a pattern of `layer_bits` fits no layer that has such bits, a
            number is not finite, or the calibration has no image.

    Example:
        >>> layer = quantize(RotateConv2d(16, 16, 3), weight_bits=3, angle_bits=4)
        >>> len((layer.weight[0] / layer.weight[0].abs().max()).unique()) <= 7, len(layer.angle.unique()) <= 16
        (True, True)

    Reference:
        Han, Mao, Dally, "Deep Compression", ICLR 2016. Li, Zhang, Liu, "Ternary Weight Networks", 2016. Rastegari,
        Ordonez, Redmon, Farhadi, "XNOR-Net", ECCV 2016, section 3.1.
    """
    bits = Bits.of(weight_bits, angle_bits, dense_bits, weight_levels, profile_bits, layer_bits)
    quantized, tensors = quantized_entries(model, bits, scales)
    if calibration is not None:
        recalibrate(quantized, calibration)
        quantize_in_place([entry for entry in tensors if entry.kind == "bf16"])
    return quantized


def quantized_entries(
    model: nn.Module, bits: Bits, scales: Mapping[str, Tensor] | None = None
) -> "tuple[nn.Module, list[Entry]]":
    """A quantized copy of a model, and the entries of its tensors; as `quantize` without a calibration."""
    quantized = copy_model(model)
    tensors = entries(quantized, bits)
    quantize_in_place(tensors, scales)
    return quantized, tensors


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor of a model and how it is quantized.

    Attributes:
        name: In the model's state dict; the first, if it is registered under several.
        tensor: The parameter or buffer itself.
        kind: "weight", "dense" (codes with one scale per output channel), "profile" (with one per profile), "codebook"
            (such a code a slice, times a kernel of the codebook), "angle", "bf16" (bfloat16) or "integer" (as it is).
        bits: Of a code; 16 for "bf16", 64 for "integer".
        levels: Number of values of such a code of a weight; else 0.
        layers: The layers that an angle belongs to, else empty; nearly always one.
        positions: Of a kernel, where the tensor counts them; else None.
        codebook: (K, k, k), whose multiples the slices of the tensor are; else None.
        own_bits: Whether the bits are of `layer_bits`.
    """

    name: str
    tensor: Tensor
    kind: Kind
    bits: int
    levels: int = 0
    layers: tuple[RotateConv2d, ...] = ()
    positions: int | None = None
    codebook: Tensor | None = None
    own_bits: bool = False

    @property
    def stream(self) -> str:
        """Name of the stream of its codes in a packed file."""
        name = "weight" if self.kind == "codebook" else self.kind
        return f"{name}{self.bits}" if self.own_bits else name

    @property
    def period(self) -> float:
        """Of an angle, in radians; where layers of several kinds share one, the longest."""
        return max(angle_period(layer.taps) for layer in self.layers)

    @property
    def rows(self) -> Tensor:
        """The tensor with what shares a scale in a row, (rows, ...): a view."""
        return self.tensor.flatten(0, -2) if self.kind == "profile" else self.tensor

    def unused(self) -> Tensor:
        """Where an angle has no effect: no tap that moves has a weight. A bool of its shape."""
        return torch.stack([_unused(layer) for layer in self.layers]).all(0)


def entries(model: nn.Module, bits: Bits) -> list[Entry]:
    """Every tensor of a model's state dict once, in its order, but the angles at the end.

    Raises:
        ValueError: If bits are out of their range, a pattern fits no layer with such bits, or a tensor is complex.
    """
    bits.check()
    profile: Kind = "bf16" if bits.profile is None else "profile"
    levels: dict[Kind, int] = {
        "weight": bits.levels_of_weight,
        "codebook": bits.levels_of_weight,
        "dense": levels_of(bits.dense),
        "profile": levels_of(bits.profile or 8),
    }
    bits_of: dict[Kind, int] = {
        "weight": bits.weight,
        "dense": bits.dense,
        "bf16": 16,
        "integer": 64,
        "angle": bits.angle,
        "codebook": bits.weight,
        "profile": bits.profile or 16,
    }
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    layers: dict[int, list[RotateConv2d]] = {}
    for module in model.modules():
        if isinstance(module, RotateConv2d):
            layers.setdefault(id(module.angle), []).append(module)

    found: dict[int, Entry] = {}
    for name, module, key, tensor in _tensors(model):
        if tensor.is_complex():
            raise InputError(f"cannot quantize {name}: expected real numbers, got {tensor.dtype}")
        kind = _kind(module, key, tensor, module is first)
        if kind == "bf16" and key == "profile" and isinstance(module, RotateConv2d):
            kind = profile
        if id(tensor) not in found:
            owners = tuple(layers[id(tensor)]) if kind == "angle" else ()
            counts = isinstance(module, MaskedConv2d) and key == "position"
            positions = math.prod(module.kernel_size) if counts else None  # type: ignore[arg-type]
            codebook = module.codebook if kind == "codebook" and isinstance(module, CodebookConv2d) else None
            found[id(tensor)] = Entry(
                name, tensor, kind, bits_of[kind], levels.get(kind, 0), owners, positions, codebook
            )
    tensors = sorted(found.values(), key=lambda entry: entry.kind == "angle")
    return _with_own_bits(tensors, bits) if bits.layers else tensors


def _with_own_bits(tensors: list[Entry], bits: Bits) -> list[Entry]:
    owners = [
        entry.name.rpartition(".")[0] if entry.kind in ("weight", "codebook", "angle") else "" for entry in tensors
    ]
    for pattern, _ in bits.layers:
        if not any(fnmatchcase(layer, pattern) for layer in owners if layer):
            names = ", ".join([*dict.fromkeys(filter(None, owners))][:2])
            some = f"{names}, ... are" if names else "the model has none"
            raise InputError(f"layer_bits names {pattern}, and no layer with weight_bits is called so: {some}")
    return [_with_last(entry, layer, bits) if layer else entry for entry, layer in zip(tensors, owners, strict=True)]


def _with_last(entry: Entry, layer: str, bits: Bits) -> Entry:
    """The entry with the bits of the last pattern that fits its layer."""
    fitting = [own for pattern, own in bits.layers if fnmatchcase(layer, pattern)]
    if not fitting:
        return entry
    weight, angle = fitting[-1]
    if entry.kind == "angle":
        return replace(entry, bits=angle, own_bits=True)
    return replace(entry, bits=weight, levels=bits.own_levels(weight), own_bits=True)


@torch.no_grad()
def quantize_in_place(
    tensors: list[Entry], scales: Mapping[str, Tensor] | None = None, *, keep_unused: bool = False
) -> None:
    """Write the quantized numbers into the tensors of a model; the angles come after the weights.

    Args:
        tensors: Entries of the model.
        scales: As in quantize.
        keep_unused: Whether an angle without effect stays the quantized angle that it is, in place of 0.
    """
    for entry in tensors:
        if entry.kind != "integer":
            try:
                entry.tensor.copy_(_quantized(entry, (scales or {}).get(entry.name), keep_unused))
            except ValueError as error:
                raise InputError(f"cannot quantize {entry.name}: {error}") from None


def _quantized(entry: Entry, sizes: Tensor | None, keep_unused: bool) -> Tensor:
    if entry.kind == "angle":
        angle = decode_angle(encode_angle(entry.tensor, entry.bits, entry.period), entry.bits, entry.period)
        # The weights, earlier in the order, are quantized already.
        return angle if keep_unused else angle.masked_fill_(entry.unused(), 0)
    if entry.kind == "bf16":
        return to_bf16(entry.tensor)
    if entry.codebook is not None:
        index, factor = nearest_multiple(entry.tensor, entry.codebook)  # which is quantized already
        return decode_weight(*encode_weight(factor, entry.levels))[..., None, None] * entry.codebook[index]
    if sizes is None:
        return decode_weight(*encode_weight(entry.rows, entry.levels)).view_as(entry.tensor)
    return decode_weight(*encode_weight_at(entry.tensor, sizes, entry.levels))


def _unused(layer: RotateConv2d) -> Tensor:
    weight = layer.weight.detach()
    if layer.taps == "free":
        weight = weight.index_fill(-1, torch.tensor(layer.kernel_size[0] // 2, device=weight.device), 0)
    still = (weight == 0).all(-1)  # [out, in]
    return still if layer.angle_groups is None else still.unflatten(0, (layer.angle_groups, -1)).all(1)


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Name, owner, name in it, tensor: parameters, then the buffers that a state dict has, module by module."""
    for prefix, module in model.named_modules():
        kept = {k: b for k, b in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for key, tensor in (*module._parameters.items(), *kept.items()):
            if tensor is not None:
                yield f"{prefix}.{key}" if prefix else key, module, key, tensor


def _kind(module: nn.Module, key: str, tensor: Tensor, first: bool) -> Kind:
    if not tensor.is_floating_point():
        return "integer"
    if isinstance(module, RotateConv2d) and key == "angle":
        return "angle"
    if isinstance(module, CodebookConv2d) and key in ("codebook", "weight"):
        return "dense" if key == "codebook" else "codebook"
    if key == "weight":
        if isinstance(module, ConvBase):
            return "weight"
        if isinstance(module, nn.Conv2d) and not first and module.groups == 1 and max(module.kernel_size) > 1:
            return "weight"
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            return "dense"
    return "bf16"
