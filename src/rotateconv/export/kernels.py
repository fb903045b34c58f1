"""From codes to kernels, in the graph: every kind of layer, all layers of one form together."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rotateconv.export.decoding import Body, splat_table
from rotateconv.kernels.line import Path, on_axis, tap_direction
from rotateconv.quantization.primitives import decode_angle


@dataclass(frozen=True)
class KernelForm:
    """What layers have in common that are decoded together.

    Attributes:
        kind: Of `KINDS`.
        levels: Codes of a weight.
        tail: The kernel's shape behind output and input channels, (k, k) or ().
        taps: Codes of a slice of a line or a mask.
        form: Of the taps of a line: "free", "shared" or "profile".
        angle: Bits, period and path of the angles of a line.
        groups: Of output channels that share angles; 0 without.
        profile: Levels of quantized profiles; 0 for those of bfloat16.
        own: Of a layer that is decoded alone.
    """

    kind: str
    levels: int
    tail: tuple[int, ...]
    taps: int = 1
    form: str = ""
    angle: tuple[int, float, Path] | None = None
    groups: int = 0
    profile: int = 0
    own: str = ""


@dataclass(frozen=True, eq=False)
class Layer:
    """The codes of a layer.

    Attributes:
        name: Of the kernel in the graph.
        shape: Of the kernel.
        digits: Codes of weights as numbers from 0, (slices, taps) or flat.
        scales: (out, 1), or with a profile of 16 bits (out, taps).
        bias: Its name, and its values; or none.
        angles: Codes of angles, one a slice (or a group's input channel).
        index: For each slice, the row of `table`.
        table: Positions of masks as ones.
        seed: Of the positions of a mask without a table.
        codebook: Its name in the graph.
        profile: Of groups, (groups · in, taps); of a quantized one its codes as numbers from 0, there or (out, taps).
        sizes: Scales of a quantized profile of groups, (groups · in, 1).
    """

    name: str
    shape: tuple[int, ...]
    digits: NDArray[Any]
    scales: NDArray[Any]
    bias: tuple[str, NDArray[Any]] | None = None
    angles: NDArray[Any] | None = None
    index: NDArray[Any] | None = None
    table: NDArray[Any] | None = None
    seed: int = 0
    codebook: str = ""
    profile: NDArray[Any] | None = None
    sizes: NDArray[Any] | None = None


def write(body: Body, form: KernelForm, layers: Sequence[Layer], scales: str) -> None:
    """Write the kernels of layers of one form, under their names.

    Args:
        body: Takes the nodes.
        form: Of all these layers.
        layers: At least one. Those of one shape behind the output channels follow each other: they are one to the end.
        scales: The name of the scales of all output channels, (rows, taps).
    """
    codes = body.numbers(np.concatenate([layer.digits.ravel() for layer in layers]), form.levels, centered=True)
    columns = layers[0].scales.shape[1]
    if form.profile and not form.groups:
        columns = form.tail[0]
        profile = body.numbers(_joined(layer.profile for layer in layers), form.profile, centered=True)
        scales = body.op("Mul", body.shaped(profile, -1, columns), body.shaped(scales, -1, 1))
    alike = [list(some) for _, some in groupby(layers, lambda layer: layer.shape[0 if form.groups else 1 :])]
    rows = [sum(layer.shape[0] for layer in some) for some in alike]
    tail = [columns] if columns > 1 else [1] * len(form.tail[1:])
    apart = body.split(body.shaped(scales, -1, *([1] * bool(form.tail)), 1, *tail), rows)
    for some, scale, kernels in zip(alike, apart, KINDS[form.kind](body, form, alike, codes), strict=True):
        only = some[0].name if len(some) == 1 else ""
        outputs, inputs = (some[0].shape[0], -1) if only else (-1, some[0].shape[1])  # few different shapes
        shape = outputs, inputs, *form.tail
        if columns > 1:  # the sum over the taps is a product of matrices: of (1, taps) and (taps, k²)
            taps = body.shaped(kernels, outputs, inputs, columns, math.prod(form.tail))
            product = body.shaped(body.op("MatMul", scale, taps), *shape, name=only)
        else:
            product = body.op("Mul", body.shaped(kernels, *shape), scale, name=only)
        if not only:
            body.split(product, [layer.shape[0] for layer in some], [layer.name for layer in some])


Alike = Sequence[Sequence[Layer]]
"""The layers of one form, those of one shape together."""


def _dense(body: Body, form: KernelForm, alike: Alike, codes: str) -> Sequence[str]:
    return body.split(codes, [sum(layer.digits.size for layer in layers) for layers in alike])


def _line(body: Body, form: KernelForm, alike: Alike, codes: str) -> Sequence[str]:
    """Slices with a weight beside the center take the next angle each; what the others take changes no kernel."""
    layers = _flat(alike)
    digits = np.concatenate([layer.digits for layer in layers]) - form.levels // 2
    moving = np.arange(form.taps) != form.taps // 2 if form.taps > 1 else np.ones(1, dtype=bool)
    used = (digits * moving).any(1) if form.levels % 2 else np.ones(len(digits), dtype=bool)
    kept = used if used.any() else np.arange(len(used)) == 0
    angle, table = _angles(body, form, _joined(layer.angles for layer in layers)[kept])
    if not used.all():
        rows = body.shaped(codes, -1, form.taps)
        rows = body.op("Mul", rows, body.float(body.ints(*moving.astype(int)))) if form.taps > 1 else rows
        ones = body.op("Sign", body.op("ReduceMax", body.op("Abs", rows), body.ints(1), keepdims=0))
        angle = body.op("Gather", angle, _places(body, ones))
    splats = body.op("Gather", table, angle)  # [slice, tap, row, column], without taps where they share a weight
    weights = body.shaped(codes, -1, *([1] if form.form == "shared" else [form.taps, 1]), 1)
    kernels = body.op("Mul", weights, splats)
    kernels = body.op("ReduceSum", kernels, body.ints(1), keepdims=0) if form.form == "free" else kernels
    return body.split(kernels, [sum(len(layer.digits) for layer in layers) for layers in alike])


def _grouped(body: Body, form: KernelForm, alike: Alike, codes: str) -> Sequence[str]:
    """The outputs of a group share angles, and profiles: [layer · group, out of the group, in, tap, row, column]."""
    layers = _flat(alike)
    angle, table = _angles(body, form, _joined(layer.angles for layer in layers))
    splats = body.op("Gather", table, angle)
    if form.form == "profile":
        splats = body.op("ReduceSum", body.op("Mul", splats, f"{layers[0].name} profile"), body.ints(1), keepdims=0)
    free = form.form == "free"  # the sum over the taps is a product of matrices: of (1, taps) and (taps, k²)
    shared = body.split(splats, [_joined(layer.angles for layer in layers).size for layers in alike])
    weights = body.split(codes, [sum(layer.digits.size for layer in layers) for layers in alike])
    found = []
    for (layer, *_), splat, weight in zip(alike, shared, weights, strict=True):
        outputs, inputs = layer.shape[:2]
        weight = body.shaped(weight, -1, outputs // form.groups, inputs, 1, form.taps)
        matrix = [form.taps, math.prod(form.tail)] if free else form.tail
        splat = body.shaped(splat, -1, 1, inputs, *matrix)
        found.append(body.op("MatMul" if free else "Mul", weight, splat))
    return found


def _masked(body: Body, form: KernelForm, alike: Alike, codes: str) -> Sequence[str]:
    """Each slice keeps the positions of one of the patterns, or of its layer's seed, in order."""
    layers = _flat(alike)
    patterns = layers[0].table
    if patterns is None:
        mask = _mask_of_seeds(body, form, layers)
    else:
        table = body.shaped(body.numbers(patterns, 2), -1, patterns.shape[1])
        mask = body.op("Gather", table, body.numbers(_joined(layer.index for layer in layers), len(patterns)))
    mask = body.float(body.shaped(mask, -1))
    weights = body.op("Mul", body.op("Gather", codes, _places(body, mask)), mask)
    return body.split(weights, [sum(math.prod(layer.shape) for layer in layers) for layers in alike])


def _mask_of_seeds(body: Body, form: KernelForm, layers: Sequence[Layer]) -> str:
    """`nn.masked.positions_of_seed` of all layers, as (slices, positions) of true and false.

    With s the slice and a layer's first one f, and C = 2654435761::

        x = mix((s · positions + position) + (seed · C - f · positions) mod 2^32)

    x lies in two halves of 16 bits, and nothing that is computed has more than 32, which is all that OpenVINO has.
    "Exclusive or" is a table, for OpenVINO folds no operator that has it, and what is not folded it computes as floats.
    """
    positions, half, byte = math.prod(form.tail), body.ints(2**16), body.ints(2**8)
    first = np.cumsum([0, *(math.prod(layer.shape[:2]) for layer in layers)])
    start = [(layer.seed * 2654435761 - int(f) * positions) % 2**32 for layer, f in zip(layers, first, strict=False)]
    slices = body.op("Range", *(body.op("Squeeze", body.ints(value)) for value in (0, int(first[-1]), 1)))
    slices = body.shaped(slices, -1, 1)
    layer = body.op("ReduceSum", body.whole(body.op("GreaterOrEqual", slices, body.ints(*first[1:]))), body.ints(1))
    number = body.op("Add", body.op("Mul", slices, body.ints(positions)), body.ints(*range(positions)))
    low = body.op("Add", number, body.op("Gather", body.ints(*(value % 2**16 for value in start)), layer))
    high = body.op("Gather", body.ints(*(value >> 16 for value in start)), layer)
    table = body.ints(0, 1, 1, 0)
    for size in (2, 4, 16):
        left = body.op("Mul", body.shaped(table, size, 1, size, 1), body.ints(size))
        table = body.op("Add", left, body.shaped(table, 1, size, 1, size))
    table = body.shaped(table, -1)

    def either(one: str, other: str) -> str:
        """Of numbers below 2^16, a byte of each at a time."""
        low = body.op("Mod", one, byte)
        lower = body.op("Add", body.op("Mul", low, byte), body.op("Mod", other, byte))
        upper = body.op("Add", body.op("Sub", one, low), body.op("Div", other, byte))
        found = body.op("Mul", body.op("Gather", table, upper), byte)
        return body.op("Add", found, body.op("Gather", table, lower))

    def carried(low: str, high: str) -> tuple[str, str]:
        rest = body.op("Mod", low, half)
        return rest, body.op("Mod", body.op("Add", high, body.op("Div", body.op("Sub", low, rest), half)), half)

    def product(low: str, high: str, factor: int) -> tuple[str, str]:
        small = (factor + 2**15) % 2**16 - 2**15  # the halves of the factor, around zero
        large = ((factor - small >> 16) + 2**15) % 2**16 - 2**15
        crossed = body.op("Mod", body.op("Mul", low, body.ints(large)), half)
        crossed = body.op("Add", crossed, body.op("Mul", high, body.ints(small)))
        return carried(body.op("Mul", low, body.ints(small)), crossed)

    low, high = carried(low, high)
    low, high = product(either(low, high), high, 0x85EBCA6B)
    later = body.ints(2**13)
    more = body.op("Mul", body.op("Mod", high, later), body.ints(8))
    low = either(low, body.op("Add", body.op("Div", low, later), more))
    low, high = product(low, either(high, body.op("Div", high, later)), 0xC2B2AE35)
    low = either(low, high)
    x = body.op("Add", body.op("Mul", body.op("Sub", high, body.ints(2**15)), half), low)
    smallest = body.op("TopK", x, body.ints(form.taps), more=1, largest=0)
    return body.op("LessOrEqual", x, body.op("ReduceMax", smallest, body.ints(1)))


def _codebook(body: Body, form: KernelForm, alike: Alike, codes: str) -> Sequence[str]:
    """Each slice is a multiple of one of the kernels (K, k, k) of the codebook."""
    ((layer,),) = alike
    assert layer.index is not None
    kernels = body.op("Gather", layer.codebook, body.numbers(layer.index, int(layer.index.max()) + 1))
    return [body.op("Mul", kernels, body.shaped(codes, -1, 1, 1))]


def _outer(body: Body, form: KernelForm, alike: Alike, codes: str) -> Sequence[str]:
    """A column of codes times a row of codes for each slice."""
    pairs = body.shaped(codes, -1, 2, form.taps)
    column, row = (body.op("Gather", pairs, body.ints(place), axis=1) for place in (0, 1))
    kernels = body.op("Mul", body.shaped(column, -1, form.taps, 1), row)
    return body.split(kernels, [sum(math.prod(layer.shape[:2]) for layer in layers) for layers in alike])


KINDS: dict[str, Callable[[Body, KernelForm, Alike, str], Sequence[str]]] = {
    "dense": _dense,
    "line": _line,
    "grouped": _grouped,
    "masked": _masked,
    "codebook": _codebook,
    "outer": _outer,
}


def _angles(body: Body, form: KernelForm, codes: NDArray[Any]) -> tuple[str, str]:
    """The angles as places in the table of the splats of those that there are, and that table."""
    assert form.angle is not None
    bits, period, path = form.angle
    there, places = np.unique(codes, return_inverse=True)
    angles = decode_angle(torch.from_numpy(there), bits, period)
    taps = torch.stack([on_axis(place) for place in tap_direction(angles, path)], 1).numpy()
    return body.numbers(places, len(there)), splat_table(body, taps, form.tail[0], form.form == "shared")


def _places(body: Body, used: str) -> str:
    """The place of each one among the ones, 0 for the first; whole numbers up to 2^24 are exact in float32."""
    count = body.op("CumSum", used, body.op("Squeeze", body.ints(0)))
    return body.op("Sub", body.whole(count), body.ints(1))


def _flat(alike: Alike) -> list[Layer]:
    return [layer for layers in alike for layer in layers]


def _joined(parts: Iterable[NDArray[Any] | None]) -> NDArray[Any]:
    return np.concatenate([part.ravel() for part in parts if part is not None])
