"""line_kernel made fast: one hand-derived node, by the compiled library, few vectorized operations or Triton."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import EllipsisType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv.kernels import fused_native
from rotateconv.kernels.line import Path, check_inputs, line_kernel, tap_direction, tap_velocity

_PART = 1 << 14  # slices at a time: an operation on one number of each then stays in the cache, and on one thread


def fused_line_kernel(
    weight: Tensor,
    angle: Tensor,
    kernel_size: int = 3,
    path: Path = "circle",
    *,
    angle_grad_scale: float | Tensor = 1.0,
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
        angle_grad_scale: the gradient of the angle is multiplied by it; a tensor has the angle's shape.
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
    is_compiling = torch.compiler.is_compiling()
    if not (is_compiling or _in_transform() or isinstance(angle_grad_scale, Tensor)):
        kernels = fused_native.find_kernels(weight, angle, kernel_size, path, angle_grad_scale, dtype, channels_last)
        if kernels is not None:
            made: Tensor = _NativeLineKernel.apply(weight, angle, kernels)
            return made
    check_inputs(weight, angle, kernel_size)
    dtype = torch.promote_types(weight.dtype, angle.dtype) if dtype is None else dtype
    if kernel_size == 3 and path == "circle" and is_compiling and _can_trace_a_node():
        traced: Tensor = _ClosedKernel.apply(weight, angle, angle_grad_scale, dtype, channels_last)
        return traced
    if needs_reference(weight, angle):
        if isinstance(angle_grad_scale, Tensor) or angle_grad_scale != 1.0:
            angle = scale_gradient(angle, angle_grad_scale)
        kernel = line_kernel(weight, angle, kernel_size, path).to(dtype)
        return in_layout(kernel, channels_last)
    result: Tensor = _LineKernel.apply(weight, angle, kernel_size, path, angle_grad_scale, dtype, channels_last)
    return result


def scale_gradient(tensor: Tensor, scale: float | Tensor) -> Tensor:
    """The tensor to the last bit, with its gradient multiplied by the scale."""
    return tensor.detach() + scale * (tensor - tensor.detach())


def in_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    """The same tensor of four dimensions, with the second one (the channels) innermost in memory if `channels_last`."""
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if channels_last else tensor


class _NativeLineKernel(torch.autograd.Function):
    """The node of the graph, by the compiled library.

    Without `setup_context`, like the next: `apply` then costs a tenth, and transforms never come here.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, angle: Tensor, kernels: fused_native.Kernels) -> Tensor:
        ctx.save_for_backward(weight, angle)
        ctx.kernels = kernels
        return fused_native.line_kernel_forward(kernels, weight, angle)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, angle = ctx.saved_tensors
        kernels: fused_native.Kernels = ctx.kernels
        if torch.is_grad_enabled() or not _has_memory(grad) or fused_native.is_watched():
            return *_tensor_gradients(weight, angle, grad, kernels.size, kernels.path, kernels.scale), None
        return *fused_native.line_kernel_backward(kernels, weight, angle, grad, ctx.needs_input_grad), None


