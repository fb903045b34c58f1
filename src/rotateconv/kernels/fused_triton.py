"""line_kernel on a GPU: one Triton kernel for the values and one for the gradients. Imported only where Triton is."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rotateconv.kernels.line import Path

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

_POSITIONS_A_PROGRAM = 1024  # positions of kernels: 64 slices of 3 x 3, 8 of 9 x 9


def line_kernel_forward(weight: Tensor, angle: Tensor, size: int, path: Path, out: Tensor) -> None:
    """Write the kernels into `out`, in its dtype and memory layout, in one launch.

    Args:
        weight: (..., T) or (..., 1); computed in float32, or in float64 if it or the angle is.
        angle: (...), on the device of weight.
        size: k, odd.
        path: "circle" or "square".
        out: (..., k, k), of any dtype; of any strides if angle has two dimensions, else contiguous.
    """
    length, weight, angle = _flat(weight, angle)
    places = (angle.numel(), length, *_strides(out, length, size), *weight.stride())
    _launch(_forward, weight, angle, size, path, (weight, angle, out, *places))


def line_kernel_backward(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, angle_grad_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle from that of the kernels, in one launch.

    Args:
        weight, angle, size, path: as in `line_kernel_forward`.
        grad: (..., k, k), of any dtype and strides.
        angle_grad_scale: the gradient of the angle is multiplied by it, rounded to float32.

    Returns:
        Contiguous tensors with the shapes and dtypes of weight and angle.
    """
    grad_weight, grad_angle = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (weight, angle))
    length, weight, angle = _flat(weight, angle)
    grad = grad if grad_angle.dim() == 2 else grad.contiguous()
    places = (angle.numel(), length, angle_grad_scale, *_strides(grad, length, size), *weight.stride())
    _launch(_backward, weight, angle, size, path, (weight, angle, grad, grad_weight, grad_angle, *places))
    return grad_weight, grad_angle


def _flat(weight: Tensor, angle: Tensor) -> tuple[int, Tensor, Tensor]:
    """The length of the last dimension of angle if it has two, else of all of them; (n, T) and contiguous (n)."""
    length = angle.shape[-1] if angle.dim() == 2 else max(1, angle.numel())
    return max(1, length), weight.reshape(angle.numel(), weight.shape[-1]), angle.reshape(-1).contiguous()


def _strides(kernels: Tensor, length: int, size: int) -> tuple[int, ...]:
    """Steps in memory from a slice to the next row of slices, to the next slice, to its next row and column."""
    if kernels.dim() == 4:
        return kernels.stride()
    return length * size * size, size * size, size, 1


def compile_options(size: int, shared: bool, square: bool, dtype: torch.dtype) -> dict[str, object]:
    """The constants that a kernel is compiled for, by the names they have in it."""
    positions = triton.next_power_of_2(size * size)
    return {
        "SHARED": shared,
        "SQUARE": square,
        "SIZE": size,
        "POSITIONS": positions,
        "BLOCK": max(1, _POSITIONS_A_PROGRAM // positions),
        "COMPUTE": tl.float64 if dtype == torch.float64 else tl.float32,
        "TINY": 4 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps,
    }


def _launch(
    kernel: "triton.JITFunction[None]",
    weight: Tensor,
    angle: Tensor,
    size: int,
    path: Path,
    arguments: tuple[object, ...],
) -> None:
    if angle.numel() == 0:
        return
    dtype = torch.promote_types(weight.dtype, angle.dtype)
    options: dict[str, Any] = compile_options(size, weight.shape[-1] == 1, path == "square", dtype)
    with torch.cuda.device_of(angle):
        kernel[(triton.cdiv(angle.numel(), options["BLOCK"]),)](*arguments, **options)


# A program has BLOCK slices; [BLOCK, POSITIONS] holds a number for every position of their kernels, SIZE² of them used.


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, 0.0) - tl.where(x < 0, 1.0, 0.0)


@triton.jit
def _hat(z):
    """Λ(z) = max(0, 1 - |z|)."""
    return tl.maximum(1.0 - tl.abs(z), 0.0)


