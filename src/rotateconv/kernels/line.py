"""The mathematics of a kernel that is a line segment with an angle: pure functions of tensors."""

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from rotateconv.errors import InputError

Path = Literal["circle", "square"]
Taps = Literal["free", "shared", "profile"]


def line_kernel(weight: Tensor, angle: Tensor, kernel_size: int = 3, path: Path = "circle") -> Tensor:
    """Lay line segments of T = k taps on the k x k grid by bilinear interpolation.

    With half = (k - 1) / 2, r, c in {-half..half} and t in {-half..half}::

        K[..., r, c] = Σ_t weight[..., t] · Λ(t·ρ·u_row - r) · Λ(t·ρ·u_col - c)
        u(θ) = (u_row, u_col) = (-sin θ, cos θ),   Λ(z) = max(0, 1 - |z|)
        ρ(θ) = 1                          path="circle": tap t stays at the distance |t| of the center
        ρ(θ) = 1 / max(|sin θ|, |cos θ|)  path="square": tap t stays on the square ring of the grid

    Counter-clockwise as displayed, row 0 on top; θ = 0 is a horizontal 1 x k kernel. Differentiable any number
    of times in weight and angle. The derivative jumps where a tap crosses a grid line; exactly there, autograd
    returns the mean of the two one-sided derivatives. (The square path also turns a corner at odd multiples of 45°:
    there the gradient is finite, but not that mean.)

    Args:
        weight: (..., T) one weight per tap, or (..., 1) one weight that all taps share.
        angle: (...), in radians.
        kernel_size: k, odd and at least 3.
        path: "circle" or "square".

    Returns:
        The kernels, (..., k, k), in the promoted dtype of weight and angle, on their device. Half precision is
        computed in float32 and rounded once, at the end.

    Raises:
        TypeError: If weight or angle is not a floating-point tensor, or kernel_size not an integer.
        ValueError: If kernel_size is even or below 3, path is unknown, or the shapes do not match.

    Example:
        >>> line_kernel(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(0.0))
        tensor([[0., 0., 0.],
                [1., 2., 3.],
                [0., 0., 0.]])

    Reference:
        Ma, Guo, Wang, Wang, "RotateConv: Making Asymmetric Convolutional Kernels Rotatable", ICPR 2018.
    """
    check_inputs(weight, angle, kernel_size)
    result_dtype = torch.promote_types(weight.dtype, angle.dtype)
    dtype = torch.promote_types(result_dtype, torch.float32)
    splat = _splat(angle.to(dtype), kernel_size, path)  # [tap, row, col, ...]
    # Elementwise on purpose: a matrix product would be rounded to bf16 under autocast, and to TF32 on CUDA.
    kernel = (weight.to(dtype).movedim(-1, 0)[:, None, None] * splat).sum(0)  # [row, col, ...]
    return kernel.to(result_dtype).movedim((0, 1), (-2, -1)).contiguous()