class _LineKernel(torch.autograd.Function):
    """The node of the graph, by tensor operations or Triton."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        angle: Tensor,
        size: int,
        path: Path,
        scale: float | Tensor,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        ctx.save_for_backward(weight, angle)
        ctx.options = size, path, scale
        channels_last = channels_last and angle.dim() == 2
        layout = torch.channels_last if channels_last else torch.contiguous_format
        kernel = torch.empty((*angle.shape, size, size), dtype=dtype, device=angle.device, memory_format=layout)
        if fused_triton := _fused_triton(angle):
            fused_triton.line_kernel_forward(weight, angle, size, path, kernel)
            return kernel
        weight, angle = _computable(weight, angle)
        for part in _parts(angle):
            positions = kernel[part].movedim((-2, -1), (0, 1))
            if channels_last and dtype == angle.dtype:
                _forward(weight[part], angle[part], size, path, positions)
            else:
                out = angle.new_empty(positions.shape)
                positions.copy_(_forward(weight[part], angle[part], size, path, out))
        return kernel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, angle = ctx.saved_tensors
        return *_tensor_gradients(weight, angle, grad, *ctx.options), None, None, None, None, None


class _ClosedKernel(torch.autograd.Function):
    """The closed form of 3 x 3 on the circle for torch.compile, whose own derivative of `line_kernel` costs more."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, angle: Tensor, scale: float | Tensor, dtype: torch.dtype, channels_last: bool
    ) -> Tensor:
        ctx.save_for_backward(weight, angle)
        ctx.scale = scale
        positions = [position.to(dtype) for position in _positions_3(*_computable(weight, angle))]
        if channels_last and angle.dim() == 2:
            out, inputs = angle.shape
            return torch.stack(positions, 1).view(out, 3, 3, inputs).permute(0, 3, 1, 2)
        return torch.stack(positions, -1).view(*angle.shape, 3, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, angle = ctx.saved_tensors
        taps, grad_angle = _backward_3(*_computable(weight, angle), grad)
        grad_weight = torch.stack(taps, -1).to(weight.dtype)
        return grad_weight, (ctx.scale * grad_angle).to(angle.dtype), None, None, None


def _can_trace_a_node() -> bool:
    # An exported program is for other runtimes, and a transform would have to look into the node.
    return not torch.compiler.is_exporting() and not _in_transform()


def _tensor_gradients(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle without the compiled library."""
    # To be differentiated again, or for a batch of gradients at once: as autograd would have it.
    if torch.is_grad_enabled() or not _has_memory(grad):
        return _reference_gradients(weight, angle, grad, size, path, scale)
    return _gradients(weight, angle, grad, size, path, scale)


def _reference_gradients(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle through `line_kernel`, to be differentiated themselves."""
    kernel, pull_back, *_ = torch.func.vjp(lambda w, a: line_kernel(w, a, size, path), weight, angle)
    grad_weight, grad_angle = pull_back(grad.to(kernel.dtype))
    return grad_weight, scale * grad_angle


def _gradients(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle, by Triton or a part at a time."""
    if fused_triton := _fused_triton(angle):
        one = 1.0 if isinstance(scale, Tensor) else scale
        grad_weight, grad_angle = fused_triton.line_kernel_backward(weight, angle, grad, size, path, one)
        return grad_weight, grad_angle.mul_(scale) if isinstance(scale, Tensor) else grad_angle
    grad_weight, grad_angle = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (weight, angle))
    weight, angle = _computable(weight, angle)
    for part in _parts(angle):
        part_taps, part_angle = _backward(weight[part], angle[part], grad[part], size, path)
        torch.stack(list(part_taps), -1, out=grad_weight[part])
        torch.mul(part_angle, scale[part] if isinstance(scale, Tensor) else scale, out=grad_angle[part])
    return grad_weight, grad_angle


def needs_reference(*tensors: Tensor) -> bool:
    """In a compiler and in a transform, and for tensors that only stand for others."""
    return torch.compiler.is_compiling() or _in_transform() or not all(map(_has_memory, tensors))


# Of torch.func; what torch.autograd.Function asks as well. Where torch has it no more, the reference is always right.
_in_transform: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _has_memory(tensor: Tensor) -> bool:
    # Not a fake tensor or another class that only stands for one, nor one of a batch of gradients.
    if type(tensor) not in (Tensor, nn.Parameter):
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def _on_gpu(angle: Tensor) -> bool:
    return angle.is_cuda


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


def _parts(angle: Tensor) -> list[slice | EllipsisType]:
    """Slices of the first dimension whose temporaries stay in the cache; everything at once if that is small."""
    if angle.dim() == 0 or angle.numel() <= _PART:
        return [...]
    rows = max(1, _PART * len(angle) // angle.numel())
    return [slice(first, first + rows) for first in range(0, len(angle), rows)]


# Inside, the small dimensions come first, [row, col, ...]: operations run along memory. Few and small operations,
# because with the layers of a small model the cost is the number of calls.


def _forward(weight: Tensor, angle: Tensor, size: int, path: Path, out: Tensor) -> Tensor:
    """The kernels, [row, col, ...]: Σ_t (weight[t] · R_t) ⊗ C_t."""
    if size == 3 and path == "circle":
        return _forward_3(weight, angle, out)
    half = size // 2
    position, taps = _position(angle, path), _taps_first(weight, size)
    for t in range(1, half + 1):
        hats = _nearness(_distances(position, t, half)).relu_()
        rows, cols = hats.unbind()
        rows = (rows * taps[half + t]).unsqueeze(1)
        if t == 1:
            torch.mul(rows, cols, out=out)
        else:
            out.addcmul_(rows, cols)
        rows, cols = hats.flip(1).unbind()  # of the tap -t
        out.addcmul_((rows * taps[half - t]).unsqueeze(1), cols)
    out[half, half].add_(taps[half])
    return out


def _backward(weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path) -> tuple[Sequence[Tensor], Tensor]:
    """The gradients of the taps, one by one, and of the angle."""
    if size == 3 and path == "circle":
        return _backward_3(weight, angle, grad)
    half = size // 2
    position, taps = _position(angle, path), _taps_first(weight, size)
    position = torch.hardshrink(position, 4 * torch.finfo(position.dtype).eps)  # `on_axis`
    grad = _positions_first(grad.to(position.dtype))  # G
    reversed_grad = grad.flip(0, 1)  # G~
    grad_taps = position.new_empty(size, *angle.shape)
    grad_taps[half] = grad[half, half]
    for t in range(1, half + 1):
        distance = _distances(position, t, half)
        nearness = _nearness(distance)
        rows, cols = nearness.relu().unbind()
        rows = rows.unsqueeze(1)
        splat = rows * cols
        torch.sum(grad * splat, (0, 1), out=grad_taps[half + t])
        torch.sum(splat.mul_(reversed_grad), (0, 1), out=grad_taps[half - t])
        grad_splat = (grad * taps[half + t]).addcmul_(reversed_grad, taps[half - t])  # H
        # Λ' = -sign z · (1 + sign(1 - |z|)) / 2: on the kinks the mean of both sides.
        sign = distance.sign_()
        slopes = torch.addcmul(sign, sign, nearness.sign_())  # -2 Λ'
        grad_rows = (grad_splat * cols).sum(1).mul_(slopes[0]).sum(0)
        grad_cols = grad_splat.mul_(rows).sum(0).mul_(slopes[1]).sum(0)
        if t == 1:
            grad_row, grad_col = grad_rows, grad_cols
        else:
            grad_row.add_(grad_rows, alpha=t)
            grad_col.add_(grad_cols, alpha=t)
    row, col = position.unbind()
    row_speed, col_speed = (-col, row) if path == "circle" else tap_velocity(angle, path)
    grad_angle = grad_row.mul_(row_speed).addcmul_(grad_col, col_speed).mul_(-0.5)
    return grad_taps.unbind() if weight.shape[-1] == size else [grad_taps.sum(0)], grad_angle


def _forward_3(weight: Tensor, angle: Tensor, out: Tensor) -> Tensor:
    """The 3 x 3 kernels of the circle, [row, col, ...], position by position: the tap 1 lies sin θ up and cos θ right.

    With W = (weight[1], weight[-1]) times the columns' shares (left, mid, right) of either tap, the rows are
    up · W_1 + down · W_-1, level · (W_1 + W_-1) and down · W_1 + up · W_-1.
    """
    *_, other, center, tap = weight.expand(*weight.shape[:-1], 3).unbind(-1)
    sin, cos = angle.sin(), angle.cos()
    up, right = sin.relu(), cos.relu()
    down, left = up - sin, right - cos
    level, mid = 1 - (up + down), 1 - (right + left)
    positions = out.flatten(0, 1).unbind()
    for col, (share, other_share) in enumerate(((left, right), (mid, mid), (right, left))):
        mine, others = tap * share, other * other_share
        torch.mul(mine, up, out=positions[col]).addcmul_(others, down)
        torch.mul(mine, down, out=positions[6 + col]).addcmul_(others, up)
        torch.mul(mine.add_(others), level, out=positions[3 + col])
    positions[4].add_(center)
    return out


def _positions_3(weight: Tensor, angle: Tensor) -> list[Tensor]:
    """The nine positions of `_forward_3`, without writing in place."""
    *_, other, center, tap = weight.expand(*weight.shape[:-1], 3).unbind(-1)
    sin, cos = angle.sin(), angle.cos()
    up, right = sin.relu(), cos.relu()
    down, left = up - sin, right - cos
    level, mid = 1 - (up + down), 1 - (right + left)
    shares = ((left, right), (mid, mid), (right, left))
    pairs = [(tap * share, other * other_share) for share, other_share in shares]
    above, below = ([mine * a + others * b for mine, others in pairs] for a, b in ((up, down), (down, up)))
    beside = [(mine + others) * level for mine, others in pairs]
    beside[1] = beside[1] + center
    return [*above, *beside, *below]


def _backward_3(weight: Tensor, angle: Tensor, grad: Tensor) -> tuple[list[Tensor], Tensor]:
    """The gradients of the taps and of the angle, for 3 x 3 kernels of the circle, by even and odd parts.

    Of three neighbors, let C be the middle one, E the mean of the outer ones less C, and O half their difference; G
    has the nine parts CC to OO, rows first. A tap at (row, col) then reads from G, with s = sin θ and c = cos θ,
    the sum (even) and for t = -1 the difference (even - odd) of::

        even = CC + |c| CE + |s| (EC + |c| EE) + s c OO
        odd  = c (CO + |s| EO) + s (OC + |c| OE)
    """
    *_, other, _, tap = weight.expand(*weight.shape[:-1], 3).unbind(-1)
    tiny = 4 * torch.finfo(angle.dtype).eps  # `on_axis`
    sin, cos = torch.hardshrink(angle.sin(), tiny), torch.hardshrink(angle.cos(), tiny)
    height, width = sin.abs(), cos.abs()
    (cc, ec, oc), (ce, ee, oe), (co, eo, oo) = (
        _even_and_odd(*part.unbind())
        for part in _even_and_odd(*reversed(_positions_first(grad.to(angle.dtype)).unbind(1)))
    )
    rows, cols = torch.addcmul(ec, width, ee), torch.addcmul(ce, height, ee)
    even = torch.addcmul(cc, width, ce).addcmul_(height, rows).addcmul_(sin * cos, oo)
    across, along = torch.addcmul(co, height, eo), torch.addcmul(oc, width, oe)
    odd = (cos * across).addcmul_(sin, along)
    # d|sin θ| and -d|cos θ|: 0 on the kinks, the mean of both sides.
    rise, fall = sin.sign() * cos, cos.sign() * sin
    angle_even = (rise * rows).addcmul_(fall, cols, value=-1).addcmul_(cos * cos - sin * sin, oo)
    angle_odd = (cos * along).addcmul_(sin, across, value=-1)
    angle_odd.addcmul_(rise * cos, eo).addcmul_(fall * sin, oe, value=-1)
    grad_angle = angle_even.mul_(tap + other).addcmul_(angle_odd, tap - other)
    if weight.shape[-1] == 1:
        return [even + even + cc], grad_angle
    return [even - odd, cc, even + odd], grad_angle


def _even_and_odd(one: Tensor, middle: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C, E and O of three neighbors."""
    mean = torch.lerp(one, other, 0.5)
    return middle, mean - middle, one - mean


def _computable(weight: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype to compute in: the promoted one, float32 at least."""
    dtype = torch.promote_types(torch.promote_types(weight.dtype, angle.dtype), torch.float32)
    return weight.to(dtype), angle.to(dtype)


def _position(angle: Tensor, path: Path) -> Tensor:
    """Where the tap t = 1 lies, [row or col, ...]."""
    return torch.stack(tap_direction(angle, path))


def _taps_first(weight: Tensor, size: int) -> Tensor:
    """The weights, [tap, ...]."""
    taps = weight.movedim(-1, 0).contiguous()
    return taps if len(taps) == size else taps.expand(size, *taps.shape[1:])


def _positions_first(kernels: Tensor) -> Tensor:
    """Kernels (..., k, k) as [row, col, ...], in an order in memory in which operations run along it."""
    positions = kernels.movedim((-2, -1), (0, 1))
    along = kernels.dim() == 4 and kernels.stride(1) == 1  # channels-last is as good as contiguous
    return positions if along else positions.contiguous()


def _distances(position: Tensor, t: int, half: int) -> Tensor:
    """From the tap t to every row and every column, [row or col, k, ...]."""
    grid = torch.arange(-half, half + 1, device=position.device, dtype=position.dtype)
    grid = grid.view(-1, *[1] * (position.dim() - 1))
    return (position if t == 1 else t * position)[:, None] - grid


def _nearness(distance: Tensor) -> Tensor:
    """1 - |z| of the distances: Λ where it is positive."""
    return torch.sub(distance.new_ones(()), distance.abs())  # the call costs half of what that of `1 -` costs