@triton.jit
def _hat_slope(z):
    """Λ'(z), on the kinks the mean of both sides."""
    size = tl.abs(z)
    return -0.5 * _sign(z) * (tl.where(size < 1.0, 1.0, 0.0) + tl.where(size <= 1.0, 1.0, 0.0))


@triton.jit
def _direction(sin, cos, SQUARE: tl.constexpr):
    """`tap_direction`."""
    row = -sin
    col = cos
    if SQUARE:
        radius = tl.maximum(tl.abs(sin), tl.abs(cos))
        # The larger of the two is ±1 exactly, which a division on a GPU does not promise.
        row = tl.where(tl.abs(sin) == radius, _sign(row), row / radius)
        col = tl.where(tl.abs(cos) == radius, _sign(col), col / radius)
    return row, col


@triton.jit
def _on_axis(x, TINY: tl.constexpr):
    """`on_axis`: what is 0 but for rounding made so, or the slopes at multiples of 90° would not belong together."""
    return tl.where(tl.abs(x) <= TINY, 0.0, x)


@triton.jit
def _velocity(sin, cos, row, col, SQUARE: tl.constexpr):
    """`tap_velocity`."""
    row_speed = -cos
    col_speed = -sin
    if SQUARE:
        steep = tl.abs(sin) > tl.abs(cos)
        radius = tl.where(steep, tl.abs(sin), tl.abs(cos))
        growth = tl.where(steep, _sign(sin) * cos, -_sign(cos) * sin)
        row_speed = (row_speed - row * growth) / radius
        col_speed = (col_speed - col * growth) / radius
    return row_speed, col_speed


# What a program does with its slices, wherever they lie. With PROFILE, the taps of a slice are its one weight times the
# taps of its row's profile.


