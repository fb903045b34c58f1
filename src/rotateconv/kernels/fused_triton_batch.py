"""The kernels of many layers by one Triton launch each way. Imported only where Triton is.

A table has the addresses and sizes of the layers, a list names the slices that each program works on. Both follow from
where the parameters lie, so that a training step finds them made, and a captured one may use them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel

from rotateconv.kernels.batch_options import BatchOptions
from rotateconv.kernels.fused_triton import compile_options, write_gradients, write_slices

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

_ALIGNMENT = 64  # slices: what begins at a multiple of them is aligned as convolutions and optimizers like it
_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
_Place = tuple[tuple[int, ...], tuple[int, ...], int]  # sizes, strides and offset of a layer's part of a flat tensor


@dataclass(frozen=True)
class _Plan:
    """What follows from where the parameters lie, and is the same at every step.

    Attributes:
        table: [layer, 6], int64: addresses of weight, angle and profile, the first slice, slices, slices of a row.
        blocks: [program, 2], int32: its layer, and the first of its slices there.
        scales: On the gradient of each layer's angle.
        rows: [row, 2], int64: its first slice, slices.
        kernels: Where those of each layer lie.
        gradients: Where those of each layer's weight lie, of its angle and, if it has one, its profile.
        slices: Of all layers, and the gaps between them.
        constants: What the kernels are compiled for.
        compiled: Their launchers.
    """

    table: Tensor
    blocks: Tensor
    scales: Tensor
    rows: Tensor
    kernels: list[_Place]
    gradients: list[list[_Place]]
    slices: int
    constants: tuple[Any, ...]
    compiled: dict[Any, Callable[..., None]] = field(default_factory=dict)


def line_kernels_forward(sources: Sequence[Tensor], options: BatchOptions) -> list[Tensor]:
    """The kernels of all layers, (out, in, k, k), in one launch: in the dtype and the order in memory asked for.

    Args:
        sources: The weights (out, in, T), or (out, in, 1) for shared taps and with profiles; then the angles (out, in)
            and the profiles (out, k), or none: on one device, each sort of one dtype, and T the same.
        options: What the layers have in common.
    """
    sources = [source.contiguous() for source in sources]
    plan = _plan(sources, options)
    kernels = torch.empty(plan.slices * options.size**2, dtype=options.dtype, device=plan.table.device)
    _launch(plan, _forward_batch, len(plan.blocks), (plan.table, plan.blocks, kernels, *plan.constants))
    return [kernels.as_strided(*place) for place in plan.kernels]


def line_kernels_backward(
    sources: Sequence[Tensor], grads: Sequence[Tensor | None], options: BatchOptions
) -> list[Tensor | None]:
    """The gradients of the sources from those of the kernels, in one launch and a copy; with profiles in one more.

    Args:
        sources, options: As for the kernels.
        grads: Of the kernels, (out, in, k, k), of one dtype; a layer whose own is None, gets none. Another order in
            memory than that of the kernels takes longer.
    """
    sources = [source.contiguous() for source in sources]
    plan = _plan(sources, options)
    weight, angle, device, k = sources[0], sources[len(grads)], plan.table.device, options.size
    given = [grad for grad in grads if grad is not None]
    together = torch.empty(plan.slices * k * k, dtype=given[0].dtype, device=device)
    places = [place for place, grad in zip(plan.kernels, grads, strict=True) if grad is not None]
    torch._foreach_copy_([together.as_strided(*place) for place in places], given)
    flat = [torch.empty(plan.slices * weight.shape[-1], dtype=weight.dtype, device=device)]
    flat.append(torch.empty(plan.slices, dtype=angle.dtype, device=device))
    # For every slice what it adds to its row's profile.
    dtype = torch.promote_types(torch.promote_types(weight.dtype, angle.dtype), torch.float32)
    parts = torch.empty(plan.slices * k if len(plan.gradients) > 2 else 0, dtype=dtype, device=device)
    arguments = plan.table, plan.blocks, plan.scales, together, flat[0], parts, flat[1], *plan.constants
    _launch(plan, _backward_batch, len(plan.blocks), arguments)
    if len(plan.gradients) > 2:
        flat.append(torch.empty(len(plan.rows) * k, dtype=weight.dtype, device=device))
        _launch(plan, _sum_rows, len(plan.rows), (plan.rows, parts, flat[2], k, 128))
    return [
        None if grad is None else gradient.as_strided(*place)
        for gradient, places in zip(flat, plan.gradients, strict=True)
        for place, grad in zip(places, grads, strict=True)
    ]


def _plan(sources: Sequence[Tensor], options: BatchOptions) -> _Plan:
    count = len(options.scales)
    weight, angles = sources[0], sources[count : 2 * count]
    return _plan_of(
        tuple([source.data_ptr() for source in sources]),
        tuple([angle.shape for angle in angles]),
        (weight.shape[-1], weight.dtype, angles[0].dtype),
        options,
        weight.device,
    )


@lru_cache(maxsize=64)
def _plan_of(
    addresses: tuple[int, ...],
    shapes: tuple[torch.Size, ...],
    taps_and_types: tuple[int, torch.dtype, torch.dtype],
    options: BatchOptions,
    device: torch.device,
) -> _Plan:
    """Cached by address: nothing in a plan follows from what lies there."""
    count, k, (taps, weight, angle) = len(shapes), options.size, taps_and_types
    has_profile = len(addresses) > 2 * count
    constants: dict[str, Any] = compile_options(
        k, taps == 1 and not has_profile, options.path == "square", torch.promote_types(weight, angle)
    ) | {"PROFILE": has_profile, "LAST": options.channels_last, "WEIGHT": _TYPES[weight], "ANGLE": _TYPES[angle]}
    block: int = constants["BLOCK"]
    table, blocks, first = [], [], 0
    rows: list[list[int]] = []
    kernels: list[_Place] = []
    gradients: list[list[_Place]] = [[], [], []] if has_profile else [[], []]
    for layer, (out, inputs) in enumerate(shapes):
        slices = out * inputs
        of_layer = [*addresses[layer::count], 0][:3]  # no profile is read where there is none
        table.append([*of_layer, first, slices, max(1, inputs)])
        blocks += [[layer, at] for at in range(0, slices, block)]
        steps = (1, k * inputs, inputs) if options.channels_last else (k * k, k, 1)
        kernels.append(((out, inputs, k, k), (k * k * inputs, *steps), first * k * k))
        gradients[0].append(((out, inputs, taps), (inputs * taps, taps, 1), first * taps))
        gradients[1].append(((out, inputs), (inputs, 1), first))
        if has_profile:
            gradients[2].append(((out, k), (k, 1), len(rows) * k))
        rows += [[first + row * inputs, inputs] for row in range(out)]
        first += -(-slices // _ALIGNMENT) * _ALIGNMENT
    return _Plan(
        torch.tensor(table, dtype=torch.int64).to(device),
        torch.tensor(blocks, dtype=torch.int32).view(-1, 2).to(device),
        torch.tensor(options.scales, dtype=torch.float32).to(device),
        torch.tensor(rows, dtype=torch.int64).view(-1, 2).to(device),
        kernels,
        gradients,
        first,
        tuple(constants[name] for name in _forward_batch.arg_names if name in constants),
    )


def _launch(plan: _Plan, kernel: "triton.JITFunction[None]", programs: int, arguments: tuple[Any, ...]) -> None:
    """The first time by Triton's own call; then by what it compiled, without a look at arguments that are alike."""
    if not programs:
        return
    with torch.cuda.device_of(plan.table):
        if (launch := plan.compiled.get(kernel.fn)) is not None:
            return launch(*arguments)
        compiled = kernel[(programs,)](*arguments)
        if isinstance(compiled, CompiledKernel):
            plan.compiled[kernel.fn] = compiled[programs, 1, 1]


@triton.jit
def _layer(table, blocks, WEIGHT: tl.constexpr, ANGLE: tl.constexpr):
    """Of the layer that a program works on: number, weight, angle, profile, first slice, slices, slices of a row."""
    layer = tl.load(blocks + 2 * tl.program_id(0))
    at = table + layer.to(tl.int64) * 6
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
    _, weight, angle, profile, first, count, length = _layer(table, blocks, WEIGHT, ANGLE)
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
    layer, weight, angle, profile, first, count, length = _layer(table, blocks, WEIGHT, ANGLE)
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
