"""The kernels of many layers by one Triton launch each way. Imported only where Triton is.

A table has the addresses and sizes of the layers, a list names the slices that each program works on. Both follow from
where the parameters lie, so that a training step finds them made, and a captured one may use them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rotateconv.kernels.fused_triton import compile_options, write_gradients, write_slices
from rotateconv.kernels.line import Path

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

_COLUMNS = 6  # of the table, int64: addresses of weight, angle and profile, the first slice, slices, slices of a row
_ALIGNMENT = 64  # slices: what begins at a multiple of them is aligned as convolutions and optimizers like it
_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True)
class Sources:
    """The parameters of layers of one sort: contiguous, on one device, of the same dtypes and number of taps.

    Attributes:
        weights: (out, in, T), or (out, in, 1) for shared taps and with profiles.
        angles: (out, in).
        profiles: (out, k), or none at all.
        scales: On the gradient of each angle.
        size: k.
        path: "circle" or "square".
    """

    weights: Sequence[Tensor]
    angles: Sequence[Tensor]
    profiles: Sequence[Tensor]
    scales: tuple[float, ...]
    size: int
    path: Path


@dataclass(frozen=True)
class _Plan:
    """What follows from where the parameters lie, and is the same at every step."""

    table: Tensor
    blocks: Tensor
    scales: Tensor
    rows: Tensor
    firsts: tuple[int, ...]
    slices: int


def line_kernels_forward(sources: Sources, dtype: torch.dtype, channels_last: bool) -> list[Tensor]:
    """The kernels of all layers, (out, in, k, k), in one launch: in the dtype and the order in memory asked for."""
    plan, options = _plan(sources), _options(sources, channels_last)
    kernels = torch.empty(plan.slices * sources.size**2, dtype=dtype, device=sources.angles[0].device)
    _launch(_forward_batch, plan, (kernels,), options)
    return _kernel_views(kernels, plan, sources, channels_last)


def line_kernels_backward(
    sources: Sources, grads: Sequence[Tensor | None], channels_last: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of weights, angles and profiles from those of the kernels, in one launch and a copy.

    Args:
        sources: As for the kernels.
        grads: Of the kernels, (out, in, k, k), of one dtype; what is found for a layer whose own is None, is undefined.
        channels_last: The order in memory that they are expected in; another one takes longer.
    """
    plan, options = _plan(sources), _options(sources, channels_last)
    weight, angle, device, k = sources.weights[0], sources.angles[0], sources.angles[0].device, sources.size
    given = [(i, grad) for i, grad in enumerate(grads) if grad is not None]
    together = torch.empty(plan.slices * k * k, dtype=given[0][1].dtype, device=device)
    places = _kernel_views(together, plan, sources, channels_last)
    torch._foreach_copy_([places[i] for i, _ in given], [grad for _, grad in given])
    taps = weight.shape[-1]
    to_weight = torch.empty(plan.slices * taps, dtype=weight.dtype, device=device)
    to_angle = torch.empty(plan.slices, dtype=angle.dtype, device=device)
    # For every slice what it adds to its row's profile.
    to_profile = to_weight.new_empty(plan.slices * k if sources.profiles else 0, dtype=torch.float32)
    if angle.dtype == torch.float64 or weight.dtype == torch.float64:
        to_profile = to_profile.double()
    _launch(_backward_batch, plan, (plan.scales, together, to_weight, to_profile, to_angle), options)
    shapes = [angle.shape for angle in sources.angles]
    weights = _views(to_weight, plan, [(*shape, taps) for shape in shapes], taps)
    angles = _views(to_angle, plan, shapes, 1)
    if not sources.profiles:
        return weights, angles, []
    sums = torch.empty(len(plan.rows) * k, dtype=weight.dtype, device=device)
    if len(plan.rows):
        with torch.cuda.device_of(sums):
            _sum_rows[(len(plan.rows),)](plan.rows, to_profile, sums, SIZE=k, BLOCK=128)
    profiles = sums.split([k * shape[0] for shape in shapes])
    return weights, angles, [part.view(-1, k) for part in profiles]


def _views(flat: Tensor, plan: _Plan, shapes: Sequence[Sequence[int]], numbers: int) -> list[Tensor]:
    return [
        flat[first * numbers :][: torch.Size(shape).numel()].view(shape)
        for first, shape in zip(plan.firsts, shapes, strict=True)
    ]


def _kernel_views(flat: Tensor, plan: _Plan, sources: Sources, channels_last: bool) -> list[Tensor]:
    k, views = sources.size, []
    for first, angle in zip(plan.firsts, sources.angles, strict=True):
        inputs = angle.shape[1]
        steps = (k * k * inputs, 1, k * inputs, inputs) if channels_last else (k * k * inputs, k * k, k, 1)
        views.append(flat.as_strided((*angle.shape, k, k), steps, first * k * k))
    return views


def _options(sources: Sources, channels_last: bool) -> dict[str, Any]:
    weight, angle = sources.weights[0], sources.angles[0]
    dtype = torch.promote_types(weight.dtype, angle.dtype)
    shared = weight.shape[-1] == 1 and not sources.profiles
    return compile_options(sources.size, shared, sources.path == "square", dtype) | {
        "PROFILE": bool(sources.profiles),
        "LAST": channels_last,
        "WEIGHT": _TYPES[weight.dtype],
        "ANGLE": _TYPES[angle.dtype],
    }


def _plan(sources: Sources) -> _Plan:
    profiles = sources.profiles or sources.weights
    layers = tuple(
        (weight.data_ptr(), angle.data_ptr(), profile.data_ptr(), *angle.shape)
        for weight, angle, profile in zip(sources.weights, sources.angles, profiles, strict=True)
    )
    block = _options(sources, channels_last=False)["BLOCK"]
    return _plan_of(layers, sources.scales, block, sources.angles[0].device)


