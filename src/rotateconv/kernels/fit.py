"""The inverse of line_kernel: the line segments nearest to given kernels, by least squares over the whole turn."""

from typing import NamedTuple

import torch
from torch import Tensor

from rotateconv.errors import InputError
from rotateconv.kernels.fit_profile import fit_profiles
from rotateconv.kernels.fit_search import GRID, Segments, best_on_grid, grid_angles, in_chunks, refine, solve
from rotateconv.kernels.line import Path, Taps, check_kernel_size, check_path, check_taps, line_kernel, unit_profile


class LineFit(NamedTuple):
    """Line segments fitted to kernels: ``line_kernel(weight * profile, angle)`` is the nearest kernel.

    weight: (..., T) for taps="free", else (..., 1).
    angle: (...), or (G, in) with angle groups; radians, in [0, 2π).
    profile: None unless taps="profile"; then (..., T), one for each row of slices, or (G, in, T).
    residual: (...), the Frobenius norm of what is left of each slice, in the unit of the kernel.
    """

    weight: Tensor
    angle: Tensor
    profile: Tensor | None
    residual: Tensor


def fit_line(kernel: Tensor, taps: Taps = "free", path: Path = "circle", *, angle_groups: int | None = None) -> LineFit:
    """Find weights and angles (and profiles) that minimize ‖kernel - line_kernel(W, angle)‖² for every slice.

    For a given angle the best weights are a linear least-squares problem with a closed form, so what is left is
    one number per slice: it is searched over a grid of the whole turn, then refined in float64 to rounding by the
    zero of the derivative, one interval of the grid at a time because the derivative jumps at the kinks. With
    taps="profile" the slices of a row share their profile: profile and angles take turns, from several starts,
    and a Gauss-Newton iteration with the weights and angles projected out finishes. With `angle_groups` the
    slices of a group share the angle, and the best profile is the largest eigenvector of a T x T matrix.

    Args:
        kernel: (..., k, k), k odd and >= 3, float32 or float64 (half precision is fitted in float32);
            (..., in, k, k) with taps="profile"; (out, in, k, k) with angle_groups.
        taps: "free", "shared" or "profile".
        path: "circle" or "square".
        angle_groups: G equal groups of output channels that share an angle for each input channel.

    Returns:
        A LineFit in the dtype and on the device of `kernel`, which is fitted as well whatever its size: fitting
        2^n · kernel gives the same angles and 2^n times the weights. Memory beyond the result is bounded.

    Raises:
        TypeError: If kernel is not a floating-point tensor.
        ValueError: If it holds NaN or infinity, is not square and odd, or has too few dimensions for the form.

    Example:
        >>> weight, angle = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5])
        >>> fit = fit_line(line_kernel(weight, angle))
        >>> torch.allclose(line_kernel(fit.weight, fit.angle), line_kernel(weight, angle), atol=1e-6)
        True
    """
    check_taps(taps)
    check_path(path)
    _check_kernel(kernel, taps, angle_groups)
    size = kernel.shape[-1]
    slices = kernel.detach().to(torch.promote_types(kernel.dtype, torch.float32)).flatten(-2)  # [..., position]
    if kernel.numel() == 0:
        return _fit_nothing(kernel, taps, path, angle_groups)
    exponent = _exponents(slices, taps, angle_groups)
    slices = _scaled(slices, -exponent[..., None])
    if angle_groups is not None:
        fit = _fit_groups(slices, taps, size, path, angle_groups)
    elif taps == "profile":
        fit = _fit_rows(slices, size, path)
    else:
        fit = _fit_bundles(slices.reshape(-1, 1, size * size), taps, size, path)
        shape = kernel.shape[:-2]
        fit = LineFit(
            fit.weight.view(*shape, fit.weight.shape[-1]), fit.angle.view(shape), None, fit.residual.view(shape)
        )
    weight, residual = _scaled(fit.weight, exponent[..., None]), _scaled(fit.residual, exponent)
    profile = None if fit.profile is None else fit.profile.to(kernel.dtype)
    return LineFit(weight.to(kernel.dtype), fit.angle.to(kernel.dtype), profile, residual.to(kernel.dtype))


def _exponents(slices: Tensor, taps: Taps, angle_groups: int | None) -> Tensor:
    """The power of two next above the largest number of what is fitted together, for every slice of [..., position].

    Squares of tiny and of huge kernels would leave the range of their dtype, so each is fitted in its own unit; a
    power of two, because that changes no digit.
    """
    largest = slices.abs().amax(-1)
    if angle_groups is not None:
        groups = largest.unflatten(0, (angle_groups, -1))
        largest = groups.amax(1, keepdim=True).expand_as(groups).flatten(0, 1)
    elif taps == "profile":
        largest = largest.amax(-1, keepdim=True).expand_as(largest)
    return torch.frexp(largest).exponent


def _scaled(tensor: Tensor, exponent: Tensor) -> Tensor:
    """The tensor times 2^exponent, in two steps: the power itself may be out of range where the product is not."""
    half = exponent // 2
    return tensor * _power_of_two(half).to(tensor.dtype) * _power_of_two(exponent - half).to(tensor.dtype)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, from its bits: torch.ldexp takes the power in float32, and exp2 may round it."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _fit_nothing(kernel: Tensor, taps: Taps, path: Path, angle_groups: int | None) -> LineFit:
    """The fit of no slices: where angles and profiles are shared they are there all the same, 0 and the box."""
    shape, size = kernel.shape[:-2], kernel.shape[-1]
    shared = shape if angle_groups is None else (angle_groups, shape[-1])
    profile = None
    if taps == "profile":
        profile = unit_profile(kernel.new_zeros(*(shape[:-1] if angle_groups is None else shared), size), size, path)
    weight = kernel.new_zeros(*shape, size if taps == "free" else 1)
    return LineFit(weight, kernel.new_zeros(shared), profile, kernel.new_zeros(shape))


