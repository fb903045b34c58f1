"""line_kernel made fast: one hand-derived node, by the compiled library, few tensor operations or Triton."""

from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rotateconv.errors import InputError
from rotateconv.kernels import fused_native, fused_tensors
from rotateconv.kernels.line import Path, check_inputs, line_kernel, line_kernel_gradients
from rotateconv.kernels.watched import has_memory, in_transform, refuse_freed


def fused_line_kernel(
    weight: Tensor,
    angle: Tensor,
    kernel_size: int = 3,
    path: Path = "circle",
    *,
    profile: Tensor | None = None,
    angle_grad_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Tensor:
    """`line_kernel`, as one node of the autograd graph that keeps only its inputs for the backward pass.

    The taps t and -t have the same splat, reversed_grad by half a turn: S_{-t}[r,c] = S_t[-r,-c]. With G the gradient
    of the kernel, G~[r,c] = G[-r,-c], and S_t = R_t ⊗ C_t the product of the row hats and the column hats::

        ∂/∂weight[t]  = Σ_rc G · S_t,        ∂/∂weight[-t] = Σ_rc G~ · S_t
        H_t           = weight[t] · G + weight[-t] · G~                              the gradient of S_t
        ∂/∂θ          = Σ_{t>0} t · (p'_row · Σ_rc H_t · R'_t · C_t + p'_col · Σ_rc H_t · R_t · C'_t)

    No temporary is larger than the kernel; on a CPU one call of the compiled library each way (`rotateconv.native`),
    on a GPU with Triton one launch. Second derivatives are those of `line_kernel`, which also takes over inside
    torch.func's transforms, and inside torch.compile and torch.export, which fuse it by themselves; torch.compile is
    given the closed form of 3 x 3 on the circle.

    Args:
        weight, angle, kernel_size, path: as in `line_kernel`; weight may also be a sequence of taps in its last
            dimension in any memory layout.
        profile: (out, k), which weights (out, in, 1) are multiplied with, or None.
        angle_grad_scale: the gradient of the angle is multiplied by it.
        dtype: of the result; the default is that of `line_kernel`.
        channels_last: lay a (out, in, k, k) result out in channels-last order.

    Returns:
        The kernels, (..., k, k).

    Raises:
        TypeError, ValueError: As `line_kernel`.
        RuntimeError: If the memory of weight, angle or profile was freed.

    Example:
        >>> weight, angle = torch.randn(8, 4, 3), torch.randn(8, 4)
        >>> torch.allclose(fused_line_kernel(weight, angle), line_kernel(weight, angle), atol=1e-6)
        True
    """
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling:
        made = fused_native.line_kernel(
            weight, angle, profile, kernel_size, path, angle_grad_scale, dtype, channels_last
        )
        if made is not None:
            return made
        refuse_freed(weight, angle, profile)
    if profile is not None:
        weight = _with_profile(weight, profile, kernel_size)
    check_inputs(weight, angle, kernel_size)
    dtype = torch.promote_types(weight.dtype, angle.dtype) if dtype is None else dtype
    channels_last = channels_last and angle.dim() == 2
    # An exported program is for other runtimes, and a transform would have to look into the node.
    if is_compiling and not (torch.compiler.is_exporting() or in_transform()) and (kernel_size, path) == (3, "circle"):
        traced: Tensor = _ClosedKernel.apply(weight, angle, angle_grad_scale, dtype, channels_last)
        return traced
    if needs_reference(weight, angle):
        # The same numbers, and the gradient scaled.
        angle = angle if angle_grad_scale == 1.0 else angle.detach() + angle_grad_scale * (angle - angle.detach())
        return in_layout(line_kernel(weight, angle, kernel_size, path).to(dtype), channels_last)
    result: Tensor = _LineKernel.apply(weight, angle, kernel_size, path, angle_grad_scale, dtype, channels_last)
    return result


def _with_profile(weight: Tensor, profile: Tensor, kernel_size: int) -> Tensor:
    """The weights of all taps, (out, in, k)."""
    if weight.dim() != 3 or weight.shape[-1] != 1 or profile.shape != (weight.shape[0], kernel_size):
        raise InputError(
            f"expected weights (out, in, 1) and a profile (out, {kernel_size}), "
            f"got {tuple(weight.shape)} and {tuple(profile.shape)}"
        )
    return weight * profile[:, None]


def in_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    """The same tensor of four dimensions, with the second one (the channels) innermost in memory if `channels_last`."""
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if channels_last else tensor


class _LineKernel(torch.autograd.Function):
    """The node of the graph, by tensor operations or Triton."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        angle: Tensor,
        size: int,
        path: Path,
        scale: float,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        ctx.save_for_backward(weight, angle)
        ctx.options = size, path, scale
        layout = torch.channels_last if channels_last else torch.contiguous_format
        kernel = torch.empty((*angle.shape, size, size), dtype=dtype, device=angle.device, memory_format=layout)
        _operations(angle).line_kernel_forward(weight, angle, size, path, kernel)
        return kernel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, angle = ctx.saved_tensors
        return *gradients(weight, angle, grad, *ctx.options), None, None, None, None, None


class _ClosedKernel(torch.autograd.Function):
    """The closed form of 3 x 3 on the circle for torch.compile, whose own derivative of `line_kernel` costs more."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, angle: Tensor, scale: float, dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        ctx.save_for_backward(weight, angle)
        ctx.scale = scale
        positions = [
            position.to(dtype) for position in fused_tensors.closed_positions(*fused_tensors.computable(weight, angle))
        ]
        if channels_last:
            out, inputs = angle.shape
            return torch.stack(positions, 1).view(out, 3, 3, inputs).permute(0, 3, 1, 2)
        return torch.stack(positions, -1).view(*angle.shape, 3, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, angle = ctx.saved_tensors
        taps, grad_angle = fused_tensors.closed_gradients(*fused_tensors.computable(weight, angle), grad)
        grad_weight = torch.stack(taps, -1).to(weight.dtype)
        return grad_weight, (ctx.scale * grad_angle).to(angle.dtype), None, None, None


def gradients(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, scale: float
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle without the compiled library."""
    # To be differentiated again, or for a batch of gradients at once: as autograd would have it.
    if torch.is_grad_enabled() or not has_memory(grad):
        return line_kernel_gradients(weight, angle, grad, size, path, scale)
    found: tuple[Tensor, Tensor] = _operations(angle).line_kernel_backward(weight, angle, grad, size, path, scale)
    return found


def needs_reference(*tensors: Tensor) -> bool:
    """In a compiler and in a transform, and for tensors that only stand for others."""
    return torch.compiler.is_compiling() or in_transform() or not all(map(has_memory, tensors))


def _on_gpu(angle: Tensor) -> bool:
    return angle.is_cuda


def _operations(angle: Tensor) -> ModuleType:
    return _fused_triton(angle) or fused_tensors


def _fused_triton(angle: Tensor) -> ModuleType | None:
    """The Triton kernels, on a GPU where Triton is installed."""
    return _import_fused_triton() if _on_gpu(angle) else None


@lru_cache
def _import_fused_triton() -> ModuleType | None:
    try:
        from rotateconv.kernels import fused_triton
    except (ImportError, RuntimeError):
        return None
    return fused_triton