@triton.jit
def _tap_weight(
    weight,
    profile,
    index,
    inside,
    length,
    tap,
    step_weight,
    step_tap,
    SHARED: tl.constexpr,
    PROFILE: tl.constexpr,
    SIZE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    at = weight + index * step_weight + (0 if SHARED or PROFILE else tap) * step_tap
    value = tl.load(at, mask=inside, other=0.0).to(COMPUTE)
    if PROFILE:
        value *= tl.load(profile + (index // length) * SIZE + tap, mask=inside, other=0.0).to(COMPUTE)
    return value


@triton.jit
def write_slices(
    weight,
    profile,
    angle,
    kernels,
    index,
    count,
    length,
    step_out,
    step_in,
    step_row,
    step_col,
    step_weight,
    step_tap,
    SHARED: tl.constexpr,
    PROFILE: tl.constexpr,
    SQUARE: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The kernels of the slices `index`."""
    half: tl.constexpr = SIZE // 2
    inside = index < count
    position = tl.arange(0, POSITIONS)
    grid_row = (position // SIZE - half).to(COMPUTE)[None, :]
    grid_col = (position % SIZE - half).to(COMPUTE)[None, :]

    theta = tl.load(angle + index, mask=inside, other=0.0).to(COMPUTE)
    row, col = _direction(tl.sin(theta), tl.cos(theta), SQUARE)
    total = tl.zeros((BLOCK, POSITIONS), dtype=COMPUTE)
    for tap in tl.static_range(SIZE):
        place = tap - half
        value = _tap_weight(
            weight, profile, index, inside, length, tap, step_weight, step_tap, SHARED, PROFILE, SIZE, COMPUTE
        )
        splat = _hat((place * row)[:, None] - grid_row) * _hat((place * col)[:, None] - grid_col)
        total += value[:, None] * splat

    slice_at = (index // length) * step_out + (index % length) * step_in
    position_at = (position // SIZE) * step_row + (position % SIZE) * step_col
    written = inside[:, None] & (position < SIZE * SIZE)[None, :]
    tl.store(kernels + slice_at[:, None] + position_at[None, :], total.to(kernels.dtype.element_ty), mask=written)


@triton.jit
def write_gradients(
    weight,
    profile,
    angle,
    grad,
    grad_weight,
    grad_profile,
    grad_angle,
    index,
    count,
    length,
    scale,
    step_out,
    step_in,
    step_row,
    step_col,
    step_weight,
    step_tap,
    SHARED: tl.constexpr,
    PROFILE: tl.constexpr,
    SQUARE: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    TINY: tl.constexpr,
):
    """The gradients of the slices `index`, and with PROFILE what each adds to that of its row's profile."""
    half: tl.constexpr = SIZE // 2
    inside = index < count
    position = tl.arange(0, POSITIONS)
    grid_row = (position // SIZE - half).to(COMPUTE)[None, :]
    grid_col = (position % SIZE - half).to(COMPUTE)[None, :]
    slice_at = (index // length) * step_out + (index % length) * step_in
    position_at = (position // SIZE) * step_row + (position % SIZE) * step_col
    used = inside[:, None] & (position < SIZE * SIZE)[None, :]
    # Zero outside of the kernel, so that the sums over POSITIONS are those over its positions.
    kernel_grad = tl.load(grad + slice_at[:, None] + position_at[None, :], mask=used, other=0.0).to(COMPUTE)

    theta = tl.load(angle + index, mask=inside, other=0.0).to(COMPUTE)
    sin = tl.sin(theta)
    cos = tl.cos(theta)
    row, col = _direction(sin, cos, SQUARE)
    row_speed, col_speed = _velocity(sin, cos, row, col, SQUARE)
    row = _on_axis(row, TINY)
    col = _on_axis(col, TINY)
    angle_sum = tl.zeros((BLOCK,), dtype=COMPUTE)
    weight_sum = tl.zeros((BLOCK,), dtype=COMPUTE)
    for tap in tl.static_range(SIZE):
        place = tap - half
        value = _tap_weight(
            weight, profile, index, inside, length, tap, step_weight, step_tap, SHARED, PROFILE, SIZE, COMPUTE
        )
        to_row = (place * row)[:, None] - grid_row
        to_col = (place * col)[:, None] - grid_col
        rows = _hat(to_row)
        cols = _hat(to_col)
        splat_sum = tl.sum(kernel_grad * rows * cols, axis=1)
        if PROFILE:
            share = tl.load(profile + (index // length) * SIZE + tap, mask=inside, other=0.0).to(COMPUTE)
            weight_sum += splat_sum * share
            part = splat_sum * tl.load(weight + index * step_weight, mask=inside, other=0.0).to(COMPUTE)
            tl.store(grad_profile + index * SIZE + tap, part.to(grad_profile.dtype.element_ty), mask=inside)
        elif SHARED:
            weight_sum += splat_sum
        else:
            at_tap = grad_weight + index * SIZE + tap
            tl.store(at_tap, splat_sum.to(grad_weight.dtype.element_ty), mask=inside)
        slope = row_speed[:, None] * _hat_slope(to_row) * cols + col_speed[:, None] * rows * _hat_slope(to_col)
        angle_sum += place * value * tl.sum(kernel_grad * slope, axis=1)
    if SHARED or PROFILE:
        tl.store(grad_weight + index, weight_sum.to(grad_weight.dtype.element_ty), mask=inside)
    tl.store(grad_angle + index, (scale * angle_sum).to(grad_angle.dtype.element_ty), mask=inside)


@triton.jit
def _forward(
    weight,
    angle,
    kernels,
    count,
    length,
    step_out,
    step_in,
    step_row,
    step_col,
    step_weight,
    step_tap,
    SHARED: tl.constexpr,
    SQUARE: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    TINY: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    write_slices(
        weight, weight, angle, kernels, index, count, length, step_out, step_in, step_row, step_col,
        step_weight, step_tap, SHARED, False, SQUARE, SIZE, POSITIONS, BLOCK, COMPUTE,
    )  # fmt: skip


@triton.jit
def _backward(
    weight,
    angle,
    grad,
    grad_weight,
    grad_angle,
    count,
    length,
    scale,
    step_out,
    step_in,
    step_row,
    step_col,
    step_weight,
    step_tap,
    SHARED: tl.constexpr,
    SQUARE: tl.constexpr,
    SIZE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
    TINY: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    write_gradients(
        weight, weight, angle, grad, grad_weight, grad_weight, grad_angle, index, count, length, scale, step_out,
        step_in, step_row, step_col, step_weight, step_tap, SHARED, False, SQUARE, SIZE, POSITIONS, BLOCK,
        COMPUTE, TINY,
    )  # fmt: skip
