"""The laws of a line kernel, as assertions about any function of (weight, angle, kernel size, path)."""

from collections.abc import Callable

import torch
from torch import Tensor

from tolerances import assert_close

KernelFunction = Callable[[Tensor, Tensor, int, str], Tensor]


def assert_periodic(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """A full turn changes nothing."""
    for turns in (-1, 1):
        turned = function(weight, angle + turns * 2 * torch.pi, size, path)
        assert_close(turned, function(weight, angle, size, path), _scale(angle, size))


def assert_half_turn_reverses(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """Half a turn reverses the taps (which changes nothing for one shared weight)."""
    turned = function(weight, angle + torch.pi, size, path)
    assert_close(turned, function(weight.flip(-1), angle, size, path), _scale(angle, size))


def assert_quarter_turn(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """A quarter turn of the angle is torch.rot90 of the kernel, counter-clockwise as displayed."""
    turned = function(weight, angle + torch.pi / 2, size, path)
    expected = torch.rot90(function(weight, angle, size, path), 1, (-2, -1))
    assert_close(turned, expected, _scale(angle, size))


def assert_mirrored(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """The opposite angle flips the rows."""
    assert_close(function(weight, -angle, size, path), function(weight, angle, size, path).flip(-2))


def assert_splats(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """A tap of weight 1 is laid down as shares that are >= 0, sum to 1 and have their centroid at the tap."""
    half = size // 2
    taps = torch.eye(size, dtype=angle.dtype).expand(*angle.shape, size, size)  # [..., tap, weight]
    splats = function(taps, angle[..., None].expand(taps.shape[:-1]), size, path)  # [..., tap, row, col]
    assert (splats >= 0).all()
    assert_close(splats.sum((-2, -1)), torch.ones_like(splats[..., 0, 0]))
    place = torch.arange(-half, half + 1, dtype=angle.dtype)
    sin, cos = angle.sin()[..., None], angle.cos()[..., None]
    rho = {"circle": torch.ones_like(sin), "square": 1 / torch.maximum(sin.abs(), cos.abs())}[path]
    assert_close((splats.sum(-1) * place).sum(-1), -place * rho * sin, scale=size)
    assert_close((splats.sum(-2) * place).sum(-1), place * rho * cos, scale=size)


def assert_linear(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """The kernel is linear in the weights, and one shared weight is the same weight at every tap."""
    other = weight.flip(-1) + 1
    expected = 2 * function(weight, angle, size, path) - function(other, angle, size, path)
    assert_close(function(2 * weight - other, angle, size, path), expected, scale=size)
    shared = weight[..., :1]
    assert_close(function(shared, angle, size, path), function(shared.expand(*angle.shape, size), angle, size, path))


def assert_horizontal_at_zero(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """Angle 0 is the middle row, with the taps in increasing column order, exactly."""
    kernel = function(weight, torch.zeros_like(angle), size, path)
    expected = torch.zeros_like(kernel)
    expected[..., size // 2, :] = weight
    assert torch.equal(kernel, expected)


def assert_square_on_grid_lines(function: KernelFunction, weight: Tensor, angle: Tensor, size: int, path: str) -> None:
    """On the square path, multiples of 45° fill whole cells: rows, columns and diagonals."""
    steps = [
        (0, 1),
        (-1, 1),
        (-1, 0),
        (-1, -1),
        (0, -1),
        (1, -1),
        (1, 0),
        (1, 1),
    ]  # (row, column) of the tap 1
    half = size // 2
    for eighth, (row, col) in enumerate(steps):
        kernel = function(weight, torch.full_like(angle, eighth * torch.pi / 4), size, "square")
        expected = torch.zeros_like(kernel)
        for tap in range(-half, half + 1):
            expected[..., half + tap * row, half + tap * col] = weight.expand(*angle.shape, size)[..., half + tap]
        assert_close(kernel, expected)


LAWS = [
    assert_periodic,
    assert_half_turn_reverses,
    assert_quarter_turn,
    assert_mirrored,
    assert_splats,
    assert_linear,
    assert_horizontal_at_zero,
    assert_square_on_grid_lines,
]


def _scale(angle: Tensor, size: int) -> float:
    """What the rounding of an angle that was turned makes of a tap at the distance of half the kernel."""
    return size / 2 * (1 + angle.abs().max().item() / 6)