def line_kernel_gradients(
    weight: Tensor, angle: Tensor, grad: Tensor, kernel_size: int, path: Path, angle_grad_scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and angle from that of the kernels, by autograd; to be differentiated themselves.

    Args:
        weight, angle, kernel_size, path: As in `line_kernel`.
        grad: (..., k, k).
        angle_grad_scale: The gradient of the angle is multiplied by it.
    """
    kernel, pull_back, *_ = torch.func.vjp(lambda w, a: line_kernel(w, a, kernel_size, path), weight, angle)
    grad_weight, grad_angle = pull_back(grad.to(kernel.dtype))
    return grad_weight, angle_grad_scale * grad_angle


def tap_direction(angle: Tensor, path: Path = "circle") -> tuple[Tensor, Tensor]:
    """The place (row, column) of the tap t = 1: ρ(θ)·u(θ). The tap t lies at t times it.

    Args:
        angle: (...), in radians, floating point.
        path: "circle" or "square".

    Returns:
        The row and the column, each of the shape, dtype and device of `angle`.

    Raises:
        ValueError: If path is unknown.

    Example:
        >>> tap_direction(torch.tensor(0.0))
        (tensor(-0.), tensor(1.))
    """
    check_path(path)
    row, col = -angle.sin(), angle.cos()
    if path == "circle":
        return row, col
    # Divided, not multiplied by 1/max: the larger of the two is then ±1 exactly.
    radius = torch.maximum(row.abs(), col.abs())
    return row / radius, col / radius


def tap_velocity(angle: Tensor, path: Path = "circle") -> tuple[Tensor, Tensor]:
    """The derivative of `tap_direction` by the angle, row and column: positions per radian at the tap t = 1.

    Args:
        angle: (...), in radians, floating point.
        path: "circle" or "square".

    Returns:
        The row and the column, each of the shape, dtype and device of `angle`.

    Raises:
        ValueError: If path is unknown.

    Example:
        >>> tap_velocity(torch.tensor(0.0))  # at θ = 0 the tap on the right moves straight up
        (tensor(-1.), tensor(-0.))
    """
    row, col = tap_direction(angle, path)
    if path == "circle":
        return -col, row
    # p = u / m with m = max(|sin θ|, |cos θ|), so p' = (u' - p·m') / m
    sin, cos = angle.sin(), angle.cos()
    steep = sin.abs() > cos.abs()
    size = torch.where(steep, sin.abs(), cos.abs())
    growth = torch.where(steep, sin.sign() * cos, -cos.sign() * sin)
    return (-cos - row * growth) / size, (-sin - col * growth) / size


def tap_splats(angle: Tensor, kernel_size: int = 3, path: Path = "circle") -> Tensor:
    """The splat of every tap t on the grid: S(t·ρ(θ)·u(θ)), what `line_kernel` makes of that tap alone.

    Args:
        angle: (...), in radians, floating point.
        kernel_size: k, odd and at least 3.
        path: "circle" or "square".

    Returns:
        (..., T, k, k) in the dtype and on the device of `angle`: each splat is >= 0 and sums to 1.

    Raises:
        TypeError: If kernel_size is not an integer.
        ValueError: If kernel_size is even or below 3, or path is unknown.

    Example:
        >>> tap_splats(torch.tensor(0.0))[2]
        tensor([[0., 0., 0.],
                [0., 0., 1.],
                [0., 0., 0.]])
    """
    check_kernel_size(kernel_size)
    return _splat(angle, kernel_size, path).movedim((0, 1, 2), (-3, -2, -1)).contiguous()


def tap_slopes(angle: Tensor, kernel_size: int = 3, path: Path = "circle") -> Tensor:
    """The derivative of every splat by the angle, in closed form.

    With p = ρ(θ)·u(θ)::

        dS_t/dθ [r,c] = t · (p'_row · Λ'(t·p_row - r) · Λ(t·p_col - c) + p'_col · Λ(t·p_row - r) · Λ'(t·p_col - c))
        Λ'(z) = -sign z for |z| < 1, half of that at |z| = 1, and 0 beyond

    Args:
        angle: (...), in radians, floating point.
        kernel_size: k, odd and at least 3.
        path: "circle" or "square".

    Returns:
        (..., T, k, k) in the dtype and on the device of `angle`: what autograd gives for `tap_splats`.

    Raises:
        TypeError: If kernel_size is not an integer.
        ValueError: If kernel_size is even or below 3, or path is unknown.

    Example:
        >>> tap_slopes(torch.tensor(torch.pi / 4))[1].abs().max()  # the center tap does not move
        tensor(0.)
    """
    check_kernel_size(kernel_size)
    grid = _grid(angle, kernel_size)
    row, col = map(on_axis, tap_direction(angle, path))
    row_speed, col_speed = tap_velocity(angle, path)
    to_rows, to_cols = grid[:, None] * row - grid, grid[:, None] * col - grid  # [tap, row or col, ...]
    slope = (grid[:, None] * row_speed * _hat_slope(to_rows))[:, :, None] * _hat(to_cols)[:, None, :]
    slope = slope + _hat(to_rows)[:, :, None] * (grid[:, None] * col_speed * _hat_slope(to_cols))[:, None, :]
    return slope.movedim((0, 1, 2), (-3, -2, -1)).contiguous()


def mean_gram(kernel_size: int, path: Path = "circle") -> Tensor:
    """The Gram matrix of the taps' splats on the grid, averaged over all angles.

    With S_t(θ) the splat of tap t::

        gram[s, t] = mean over θ of Σ_{r,c} S_s(θ)[r,c] · S_t(θ)[r,c]

    so a kernel with tap weights w has the expected squared norm wᵀ·gram·w under a uniform angle: what the
    initialization of a layer needs.

    Args:
        kernel_size: k, odd and at least 3.
        path: "circle" or "square".

    Returns:
        (T, T), float64, on the CPU.

    Raises:
        ValueError: If kernel_size is even or below 3, or path is unknown.

    Example:
        >>> mean_gram(3)[1, 1].item()  # the center tap always fills one position
        1.0
    """
    return torch.tensor(_mean_gram(kernel_size, path), device="cpu", dtype=torch.float64)


def unit_profile(profile: Tensor, kernel_size: int, path: Path = "circle") -> Tensor:
    """A profile scaled to profileᵀ · mean_gram · profile = 1: an expected squared kernel norm of 1 over a turn.

    Args:
        profile: (..., T); where it is zero, the box (all taps equal) is returned.
        kernel_size: k, odd and at least 3.
        path: "circle" or "square".

    Returns:
        (..., T) in the dtype and on the device of `profile`.

    Example:
        >>> profile = unit_profile(torch.tensor([3.0, 0.0, -4.0]), 3)
        >>> round((profile @ mean_gram(3).float() @ profile).item(), 5)
        1.0
    """
    gram = mean_gram(kernel_size, path).to(profile)
    norm = torch.einsum("...s,st,...t->...", profile, gram, profile).sqrt()[..., None]
    box = torch.ones_like(profile) / gram.sum().sqrt()
    return torch.where(norm > 0, profile / norm, box)


def check_inputs(weight: Tensor, angle: Tensor, kernel_size: int) -> None:
    """Raise unless these are the arguments of a line kernel: TypeError for kinds, ValueError for sizes."""
    check_kernel_size(kernel_size)
    for name, tensor in (("weight", weight), ("angle", angle)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {found}")
    if weight.dim() == 0 or weight.shape[-1] not in (1, kernel_size):
        raise InputError(
            f"weight must end in {kernel_size} taps or in 1 shared weight, got shape {tuple(weight.shape)}"
        )
    if weight.shape[:-1] != angle.shape:
        raise InputError(
            f"angle must have the shape of weight without its last dimension, {tuple(weight.shape[:-1])}, "
            f"got {tuple(angle.shape)}"
        )


def check_kernel_size(kernel_size: int) -> None:
    """Raise unless `kernel_size` is an odd integer of at least 3."""
    if not isinstance(kernel_size, int) or isinstance(kernel_size, bool):
        raise TypeError(f"kernel_size must be an odd integer >= 3, got {kernel_size!r}")
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size must be an odd integer >= 3, got {kernel_size}")


def check_path(path: str) -> None:
    """Raise unless `path` is one of the paths that a tap can move on."""
    if path not in get_args(Path):
        raise InputError(f"path must be one of {', '.join(map(repr, get_args(Path)))}, got {path!r}")


def check_taps(taps: str) -> None:
    """Raise unless `taps` is one of the forms that the weights of the taps can take."""
    if taps not in get_args(Taps):
        raise InputError(f"taps must be one of {', '.join(map(repr, get_args(Taps)))}, got {taps!r}")


@lru_cache
def _mean_gram(kernel_size: int, path: Path) -> list[list[float]]:
    # One quarter of a turn is enough: kernel(θ + π/2) = rot90(kernel(θ)) has the same inner products.
    count = 1024
    angle = (torch.arange(count, device="cpu", dtype=torch.float64) + 0.5) * (torch.pi / 2 / count)
    splats = tap_splats(angle, kernel_size, path).flatten(2)  # [angle, tap, position]
    gram: list[list[float]] = (splats @ splats.mT).mean(0).tolist()
    return gram


def on_axis(position: Tensor) -> Tensor:
    """The same rows or columns, those made exactly 0 that are 0 but for rounding; gradients pass unchanged.

    cos(π/2) is 6e-17: of the three grid lines that the hat of such a tap touches, rounding would put it beside one
    and exactly on the others, and the slopes there would not belong together.
    """
    exact = position.detach()
    return position - torch.where(exact.abs() <= 4 * torch.finfo(position.dtype).eps, exact, torch.zeros_like(exact))


def _splat(angle: Tensor, kernel_size: int, path: Path) -> Tensor:
    """The splats with the small dimensions first, [tap, row, col, ...]: ten times faster on a CPU than last."""
    row, col = map(on_axis, tap_direction(angle, path))  # [...]
    grid = _grid(angle, kernel_size)
    rows = _hat(grid[:, None] * row - grid)  # [tap, row, ...]
    cols = _hat(grid[:, None] * col - grid)  # [tap, col, ...]
    return rows[:, :, None] * cols[:, None, :]


def _grid(angle: Tensor, kernel_size: int) -> Tensor:
    """{-half..half}, of taps, of rows, of columns: [k, 1, ..., 1] to go with angles [...]."""
    half = kernel_size // 2
    grid = torch.arange(-half, half + 1, device=angle.device, dtype=angle.dtype)
    return grid.view(-1, *[1] * angle.dim())


def _hat(distance: Tensor) -> Tensor:
    """Λ(z) = max(0, 1 - |z|): the share that a tap gives to a grid line at the distance z."""
    # maximum halves the gradient at a tie, so |z| = 1 and z = 0 both get the mean of the one-sided derivatives;
    # clamp(min=0) would pass the whole slope on one side and make the derivative at θ = 0 twice too large.
    return torch.maximum(1 - distance.abs(), distance.new_zeros(()))


def _hat_slope(distance: Tensor) -> Tensor:
    """Λ'(z), on the kinks the mean of both sides."""
    size = distance.abs()
    return -distance.sign() * ((size < 1).to(size.dtype) + (size <= 1).to(size.dtype)) / 2
