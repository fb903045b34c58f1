"""line_kernel made fast: one forward and one hand-derived backward, of few vectorised operations or as Triton's."""

from functools import lru_cache
from types import EllipsisType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.kernel import Path, check_inputs, line_kernel, on_axis, tap_direction, tap_velocity

_PART = 1 << 14  # slices at a time: a temporary of 9 float32 a slice is then 590 kB


def fused_line_kernel(
    weight: Tensor,
    angle: Tensor,
    kernel_size: int = 3,
    path: Path = "circle",
    *,
    angle_grad_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Tensor:
    """`line_kernel`, as one node of the autograd graph that keeps only its inputs for the backward pass.

    The taps t and -t have the same footprint, turned by half a turn: S_{-t}[r,c] = S_t[-r,-c]. With G the gradient
    of the kernel, G~[r,c] = G[-r,-c], and S_t = R_t ⊗ C_t the product of the row hats and the column hats::

        ∂/∂weight[t]  = Σ_rc G · S_t,        ∂/∂weight[-t] = Σ_rc G~ · S_t
        H_t           = weight[t] · G + weight[-t] · G~                              the gradient of S_t
        ∂/∂θ          = Σ_{t>0} t · (p'_row · Σ_rc H_t · R'_t · C_t + p'_col · Σ_rc H_t · R_t · C'_t)

    No temporary is larger than the kernel; on a GPU with Triton, one launch each way. Differentiable twice, and
    works under torch.func's transforms. Inside torch.compile and torch.export it is the plain form, which the
    compiler fuses by itself.

    Args:
        weight, angle, kernel_size, path: as in `line_kernel`; weight may also be a sequence of taps in its last
            dimension in any memory layout.
        angle_grad_scale: the gradient of the angle is multiplied by it.
        dtype: of the result; the default is that of `line_kernel`.
        channels_last: lay a (out, in, k, k) result out in channels-last order.

    Returns:
        The kernels, (..., k, k).

    Raises:
        TypeError, ValueError: As `line_kernel`.

    Example:
        >>> weight, angle = torch.randn(8, 4, 3), torch.randn(8, 4)
        >>> torch.allclose(fused_line_kernel(weight, angle), line_kernel(weight, angle), atol=1e-6)
        True
    """
    dtype = torch.promote_types(weight.dtype, angle.dtype) if dtype is None else dtype
    if torch.compiler.is_compiling():
        if angle_grad_scale != 1.0:
            angle = scale_gradient(angle, angle_grad_scale)
        kernel = line_kernel(weight, angle, kernel_size, path).to(dtype)
        return in_layout(kernel, channels_last)
    check_inputs(weight, angle, kernel_size)
    result: Tensor = _LineKernel.apply(weight, angle, kernel_size, path, angle_grad_scale, dtype, channels_last)
    return result


def scale_gradient(tensor: Tensor, scale: float) -> Tensor:
    """The tensor to the last bit, with its gradient multiplied by the scale."""
    return tensor.detach() + scale * (tensor - tensor.detach())


def in_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    """The same tensor of four dimensions, with the second one (the channels) innermost in memory if `channels_last`."""
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if channels_last else tensor


class _LineKernel(torch.autograd.Function):
    """The node of the graph."""

    @staticmethod
    def forward(
        weight: Tensor,
        angle: Tensor,
        size: int,
        path: Path,
        scale: float,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        layout = torch.channels_last if channels_last and angle.dim() == 2 else torch.contiguous_format
        kernel = torch.empty((*angle.shape, size, size), dtype=dtype, device=angle.device, memory_format=layout)
        if triton_ops := _triton_ops(weight, angle):
            triton_ops.line_kernel_forward(weight, angle, size, path, kernel)
            return kernel
        for part in _parts(angle):
            kernel[part] = _forward(weight[part], angle[part], size, path).movedim((0, 1), (-2, -1))
        return kernel

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, angle, ctx.size, ctx.path, ctx.scale, _, _ = inputs
        ctx.save_for_backward(weight, angle)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, angle = ctx.saved_tensors
        if _on_gpu(angle):
            to_weight, to_angle = _LineKernelGradients.apply(weight, angle, grad, ctx.size, ctx.path, ctx.scale)
        else:
            to_weight, to_angle = _gradients(weight, angle, grad, ctx.size, ctx.path, ctx.scale)
        return to_weight, to_angle, None, None, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], weight: Tensor, angle: Tensor, *options: Any
    ) -> tuple[Tensor, int]:
        weight, angle = _batch_first(info, in_dims, weight, angle)
        return _LineKernel.apply(weight, angle, *options), 0


