"""Every law fails on kernels that break it: an assertion that holds for everything proves nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import laws
from laws import LAWS, KernelFunction
from rotateconv import line_kernel

ANGLES = torch.tensor([0.3, 1.0, 2.2, -0.4, -2.9], dtype=torch.float64)
WEIGHTS = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64).repeat(5, 1) + ANGLES[:, None]


def broken(
    row: Callable[[Tensor], Tensor] = lambda angle: -angle.sin(),
    col: Callable[[Tensor], Tensor] = lambda angle: angle.cos(),
    hat: Callable[[Tensor], Tensor] = lambda z: (1 - z.abs()).clamp(min=0),
    taps: Callable[[int], Tensor] = lambda half: torch.arange(-half, half + 1).double(),
    rho: Callable[[Tensor], Tensor] = lambda angle: torch.maximum(angle.sin().abs(), angle.cos().abs()),
    weights: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> KernelFunction:
    """The formula, with one part of it replaced."""

    def function(weight: Tensor, angle: Tensor, size: int, path: str) -> Tensor:
        half = size // 2
        cells = torch.arange(-half, half + 1).double()
        reach = taps(half) / (rho(angle)[..., None] if path == "square" else 1)  # [..., tap]
        rows = hat((reach * row(angle)[..., None])[..., None] - cells)
        cols = hat((reach * col(angle)[..., None])[..., None] - cells)
        used = weights(weight).expand(*angle.shape, size)[..., -rows.shape[-2] :]
        return torch.einsum("...t,...tr,...tc->...rc", used, rows, cols)

    return function


# What is wrong, the function, and the laws that must see it.
BROKEN: dict[str, tuple[KernelFunction, list[str]]] = {
    "sin and cos swapped": (
        broken(row=lambda angle: -angle.cos(), col=lambda angle: angle.sin()),
        ["quarter_turn", "mirrored", "splats", "horizontal_at_zero", "square_on_grid_lines"],
    ),
    "clockwise": (
        broken(row=lambda angle: angle.sin()),
        ["quarter_turn", "splats", "square_on_grid_lines"],
    ),
    "taps in reverse order": (
        broken(col=lambda angle: -angle.cos()),
        ["quarter_turn", "splats", "horizontal_at_zero", "square_on_grid_lines"],
    ),
    "one end of the line forgotten": (
        broken(taps=lambda half: torch.arange(1 - half, half + 1).double()),
        ["half_turn_reverses", "splats", "horizontal_at_zero", "square_on_grid_lines"],
    ),
    "the line starts at the center": (
        broken(taps=lambda half: torch.arange(2 * half + 1).double()),
        ["half_turn_reverses", "splats", "horizontal_at_zero", "square_on_grid_lines"],
    ),
    "degrees": (
        broken(row=lambda angle: -angle.deg2rad().sin(), col=lambda angle: angle.deg2rad().cos()),
        ["periodic", "half_turn_reverses", "quarter_turn", "splats", "square_on_grid_lines"],
    ),
    "half the angle": (
        broken(row=lambda angle: -(angle / 2).sin(), col=lambda angle: (angle / 2).cos()),
        ["periodic", "half_turn_reverses", "quarter_turn", "splats", "square_on_grid_lines"],
    ),
    "nearest cell instead of bilinear": (broken(hat=lambda z: (z.abs() < 0.5).double()), ["splats"]),
    "hat too wide": (
        broken(hat=lambda z: (1 - z.abs() / 2).clamp(min=0) / 2),
        ["splats", "horizontal_at_zero", "square_on_grid_lines"],
    ),
    "hat not cut off": (
        broken(hat=lambda z: 1 - z.abs()),
        ["splats", "horizontal_at_zero", "square_on_grid_lines"],
    ),
    "the square path is the circle": (broken(rho=torch.ones_like), ["splats", "square_on_grid_lines"]),
    "size of the weights only": (
        broken(weights=torch.abs),
        ["linear", "horizontal_at_zero", "square_on_grid_lines"],
    ),
}


def fails(law: Callable[..., None], function: KernelFunction) -> bool:
    """Whether a law fails on one of the paths."""
    for path in ("circle", "square"):
        try:
            law(function, WEIGHTS, ANGLES, 3, path)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("wrong", BROKEN)
def test_broken_kernels_break_laws(wrong: str) -> None:
    function, expected = BROKEN[wrong]
    failing = {law.__name__.removeprefix("assert_") for law in LAWS if fails(law, function)}
    assert failing >= set(expected)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_law_is_broken_by_something_and_kept_by_the_kernel(law: Callable[..., None]) -> None:
    assert any(law.__name__.removeprefix("assert_") in expected for _, expected in BROKEN.values())
    assert not fails(law, broken())
    assert not fails(law, line_kernel)


def test_all_assertions_are_listed() -> None:
    assert [
        value for name, value in vars(laws).items() if name.startswith("assert_") and name != "assert_close"
    ] == LAWS
