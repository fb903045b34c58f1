"""From codes to kernels, in the graph: every kind of layer, all layers of one form together."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rotateconv.export.decoding import Body, splat_table
from rotateconv.kernels.line import Path, on_axis, tap_direction
from rotateconv.quantization.primitives import decode_angle


@dataclass(frozen=True)
class Form:
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
    codebook: str = ""
    profile: NDArray[Any] | None = None
    sizes: NDArray[Any] | None = None


def write(body: Body, form: Form, layers: Sequence[Layer], scales: str) -> None:
    """Write the kernels of layers of one form, under their names.

    Args:
        body: Takes the nodes.
        form: Of all these layers.
        layers: At least one.
        scales: The name of the scales of all output channels, (rows, taps).
    """
    codes = body.numbers(np.concatenate([layer.digits.ravel() for layer in layers]), form.levels, centered=True)
    columns = layers[0].scales.shape[1]
    if form.profile and not form.groups:
        columns = form.tail[0]
        profile = body.numbers(_joined(layer.profile for layer in layers), form.profile, centered=True)
        scales = body.op("Mul", body.shaped(profile, -1, columns), body.shaped(scales, -1, 1))
    tail = [columns] if columns > 1 else [1] * len(form.tail[1:])
    apart = body.split(
        body.shaped(scales, -1, *([1] * bool(form.tail)), 1, *tail), [layer.shape[0] for layer in layers]
    )
    for layer, scale, kernel in zip(layers, apart, KINDS[form.kind](body, form, layers, codes), strict=True):
        outputs = layer.shape[0]
        if columns > 1:  # the sum over the taps is a product of matrices: of (1, taps) and (taps, k²)
            taps = body.shaped(kernel, outputs, -1, columns, math.prod(form.tail))
            body.shaped(body.op("MatMul", scale, taps), outputs, -1, *form.tail, name=layer.name)
        else:
            body.op("Mul", body.shaped(kernel, outputs, -1, *form.tail), scale, name=layer.name)


def _dense(body: Body, form: Form, layers: Sequence[Layer], codes: str) -> Sequence[str]:
    return body.split(codes, [layer.digits.size for layer in layers])


def _line(body: Body, form: Form, layers: Sequence[Layer], codes: str) -> Sequence[str]:
    """Slices with a weight beside the center take the next angle each; what the others take changes no kernel."""
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
    return body.split(kernels, [len(layer.digits) for layer in layers])


def _grouped(body: Body, form: Form, layers: Sequence[Layer], codes: str) -> Sequence[str]:
    """The outputs of a group share angles, and profiles: [group, out of the group, in, tap, row, column]."""
    all_angles = _joined(layer.angles for layer in layers)
    angle, table = _angles(body, form, all_angles)
    splats = body.op("Gather", table, angle)
    if form.form == "profile":
        splats = body.op("ReduceSum", body.op("Mul", splats, f"{layers[0].name} profile"), body.ints(1), keepdims=0)
    free = form.form == "free"  # the sum over the taps is a product of matrices: of (1, taps) and (taps, k²)
    shared = body.split(splats, [_joined([layer.angles]).size for layer in layers])
    weights = body.split(codes, [layer.digits.size for layer in layers])
    found = []
    for layer, splat, weight in zip(layers, shared, weights, strict=True):
        weight = body.shaped(weight, form.groups, layer.shape[0] // form.groups, -1, 1, form.taps)
        matrix = [form.taps, math.prod(form.tail)] if free else form.tail
        splat = body.shaped(splat, form.groups, 1, -1, *matrix)
        found.append(body.op("MatMul" if free else "Mul", weight, splat))
    return found


def _masked(body: Body, form: Form, layers: Sequence[Layer], codes: str) -> Sequence[str]:
    """Each slice keeps the positions of one of the patterns, in order."""
    patterns = layers[0].table
    assert patterns is not None
    table = body.shaped(body.numbers(patterns, 2), -1, patterns.shape[1])
    index = body.numbers(_joined(layer.index for layer in layers), len(patterns))
    mask = body.float(body.shaped(body.op("Gather", table, index), -1))
    weights = body.op("Mul", body.op("Gather", codes, _places(body, mask)), mask)
    return body.split(weights, [math.prod(layer.shape) for layer in layers])


def _codebook(body: Body, form: Form, layers: Sequence[Layer], codes: str) -> Sequence[str]:
    """Each slice is a multiple of one of the kernels (K, k, k) of the codebook."""
    (layer,) = layers
    assert layer.index is not None
    kernels = body.op("Gather", layer.codebook, body.numbers(layer.index, int(layer.index.max()) + 1))
    return [body.op("Mul", kernels, body.shaped(codes, -1, 1, 1))]


def _outer(body: Body, form: Form, layers: Sequence[Layer], codes: str) -> Sequence[str]:
    """A column of codes times a row of codes for each slice."""
    pairs = body.shaped(codes, -1, 2, form.taps)
    column, row = (body.op("Gather", pairs, body.ints(place), axis=1) for place in (0, 1))
    kernels = body.op("Mul", body.shaped(column, -1, form.taps, 1), row)
    return body.split(kernels, [layer.shape[0] * layer.shape[1] for layer in layers])


KINDS: dict[str, Callable[[Body, Form, Sequence[Layer], str], Sequence[str]]] = {
    "dense": _dense,
    "line": _line,
    "grouped": _grouped,
    "masked": _masked,
    "codebook": _codebook,
    "outer": _outer,
}


def _angles(body: Body, form: Form, codes: NDArray[Any]) -> tuple[str, str]:
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


def _joined(parts: Iterable[NDArray[Any] | None]) -> NDArray[Any]:
    return np.concatenate([part.ravel() for part in parts if part is not None])
