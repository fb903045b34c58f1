"""line_kernel and its gradients by few operations on tensors: where there is no compiled kernel and no Triton."""

from collections.abc import Sequence
from types import EllipsisType

import torch
from torch import Tensor

from rotateconv.kernels.line import Path, tap_direction, tap_velocity

_PART = 1 << 14  # slices at a time: an operation on one number of each then stays in the cache, and on one thread


def line_kernel_forward(weight: Tensor, angle: Tensor, size: int, path: Path, out: Tensor) -> None:
    """Write the kernels into `out`, in its dtype and memory layout; the arguments are those of `fused_triton`'s."""
    weight, angle = computable(weight, angle)
    for part in _parts(angle):
        out[part].movedim((-2, -1), (0, 1)).copy_(_forward(weight[part], angle[part], size, path))


def line_kernel_backward(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, angle_grad_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle from that of the kernels, a part at a time."""
    grad_weight, grad_angle = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (weight, angle))
    weight, angle = computable(weight, angle)
    for part in _parts(angle):
        part_taps, part_angle = _backward(weight[part], angle[part], grad[part], size, path)
        torch.stack(list(part_taps), -1, out=grad_weight[part])
        torch.mul(part_angle, angle_grad_scale, out=grad_angle[part])
    return grad_weight, grad_angle


def _parts(angle: Tensor) -> list[slice | EllipsisType]:
    """Slices of the first dimension whose temporaries stay in the cache; everything at once if that is small."""
    if angle.dim() == 0 or angle.numel() <= _PART:
        return [...]
    rows = max(1, _PART * len(angle) // angle.numel())
    return [slice(first, first + rows) for first in range(0, len(angle), rows)]


# Inside, the small dimensions come first, [row, col, ...]: operations run along memory. Few and small operations,
# because with the layers of a small model the cost is the number of calls.


def _forward(weight: Tensor, angle: Tensor, size: int, path: Path) -> Tensor:
    """The kernels, [row, col, ...]: Σ_t (weight[t] · R_t) ⊗ C_t."""
    if size == 3 and path == "circle":
        return torch.stack(closed_positions(weight, angle)).view(3, 3, *angle.shape)
    half = size // 2
    position, taps = _position(angle, path), _taps_first(weight, size)
    out = position.new_zeros(size, size, *angle.shape)
    for t in range(1, half + 1):
        hats = _nearness(_distances(position, t, half)).relu_()
        for tap, (rows, cols) in ((half + t, hats), (half - t, hats.flip(1))):
            out.addcmul_((rows * taps[tap]).unsqueeze(1), cols)
    out[half, half].add_(taps[half])
    return out


def _backward(weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path) -> tuple[Sequence[Tensor], Tensor]:
    """The gradients of the taps, one by one, and of the angle."""
    if size == 3 and path == "circle":
        return closed_gradients(weight, angle, grad)
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


def closed_positions(weight: Tensor, angle: Tensor) -> list[Tensor]:
    """The nine positions of the 3 x 3 kernels of the circle, in rows: the tap 1 lies sin θ up and cos θ right.

    With W = (weight[1], weight[-1]) times the columns' shares (left, mid, right) of either tap, the rows are
    up · W_1 + down · W_-1, level · (W_1 + W_-1) and down · W_1 + up · W_-1.
    """
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


def closed_gradients(weight: Tensor, angle: Tensor, grad: Tensor) -> tuple[list[Tensor], Tensor]:
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


def computable(weight: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
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