def _fit_bundles(bundles: Tensor, taps: Taps, size: int, path: Path) -> LineFit:
    """Fit [bundle, slice, position], where the slices of a bundle share one angle (and one profile)."""
    box = torch.ones(1, size, device=bundles.device, dtype=torch.float64)
    segments = Segments(size, path, box if taps == "shared" else None, rank_one=taps == "profile")
    searched = segments._replace(outer=taps == "free")
    # Half a turn later, free taps are the same in reverse order and shared taps are the same: half a turn is all.
    angles = grid_angles(bundles.device)[: GRID // 2]
    start, _ = best_on_grid(searched.positions(bundles), searched.basis(angles).to(bundles.dtype), segments.rank_one)

    def fit(part: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        part = part.double()
        angle = refine(searched.positions(part), angles[start], searched)
        basis = segments.basis(angle)
        weight = solve(part, basis, segments.rank_one)  # [bundle, slice, vector]
        residual = (part - weight @ basis).norm(dim=-1)
        if not segments.rank_one:
            return weight, angle, residual
        largest = weight.abs().amax(2).argmax(1)[:, None, None].expand(-1, 1, size)
        profile = unit_profile(weight.gather(1, largest)[:, 0], size, path)
        return solve(weight, profile[:, None]), angle, residual, profile

    numbers = 8 * (size + bundles.shape[1]) * size * size
    weight, angle, residual, *profiles = in_chunks(fit, numbers, bundles, start)
    return LineFit(weight, angle.remainder(2 * torch.pi), profiles[0] if profiles else None, residual)


def _fit_groups(slices: Tensor, taps: Taps, size: int, path: Path, groups: int) -> LineFit:
    """Fit [out, in, position]: at each input channel, the slices of a group of output channels are one bundle."""
    out, inputs, positions = slices.shape
    bundles = slices.view(groups, out // groups, inputs, positions).transpose(1, 2)  # [group, in, out, position]
    fit = _fit_bundles(bundles.reshape(groups * inputs, out // groups, positions), taps, size, path)
    return LineFit(
        fit.weight.view(groups, inputs, out // groups, -1).transpose(1, 2).reshape(out, inputs, -1),
        fit.angle.view(groups, inputs),
        None if fit.profile is None else fit.profile.view(groups, inputs, size),
        fit.residual.view(groups, inputs, out // groups).transpose(1, 2).reshape(out, inputs),
    )


def _fit_rows(slices: Tensor, size: int, path: Path) -> LineFit:
    """Fit [..., in, position], where the slices of a row share a profile and each has its own angle."""
    rows = slices.flatten(0, -3) if slices.dim() > 3 else slices.view(-1, *slices.shape[-2:])  # [row, in, position]
    inputs = rows.shape[1]
    profile, angle = fit_profiles(rows, size, path)

    def fit(part: Tensor, angle: Tensor, profile: Tensor) -> tuple[Tensor, ...]:
        lines = line_kernel(profile, angle, size, path).flatten(1)[:, None]  # [slice, 1, position]
        part = part.double()
        weight = solve(part, lines)
        return weight[:, 0], (part - weight @ lines).norm(dim=-1)[:, 0]

    each = profile.repeat_interleave(inputs, 0)
    weight, residual = in_chunks(fit, 8 * size**3, rows.flatten(0, 1)[:, None], angle.flatten(), each)
    shape = slices.shape[:-1]
    return LineFit(weight.view(*shape, 1), angle.view(shape), profile.view(*shape[:-1], size), residual.view(shape))


def _check_kernel(kernel: Tensor, taps: Taps, angle_groups: int | None) -> None:
    if not isinstance(kernel, Tensor) or not kernel.is_floating_point():
        found = kernel.dtype if isinstance(kernel, Tensor) else type(kernel).__name__
        raise TypeError(f"kernel must be a floating-point tensor, got {found}")
    if kernel.dim() < 2 or kernel.shape[-1] != kernel.shape[-2]:
        raise InputError(f"kernel must have the shape (..., k, k), got {tuple(kernel.shape)}")
    check_kernel_size(kernel.shape[-1])
    if angle_groups is not None:
        if kernel.dim() != 4:
            raise InputError(f"angle_groups needs a kernel of shape (out, in, k, k), got {tuple(kernel.shape)}")
        if angle_groups < 1 or kernel.shape[0] % angle_groups:
            raise InputError(
                f"out channels must be divisible by angle_groups, got {kernel.shape[0]} and {angle_groups}"
            )
    elif taps == "profile" and kernel.dim() < 3:
        raise InputError(
            f"taps='profile' needs a kernel of shape (..., in, k, k), whose slices share a profile, "
            f"got {tuple(kernel.shape)}"
        )
    if not kernel.isfinite().all():
        raise InputError(f"kernel must be finite, got {int((~kernel.isfinite()).sum())} NaN or infinite values")