class _LineKernelGradients(torch.autograd.Function):
    """The gradients as a node of their own: what a Triton kernel computes, autograd cannot see."""

    @staticmethod
    def forward(
        weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, scale: float
    ) -> tuple[Tensor, Tensor]:
        if triton_ops := _triton_ops(weight, angle, grad):
            gradients: tuple[Tensor, Tensor] = triton_ops.line_kernel_backward(weight, angle, grad, size, path, scale)
            return gradients
        return _gradients(weight, angle, grad, size, path, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.size, ctx.path, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(weight: Tensor, angle: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
            return _gradients(weight, angle, grad, ctx.size, ctx.path, ctx.scale)

        _, pull_back, *_ = torch.func.vjp(gradients, *ctx.saved_tensors)
        return *pull_back(grads), None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], weight: Tensor, angle: Tensor, grad: Tensor, *options: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        weight, angle, grad = _batch_first(info, in_dims, weight, angle, grad)
        return _LineKernelGradients.apply(weight, angle, grad, *options), (0, 0)


def _batch_first(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """The tensors of a vmap with their new dimension in front: both nodes work on any leading dimensions."""
    return [
        tensor.movedim(dim, 0) if dim is not None else tensor.expand(info.batch_size, *tensor.shape)
        for tensor, dim in zip(tensors, in_dims, strict=False)
    ]


def _on_gpu(angle: Tensor) -> bool:
    return angle.is_cuda


def _triton_ops(*tensors: Tensor) -> ModuleType | None:
    """The Triton kernels, if they can work on these tensors: on a GPU, and with memory of their own to read."""
    return _import_triton_ops() if _on_gpu(tensors[0]) and all(map(_has_memory, tensors)) else None


def _has_memory(tensor: Tensor) -> bool:
    # Not a fake tensor or another class that only stands for one, nor one of a batch of gradients.
    if type(tensor) not in (Tensor, nn.Parameter):
        return False
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return False
    return True


@lru_cache
def _import_triton_ops() -> ModuleType | None:
    try:
        from rotateconv import triton_ops
    except (ImportError, RuntimeError):
        return None
    return triton_ops


def _gradients(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, scale: float
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle by operations of torch, a part at a time."""
    parts = _parts(angle)
    if len(parts) == 1:  # not by an index: the batched gradients of torch.autograd.grad cannot be indexed by `...`
        to_weight, to_angle = _backward(weight, angle, grad, size, path)
    else:
        results = [_backward(weight[part], angle[part], grad[part], size, path) for part in parts]
        to_weight, to_angle = map(torch.cat, zip(*results, strict=True))
    return to_weight, to_angle if scale == 1.0 else scale * to_angle


def _parts(angle: Tensor) -> list[slice | EllipsisType]:
    """Slices of the first dimension whose temporaries stay in the cache; everything at once if that is small."""
    if angle.dim() == 0 or angle.numel() <= _PART:
        return [...]
    rows = max(1, _PART * len(angle) // angle.numel())
    return [slice(first, first + rows) for first in range(0, len(angle), rows)]


# Inside, the small dimensions come first, [row, col, ...]: operations run along memory.


def _forward(weight: Tensor, angle: Tensor, size: int, path: Path) -> Tensor:
    """The kernels, [row, col, ...]."""
    half = size // 2
    position, weight = _position(angle, path), _taps_first(weight)
    kernel: Tensor | None = None
    for t in range(1, half + 1):
        rows, cols = _hats(_distances(position, t, half))
        splat = rows[:, None] * cols
        if len(weight) == 1:
            kernel = splat if kernel is None else kernel.add_(splat)
        else:
            kernel = splat * weight[half + t] if kernel is None else kernel.addcmul_(splat, weight[half + t])
            kernel.addcmul_(splat.flip(0, 1), weight[half - t])
    assert kernel is not None
    if len(weight) == 1:
        kernel = kernel + kernel.flip(0, 1)
        kernel[half, half] += 1
        return kernel.mul_(weight)
    kernel[half, half] += weight[half]
    return kernel


def _backward(weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle; out of place throughout, so that autograd can differentiate it again."""
    half = size // 2
    position, taps = on_axis(_position(angle, path)), _taps_first(weight)
    grad = grad.to(position.dtype).movedim((-2, -1), (0, 1)).contiguous()  # G
    turned = grad.flip(0, 1)  # G~
    both = grad + turned if len(taps) == 1 else None
    to_taps: dict[int, Tensor] = {0: grad[half, half]}
    to_position: Tensor | None = None
    for t in range(1, half + 1):
        distance = _distances(position, t, half)
        rows, cols = _hats(distance)
        splat = rows[:, None] * cols
        if both is not None:
            to_taps[0] = to_taps[0] + (both * splat).sum((0, 1))
            to_splat = both * taps[0]
        else:
            to_taps[t], to_taps[-t] = (grad * splat).sum((0, 1)), (turned * splat).sum((0, 1))
            to_splat = torch.addcmul(grad * taps[half + t], turned, taps[half - t])
        to_hats = torch.stack([(to_splat * cols).sum(1), (to_splat * rows[:, None]).sum(0)])
        part = (to_hats * _hat_slopes(distance)).sum(1)  # [row or col, ...]
        to_position = part if to_position is None else to_position + t * part
    assert to_position is not None
    row_speed, col_speed = tap_velocity(angle.to(position.dtype), path)
    to_angle = torch.addcmul(to_position[0] * row_speed, to_position[1], col_speed)
    to_weight = torch.stack([to_taps[t] for t in sorted(to_taps)], -1)
    return to_weight.to(weight.dtype), to_angle.to(angle.dtype)


def _position(angle: Tensor, path: Path) -> Tensor:
    """Where the tap t = 1 lies, [row or col, ...], in float32 at least."""
    return torch.stack(tap_direction(angle.to(torch.promote_types(angle.dtype, torch.float32)), path))


def _taps_first(weight: Tensor) -> Tensor:
    weight = weight.movedim(-1, 0)
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).contiguous()


def _distances(position: Tensor, t: int, half: int) -> Tensor:
    """From the tap t to every row and every column, [row or col, k, ...]."""
    grid = torch.arange(-half, half + 1, device=position.device, dtype=position.dtype)
    grid = grid.view(-1, *[1] * (position.dim() - 1))
    return (position if t == 1 else t * position)[:, None] - grid


def _hats(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Λ of the distances to the rows and to the columns, each [k, ...]."""
    rows, cols = (1 - distance.abs()).clamp(min=0)
    return rows, cols


def _hat_slopes(distance: Tensor) -> Tensor:
    """Λ' of the distances, on the kinks the mean of both sides, [row or col, k, ...]."""
    # sign(1 - |z|) is 1 inside, 0 on the kink and -1 outside.
    inside = (1 - distance.abs()).sign() + 1
    return distance.sign() * inside * -0.5
