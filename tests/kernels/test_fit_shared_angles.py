"""fit_line where slices share something: an angle in a group of output channels, a profile in a row of slices."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from rotateconv import RotateConv2d, fit_line
from rotateconv.kernels.fit_profile import _alternate
from rotateconv.kernels.line import mean_gram

SIZES, PATHS, TAPS = (3, 5, 7, 9), ("circle", "square"), ("free", "shared", "profile")
each_grid = pytest.mark.parametrize(("size", "path"), list(product(SIZES, PATHS)))
each_taps = pytest.mark.parametrize("taps", TAPS)

GRID = np.arange(720) * (2 * np.pi / 720)


def layer_with(fit: Any, taps: Any, path: Any, size: int, angle_groups: int | None) -> RotateConv2d:
    """The layer that holds a fit."""
    out, inputs = fit.weight.shape[:2]
    layer = RotateConv2d(
        inputs, out, size, bias=False, taps=taps, path=path, angle_groups=angle_groups, dtype=fit.weight.dtype
    )
    values = {"weight": fit.weight, "angle": fit.angle} | ({} if fit.profile is None else {"profile": fit.profile})
    layer.load_state_dict(values, strict=True)
    return layer


def best_shared_residual(bundle: np.ndarray, size: int, path: str, taps: str) -> float:
    """The least ‖X - W·S(θ)‖ over a grid of angles, for slices X (n, cell) that share θ (and their profile)."""
    best = np.inf
    for basis in reference.splats(GRID, size, path).reshape(len(GRID), size, -1):
        vectors = basis.sum(0, keepdims=True) if taps == "shared" else basis
        orthonormal = np.linalg.svd(vectors, full_matrices=False)[2]
        explained = np.linalg.svd(bundle @ orthonormal.T, compute_uv=False) ** 2
        best = min(best, (bundle**2).sum() - (explained[0] if taps == "profile" else explained.sum()))
    return float(np.sqrt(max(best, 0)))


@each_taps
@each_grid
def test_gives_back_groups_that_share_angles(size: int, path: Any, taps: Any) -> None:
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        layer = RotateConv2d(12, 8, size, taps=taps, path=path, angle_groups=2, dtype=dtype)
        with torch.no_grad():  # on kinks too
            layer.angle[:, :8] = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
            layer.weight[:4, 8] = 0
        kernel = layer.kernel().detach()
        fit = fit_line(kernel, taps, path, angle_groups=2)
        assert fit.weight.shape == layer.weight.shape
        assert fit.angle.shape == layer.angle.shape
        assert fit.residual.shape == (8, 12)
        assert (fit.profile is None) == (layer.profile is None)
        norm = kernel.norm()
        left = (layer_with(fit, taps, path, size, 2).kernel() - kernel).norm()
        assert left <= 2 * tolerance * norm, f"{left / norm:.1e}"
        assert fit.residual.norm() <= 2 * tolerance * norm


@each_taps
@pytest.mark.parametrize(("size", "path"), [(3, "circle"), (3, "square"), (5, "circle"), (7, "square")])
def test_groups_are_never_above_the_best_angle_of_a_grid(size: int, path: Any, taps: Any) -> None:
    kernel = torch.randn(6, 4, size, size, dtype=torch.float64)
    fit = fit_line(kernel, taps, path, angle_groups=2)
    bundles = kernel.view(2, 3, 4, -1).transpose(1, 2).numpy()  # [group, in, out of the group, cell]
    for group, i in np.ndindex(2, 4):
        found = fit.residual[3 * group : 3 * group + 3, i].norm().item()
        assert found <= best_shared_residual(bundles[group, i], size, path, taps) * (1 + 1e-9)
    left = (layer_with(fit, taps, path, size, 2).kernel() - kernel).norm(dim=(-2, -1))
    torch.testing.assert_close(fit.residual, left, rtol=1e-9, atol=1e-12)


def alternated(rows: Tensor, profile: np.ndarray, size: int, path: str, turns: int = 10) -> float:
    """A plain fit of one row (in, k, k): the best angle of a grid for a profile, the best profile for the angles."""
    cells = rows.numpy().reshape(len(rows), -1)
    basis = reference.splats(GRID[::4], size, path).reshape(-1, size, size * size)
    for _ in range(turns):
        lines = profile @ basis  # [angle, cell]
        share = cells @ lines.T / np.linalg.norm(lines, axis=1)
        index = np.abs(share).argmax(1)
        weight = share[np.arange(len(cells)), index] / np.linalg.norm(lines[index], axis=1)
        design = (weight[:, None, None] * basis[index]).transpose(0, 2, 1).reshape(-1, size)
        profile = np.linalg.lstsq(design, cells.reshape(-1), rcond=None)[0]
    lines = profile @ basis
    share = cells @ lines.T / np.linalg.norm(lines, axis=1)
    return float(np.sqrt(max(0, (cells**2).sum() - (share**2).max(1).sum())))


@each_grid
def test_gives_back_rows_that_share_a_profile(size: int, path: Any) -> None:
    layer = RotateConv2d(16, 12, size, taps="profile", path=path, dtype=torch.float64)
    kernel = layer.kernel().detach()
    fit = fit_line(kernel, "profile", path)
    assert fit.profile is not None
    assert [fit.weight.shape, fit.angle.shape, fit.profile.shape] == [(12, 16, 1), (12, 16), (12, size)]
    left = (layer_with(fit, "profile", path, size, None).kernel() - kernel).flatten(1).norm(dim=1)
    share = left / kernel.flatten(1).norm(dim=1)
    assert (share <= 1e-6).all(), f"{int((share > 1e-6).sum())} of 12 rows, up to {share.max():.1e}"
    torch.testing.assert_close(fit.residual.norm(dim=1), left, rtol=1e-6, atol=1e-9)


@each_grid
def test_rows_are_never_worse_than_plain_alternation(size: int, path: Any) -> None:
    kernel = torch.randn(4, 10, size, size, dtype=torch.float64)
    kernel[2:] = 0.3 * kernel[2:] + RotateConv2d(10, 2, size, taps="profile", path=path).kernel().detach().double()
    residual = fit_line(kernel, "profile", path).residual.norm(dim=1)
    starts = [np.ones(size), np.arange(size) - size // 2 + 0.1, np.eye(size)[0]]
    for row, found in zip(kernel, residual, strict=True):
        plain = [alternated(row, start, size, path) for start in starts]
        assert found.item() <= min(plain) * 1.01, plain


@each_taps
@pytest.mark.parametrize("angle_groups", [None, 2])
@each_grid
def test_profiles_have_norm_one_over_a_turn(size: int, path: Any, angle_groups: int | None, taps: Any) -> None:
    fit = fit_line(torch.randn(4, 3, size, size), taps, path, angle_groups=angle_groups)
    if taps != "profile":
        assert fit.profile is None
        return
    assert fit.profile is not None
    norms = torch.einsum("...s,st,...t->...", fit.profile, mean_gram(size, path).float(), fit.profile)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-5, atol=0)


def test_rows_of_more_dimensions_and_of_zeros() -> None:
    kernel = torch.randn(2, 3, 4, 3, 3)
    kernel[1, 2] = 0
    fit = fit_line(kernel, "profile")
    assert fit.profile is not None
    assert [fit.weight.shape, fit.angle.shape, fit.profile.shape] == [(2, 3, 4, 1), (2, 3, 4), (2, 3, 3)]
    assert fit.residual.shape == (2, 3, 4)
    assert fit.weight[1, 2].abs().max() == 0
    assert fit.profile.isfinite().all()
    one = fit_line(kernel[0, 0], "profile")
    assert one.profile is not None
    assert one.profile.shape == (3,)
    torch.testing.assert_close(one.residual, fit.residual[0, 0], rtol=1e-4, atol=1e-5)


@each_grid
def test_a_turn_solves_for_the_profile_at_the_best_angles(size: int, path: Any) -> None:
    basis = torch.from_numpy(reference.splats(GRID[::15], size, path).reshape(-1, size, size * size))
    rows, profile = torch.randn(3, 8, size * size, dtype=torch.float64), torch.randn(3, size, dtype=torch.float64)
    _, index, explained = _alternate(rows, profile, basis, turns=0)
    turned, _, _ = _alternate(rows, profile, basis, turns=1)
    for row, start, found, places, most in zip(rows, profile, turned, index, explained, strict=True):
        lines = start @ basis  # [angle, cell]
        share = row @ (lines / lines.norm(dim=1, keepdim=True)).T  # [slice, angle]
        assert torch.equal(share.abs().argmax(1), places)
        assert share.abs().amax(1).square().sum().item() == pytest.approx(most.item())
        weight = (row * lines[places]).sum(1) / lines[places].square().sum(1)
        design = (weight[:, None, None] * basis[places]).transpose(1, 2).reshape(-1, size)
        torch.testing.assert_close(found, torch.linalg.lstsq(design, row.reshape(-1, 1)).solution[:, 0])


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18])
def test_rows_of_tiny_and_of_huge_weights(scale: float) -> None:
    """Their squares are beyond float32; dead channels of trained models are as small."""
    layer = RotateConv2d(16, 6, taps="profile")
    kernel = layer.kernel().detach() * scale
    left = fit_line(kernel, "profile").residual.double().norm(dim=1) / kernel.double().flatten(1).norm(dim=1)
    assert (left <= 1e-6).all(), f"{left.max():.1e}"


@pytest.mark.parametrize("shape", [(3, 3), (4, 3, 3), (2, 4, 2, 3, 3)], ids=str)
def test_groups_need_four_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"angle_groups needs a kernel of shape \(out, in, k, k\), got \("):
        fit_line(torch.zeros(shape), angle_groups=2)


@pytest.mark.parametrize("angle_groups", [0, -1, 3])
def test_groups_that_do_not_divide(angle_groups: int) -> None:
    with pytest.raises(ValueError, match=f"must be divisible by angle_groups, got 4 and {angle_groups}"):
        fit_line(torch.zeros(4, 2, 3, 3), angle_groups=angle_groups)


def test_a_profile_needs_a_row() -> None:
    with pytest.raises(
        ValueError, match=r"taps='profile' needs a kernel of shape \(\.\.\., in, k, k\), .*got \(3, 3\)"
    ):
        fit_line(torch.zeros(3, 3), "profile")
