"""fit_line with free and shared taps: the inverse of line_kernel, least squares over the whole turn."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from rotateconv import LineFit, fit_line, line_kernel
from rotateconv.kernels import fit_search
from tolerances import TOLERANCE

SIZES, PATHS, FREE_OR_SHARED = (3, 5, 7, 9), ("circle", "square"), ("free", "shared")
each_grid = pytest.mark.parametrize(("size", "path"), list(product(SIZES, PATHS)))
each_taps = pytest.mark.parametrize("taps", FREE_OR_SHARED)

GRID = np.arange(720) * (2 * np.pi / 720)


def slices_with_angles(size: int, path: str, taps: str) -> Tensor:
    """Line segments in float64: random, on kinks and around them, with tiny outer weights, and zero. (n, k, k)"""
    count = 150
    eighths = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    near = torch.cat([eighths + shift for shift in (0, 1e-6, -1e-6, 1e-5, -1e-5, 1e-4, -1e-4, 1e-3, -1e-3)])
    on_grid = torch.from_numpy(GRID[::31])
    angle = torch.cat([torch.rand(count, dtype=torch.float64) * 2 * torch.pi, near, on_grid])
    weight = torch.randn(len(angle), size if taps == "free" else 1, dtype=torch.float64)
    if taps == "free":
        weight[: count // 5, size // 2] *= 1000  # a large center and tiny ends
        weight[count // 5 : count // 4, 0] = 0  # one end missing
        weight[count // 4 : count // 3, : size // 2] = weight[count // 4 : count // 3, size // 2 + 1 :].flip(-1)
    weight[count // 3] = 0
    weight[count // 3 + 1] *= 1e-8
    weight[count // 3 + 2] *= 1e8
    return torch.from_numpy(reference.line_kernel(weight.numpy(), angle.numpy(), size, path))


def rebuilt(fit: LineFit, size: int, path: str) -> Tensor:
    """The kernels of a fit, by the twin in float64."""
    weight = fit.weight.double() if fit.profile is None else fit.weight.double() * fit.profile.double()[..., None, :]
    return torch.from_numpy(reference.line_kernel(weight.numpy(), fit.angle.double().numpy(), size, path))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)], ids=str)
@each_taps
@each_grid
def test_gives_back_line_segments(size: int, path: Any, taps: Any, dtype: torch.dtype, tolerance: float) -> None:
    kernel = slices_with_angles(size, path, taps).to(dtype)
    fit = fit_line(kernel, taps, path)
    norm = kernel.double().norm(dim=(-2, -1))
    left = (rebuilt(fit, size, path) - kernel.double()).norm(dim=(-2, -1))
    # Rounding an angle just below 2π to float32 moves the end of a 9 x 9 kernel by 1e-6 alone.
    tolerance *= max(1, size / 6)
    assert (left <= tolerance * norm).all(), f"{(left / norm).nan_to_num().max():.1e}"
    assert (fit.residual <= tolerance * norm).all()
    assert fit.profile is None
    assert {fit.weight.dtype, fit.angle.dtype, fit.residual.dtype} == {dtype}
    assert ((fit.angle >= 0) & (fit.angle <= 2 * torch.pi)).all()


@each_taps
@each_grid
@pytest.mark.parametrize("offset", [0.0, 0.37], ids=["grid", "offset grid"])
def test_is_never_above_the_best_angle_of_a_grid(size: int, path: Any, taps: Any, offset: float) -> None:
    kernel = torch.randn(200, size, size, dtype=torch.float64)
    kernel[50:100] *= torch.logspace(-3, 3, 50, dtype=torch.float64)[:, None, None]
    kernel[100:150, size // 2, size // 2] *= 100
    kernel[150:] = 0.2 * kernel[150:] + slices_with_angles(size, path, taps)[:50]
    box = None if taps == "free" else np.ones(size)
    grid = GRID + offset * GRID[1]
    best = torch.from_numpy(reference.best_residual(kernel.numpy(), grid, size, path, box))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        fit = fit_line(kernel.to(dtype), taps, path)
        norm = kernel.norm(dim=(-2, -1))
        excess = (fit.residual - best) / norm
        assert (excess <= tolerance).all(), f"{int((excess > tolerance).sum())} slices, up to {excess.max():.1e}"


@each_taps
@each_grid
def test_residual_is_the_norm_of_what_is_left(size: int, path: Any, taps: Any) -> None:
    kernel = torch.randn(4, 5, size, size, dtype=torch.float64)
    fit = fit_line(kernel, taps, path)
    left = (kernel - rebuilt(fit, size, path)).norm(dim=(-2, -1))
    torch.testing.assert_close(fit.residual, left, rtol=1e-12, atol=0)
    # ... and the weights are the best at their angle.
    for index in np.ndindex(4, 5):
        box = None if taps == "free" else np.ones(size)
        best = reference.best_residual(kernel[index][None].numpy(), fit.angle[index].view(1).numpy(), size, path, box)
        assert fit.residual[index].item() == pytest.approx(best[0], rel=1e-10)


@each_taps
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 1, 3)], ids=str)
@each_grid
def test_shapes(size: int, path: Any, shape: tuple[int, ...], taps: Any) -> None:
    kernel = torch.randn(*shape, size, size)
    fit = fit_line(kernel, taps, path)
    assert isinstance(fit, LineFit)
    assert fit.weight.shape == (*shape, size if taps == "free" else 1)
    assert fit.angle.shape == fit.residual.shape == shape
    assert fit.profile is None
    assert line_kernel(fit.weight, fit.angle, size, path).shape == kernel.shape


@each_taps
@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)], ids=str)
def test_no_slices(shape: tuple[int, ...], taps: Any) -> None:
    fit = fit_line(torch.zeros(*shape, 3, 3), taps)
    assert fit.weight.shape == (*shape, 3 if taps == "free" else 1)
    assert fit.angle.shape == fit.residual.shape == shape


@each_taps
@each_grid
def test_gives_back_angles_beside_the_grid(size: int, path: Any, taps: Any) -> None:
    """So near that the explained parts differ by less than a rounding: a grid angle is then as good as the true one."""
    shifts = torch.tensor([[-1e-8], [-1e-9], [-1e-10], [1e-10], [1e-9], [1e-8]], dtype=torch.float64)
    angle = torch.from_numpy(GRID[::45]) + shifts
    weight = torch.randn(*angle.shape, size if taps == "free" else 1, dtype=torch.float64)
    kernel = torch.from_numpy(reference.line_kernel(weight.numpy(), angle.numpy(), size, path))
    residual = fit_line(kernel, taps, path).residual
    assert (residual <= 1e-8 * size * kernel.norm(dim=(-2, -1))).all()


def test_rotate4_and_rotate2_by_hand() -> None:
    kernel = torch.tensor([[0.0, 3, 0], [0, 2, 0], [0, 1, 0]])  # 90°: the tap t = 1 on top
    fit = fit_line(kernel)
    weight, angle = fit.weight.tolist(), fit.angle.item()
    assert angle == pytest.approx(math.pi / 2, abs=1e-6)
    assert weight == pytest.approx([1, 2, 3], abs=1e-5)
    fit = fit_line(kernel, "shared")
    assert fit.angle.item() == pytest.approx(math.pi / 2, abs=1e-6)
    assert fit.weight.tolist() == pytest.approx([2], abs=1e-5)
    assert fit.residual.item() == pytest.approx(math.sqrt(2), abs=1e-5)


def test_zero_slices() -> None:
    fit = fit_line(torch.zeros(2, 3, 3))
    assert fit.weight.abs().max() == 0
    assert fit.residual.abs().max() == 0
    assert fit.angle.isfinite().all()


@each_taps
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_half_precision(path: Any, dtype: torch.dtype, taps: Any) -> None:
    weight, angle = torch.randn(200, 3 if taps == "free" else 1), torch.rand(200) * 6
    kernel = line_kernel(weight, angle, 3, path).to(dtype)
    fit = fit_line(kernel, taps, path)
    assert {fit.weight.dtype, fit.angle.dtype, fit.residual.dtype} == {dtype}
    left = (rebuilt(fit, 3, path) - kernel.double()).norm(dim=(-2, -1))
    assert (left <= 10 * TOLERANCE[dtype] * kernel.double().norm(dim=(-2, -1))).all()


@pytest.mark.parametrize("taps", ["free", "shared", "profile"])
@pytest.mark.parametrize("angle_groups", [None, 2])
def test_does_not_depend_on_the_chunks(taps: Any, angle_groups: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = torch.randn(4, 7, 5, 5, dtype=torch.float64)
    whole = fit_line(kernel, taps, angle_groups=angle_groups)
    calls: list[int] = []
    split = torch.Tensor.split

    def counted(tensor: Tensor, rows: int, dim: int = 0) -> Any:
        parts = split(tensor, rows, dim)
        calls.append(len(parts))
        return parts

    monkeypatch.setattr(torch.Tensor, "split", counted)
    monkeypatch.setattr(fit_search, "_CHUNK", 4000)
    parts = fit_line(kernel, taps, angle_groups=angle_groups)
    assert max(calls) > 1
    for name, found in parts._asdict().items():
        if (expected := getattr(whole, name)) is not None:
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[int] = []
    in_chunks = fit_search.in_chunks

    def watched(function: Any, numbers: int, *tensors: Tensor) -> Any:
        def part(*parts: Tensor) -> Any:
            largest.append(len(parts[0]) * numbers)
            return function(*parts)

        return in_chunks(part, numbers, *tensors)

    monkeypatch.setattr(fit_search, "in_chunks", watched)
    monkeypatch.setattr("rotateconv.kernels.fit.in_chunks", watched)
    fit_line(torch.randn(4000, 3, 3))
    assert len(largest) > 2
    assert max(largest) <= fit_search._CHUNK


def test_leaves_its_input_and_its_graph() -> None:
    kernel = torch.randn(5, 3, 3, requires_grad=True)
    before = kernel.detach().clone()
    fit = fit_line(kernel)
    assert torch.equal(kernel, before)
    assert not any(part.requires_grad for part in (fit.weight, fit.angle, fit.residual))
    strided = torch.randn(3, 3, 10).permute(2, 0, 1)
    torch.testing.assert_close(fit_line(strided).residual, fit_line(strided.contiguous()).residual)


@pytest.mark.parametrize("kernel", [torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.bool)], ids=str)
def test_integers(kernel: Tensor) -> None:
    with pytest.raises(TypeError, match=f"kernel must be a floating-point tensor, got {kernel.dtype}"):
        fit_line(kernel)


def test_no_tensor() -> None:
    with pytest.raises(TypeError, match="kernel must be a floating-point tensor, got ndarray"):
        fit_line(np.zeros((3, 3)))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(value: float) -> None:
    kernel = torch.randn(2, 3, 3)
    kernel[0, 1] = value
    with pytest.raises(ValueError, match="kernel must be finite, got 3 NaN or infinite values"):
        fit_line(kernel)


@pytest.mark.parametrize("shape", [(3,), (), (3, 5), (2, 3, 3, 5)], ids=str)
def test_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"kernel must have the shape \(..., k, k\), got \("):
        fit_line(torch.zeros(shape))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_even_or_small(size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size must be an odd integer >= 3, got {size}"):
        fit_line(torch.zeros(2, size, size))


def test_unknown_forms() -> None:
    with pytest.raises(ValueError, match="taps must be one of 'free', 'shared', 'profile', got 'rotate4'"):
        fit_line(torch.zeros(3, 3), "rotate4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="path must be one of 'circle', 'square', got 'ellipse'"):
        fit_line(torch.zeros(3, 3), path="ellipse")  # type: ignore[arg-type]


SHARING = [(taps, groups) for taps in ("free", "shared", "profile") for groups in (None, 2)]


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, -73), (torch.float32, 63), (torch.float32, 120), (torch.float64, -600), (torch.float64, 500)],
)
@pytest.mark.parametrize("path", ["circle", "square"])
@pytest.mark.parametrize(("taps", "groups"), SHARING)
def test_a_fit_knows_no_unit(taps: Any, groups: int | None, path: Any, dtype: torch.dtype, exponent: int) -> None:
    kernel = torch.randn(4, 6, 3, 3, dtype=dtype)
    fit, scaled = (fit_line(k, taps, path, angle_groups=groups) for k in (kernel, kernel * 2.0**exponent))
    assert torch.equal(scaled.angle, fit.angle)
    assert torch.equal(scaled.weight, fit.weight * 2.0**exponent)
    assert torch.equal(scaled.residual, fit.residual * 2.0**exponent)
    assert scaled.residual.isfinite().all()
    assert (scaled.residual > 0).all()
    if fit.profile is not None:
        assert torch.equal(scaled.profile, fit.profile)


@pytest.mark.parametrize("taps", ["free", "shared"])
def test_a_tiny_slice_beside_a_huge_one_is_fitted_as_well(taps: Any) -> None:
    kernel = torch.randn(3, 3, 3)
    sizes = torch.tensor([2.0**-80, 1.0, 2.0**60])
    fit, scaled = fit_line(kernel, taps), fit_line(kernel * sizes[:, None, None], taps)
    assert torch.equal(scaled.angle, fit.angle)
    assert torch.equal(scaled.residual, fit.residual * sizes)


def test_numbers_below_the_normal_ones_are_fitted() -> None:
    fit = fit_line(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]) * 1e-44)
    assert fit.angle % torch.pi == 0
    assert fit.residual == 0


@pytest.mark.parametrize("shape", [(0, 6), (4, 0), (0, 0)])
@pytest.mark.parametrize(("taps", "groups"), SHARING)
def test_a_fit_of_no_slices(taps: Any, groups: int | None, shape: tuple[int, int]) -> None:
    fit = fit_line(torch.zeros(*shape, 3, 3), taps, angle_groups=groups)
    out, inputs = shape
    assert fit.weight.shape == (*shape, 3 if taps == "free" else 1)
    assert fit.angle.shape == ((out if groups is None else groups), inputs)
    assert fit.residual.shape == shape
    if taps == "profile":
        assert fit.profile is not None
        assert fit.profile.shape == ((out, 3) if groups is None else (groups, inputs, 3))
        assert fit.profile.isfinite().all()
    else:
        assert fit.profile is None