@lru_cache(maxsize=64)
def _plan_of(layers: tuple[tuple[int, ...], ...], scales: tuple[float, ...], block: int, device: torch.device) -> _Plan:
    """Cached by address: nothing in a plan follows from what lies there."""
    layer_table, blocks, rows, firsts, slices = [], [], [], [], 0
    for layer, (weight, angle, profile, out, inputs) in enumerate(layers):
        count = out * inputs
        layer_table.append([weight, angle, profile, slices, count, max(1, inputs)])
        blocks += [[layer, first] for first in range(0, count, block)]
        rows += [[slices + row * inputs, inputs] for row in range(out)]
        firsts.append(slices)
        slices += -(-count // _ALIGNMENT) * _ALIGNMENT
    return _Plan(
        torch.tensor(layer_table, dtype=torch.int64).to(device),
        torch.tensor(blocks, dtype=torch.int32).view(-1, 2).to(device),
        torch.tensor(scales, dtype=torch.float32).to(device),
        torch.tensor(rows, dtype=torch.int64).view(-1, 2).to(device),
        tuple(firsts),
        slices,
    )


def _launch(
    kernel: "triton.JITFunction[None]", plan: _Plan, arguments: tuple[Tensor, ...], options: dict[str, Any]
) -> None:
    if len(plan.blocks):
        with torch.cuda.device_of(plan.table):
            kernel[(len(plan.blocks),)](plan.table, plan.blocks, *arguments, **options)


@triton.jit
def _layer(table, blocks, COLUMNS: tl.constexpr, WEIGHT: tl.constexpr, ANGLE: tl.constexpr):
    """Of the layer that a program works on: number, weight, angle, profile, first slice, slices, slices of a row."""
    layer = tl.load(blocks + 2 * tl.program_id(0))
    at = table + layer.to(tl.int64) * COLUMNS
    weight = tl.load(at).to(tl.pointer_type(WEIGHT))
    angle = tl.load(at + 1).to(tl.pointer_type(ANGLE))
    profile = tl.load(at + 2).to(tl.pointer_type(WEIGHT))
    return layer, weight, angle, profile, tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)


@triton.jit
def _steps(length, LAST: tl.constexpr, SIZE: tl.constexpr):
    """`_strides` of kernels in channels-last order, or contiguous."""
    if LAST:
        step_in = length * 0 + 1
        step_row = length * SIZE
        step_col = length
    else:
        step_in = length * 0 + SIZE * SIZE
        step_row = length * 0 + SIZE
        step_col = length * 0 + 1
    return length * SIZE * SIZE, step_in, step_row, step_col


@triton.jit
def _forward_batch(
    table,
    blocks,
    kernels,
    SHARED: tl.constexpr,
    PROFILE: tl.constexpr,
    SQUARE: tl.constexpr,
    LAST: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    TINY: tl.constexpr,
    WEIGHT: tl.constexpr,
    ANGLE: tl.constexpr,
):
    _, weight, angle, profile, first, count, length = _layer(table, blocks, 6, WEIGHT, ANGLE)
    step_out, step_in, step_row, step_col = _steps(length, LAST, SIZE)
    index = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) + tl.arange(0, BLOCK)
    write_slices(
        weight, profile, angle, kernels + first * SIZE * SIZE, index, count, length, step_out, step_in, step_row,
        step_col, 1 if SHARED or PROFILE else SIZE, 1, SHARED, PROFILE, SQUARE, SIZE, POSITIONS, BLOCK, COMPUTE,
    )  # fmt: skip


@triton.jit
def _backward_batch(
    table,
    blocks,
    scales,
    grad,
    grad_weight,
    grad_profile,
    grad_angle,
    SHARED: tl.constexpr,
    PROFILE: tl.constexpr,
    SQUARE: tl.constexpr,
    LAST: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    TINY: tl.constexpr,
    WEIGHT: tl.constexpr,
    ANGLE: tl.constexpr,
):
    layer, weight, angle, profile, first, count, length = _layer(table, blocks, 6, WEIGHT, ANGLE)
    step_out, step_in, step_row, step_col = _steps(length, LAST, SIZE)
    index = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) + tl.arange(0, BLOCK)
    taps: tl.constexpr = 1 if SHARED or PROFILE else SIZE
    write_gradients(
        weight, profile, angle, grad + first * SIZE * SIZE, grad_weight + first * taps, grad_profile + first * SIZE,
        grad_angle + first, index, count, length, tl.load(scales + layer), step_out, step_in, step_row, step_col,
        taps, 1, SHARED, PROFILE, SQUARE, SIZE, POSITIONS, BLOCK, COMPUTE, TINY,
    )  # fmt: skip


@triton.jit
def _sum_rows(rows, parts, sums, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of a profile: what the slices of its row add to it, [slice, tap], in the order that they lie in."""
    first = tl.load(rows + 2 * tl.program_id(0))
    length = tl.load(rows + 2 * tl.program_id(0) + 1)
    for tap in tl.static_range(SIZE):
        total = tl.zeros((BLOCK,), dtype=parts.dtype.element_ty)
        for start in range(0, length, BLOCK):
            index = start + tl.arange(0, BLOCK)
            total += tl.load(parts + (first + index) * SIZE + tap, mask=index < length, other=0.0)
        tl.store(sums + tl.program_id(0) * SIZE + tap, tl.sum(total, axis=0).to(sums.dtype.element_ty))
