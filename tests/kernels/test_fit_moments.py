"""Laws of the fit to second moments: the error falls, to what a search of everything finds, and to 0 where it can."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rotateconv import fit_line, line_kernel
from rotateconv.kernels.fit_moments import Moments, SegmentFit, fit_moments
from rotateconv.kernels.line import unit_profile

FORMS = [("free", None), ("shared", None), ("profile", None), ("free", 2), ("shared", 2), ("profile", 2)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(kernel: Tensor, size: int, seed: int = 1, positions: int = 400) -> tuple[Moments, Tensor]:
    """Of correlated patches and the outputs of a kernel (out, in, k, k) on them; and E y²."""
    n = kernel[0].numel()
    x = draw(positions, n, seed=seed) @ (torch.eye(n, dtype=torch.float64) + 0.5 * draw(n, n, seed=seed + 1) / n**0.5)
    y = x @ kernel.flatten(1).T
    return Moments(x.T @ x / positions, y.T @ x / positions), y.square().mean(0).sum()


def dense(fit: SegmentFit, taps: str, path: Any, size: int, groups: int | None) -> Tensor:
    """The kernel (out, in, k, k) of the parameters, written independently of the layer."""
    out, inputs = fit.weight.shape[:2]
    kernel = torch.zeros(out, inputs, size, size, dtype=torch.float64)
    for o in range(out):
        row = o if groups is None else o * groups // out
        for i in range(inputs):
            weight = fit.weight[o, i].expand(size) if taps == "shared" else fit.weight[o, i]
            if fit.profile is not None:
                weight = fit.weight[o, i] * (fit.profile[row] if groups is None else fit.profile[row, i])
            kernel[o, i] = line_kernel(weight, fit.angle[row, i], size, path)
    return kernel


def error(kernel: Tensor, moments: Moments, squares: Tensor) -> float:
    rows = kernel.flatten(1)
    return (squares - 2 * (rows * moments.outputs).sum() + ((rows @ moments.inputs) * rows).sum()).item()


def nearest(kernel: Tensor, taps: Any, path: Any, groups: int | None) -> SegmentFit:
    found = fit_line(kernel, taps, path, angle_groups=groups)
    return SegmentFit(found.weight, found.angle, found.profile)


@pytest.mark.parametrize("path", ["circle", "square"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(("taps", "groups"), FORMS)
def test_every_pass_lowers_the_error(taps: Any, groups: int | None, size: int, path: Any) -> None:
    kernel = draw(4, 3, size, size)
    moments, squares = moments_of(kernel, size)
    fits = [nearest(kernel, taps, path, groups)]
    for _ in range(4):
        fits.append(fit_moments(moments, fits[-1], taps, size, path, groups=groups, passes=1))
    errors = [error(dense(fit, taps, path, size, groups), moments, squares) for fit in fits]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.97 * errors[0]


@pytest.mark.parametrize(("taps", "groups"), FORMS)
def test_segments_of_the_form_are_found_again(taps: Any, groups: int | None) -> None:
    """From another start, where the outputs are those of line segments at angles that are tried."""
    rows = (4, 3) if groups is None else (groups, 3)
    angle = torch.randint(0, 360, rows, generator=torch.Generator().manual_seed(3)) * (math.pi / 180)
    profile = None
    if taps == "profile":
        profile = unit_profile(draw(*(rows[:1] if groups is None else rows), 3, seed=4), 3)
    truth = SegmentFit(draw(4, 3, 3 if taps == "free" else 1, seed=5), angle, profile)
    kernel = dense(truth, taps, "circle", 3, groups)
    moments, squares = moments_of(kernel, 3)
    start = nearest(kernel + 0.3 * draw(4, 3, 3, 3, seed=6), taps, "circle", groups)
    found = fit_moments(moments, start, taps, 3, "circle", groups=groups, passes=60)
    assert error(dense(found, taps, "circle", 3, groups), moments, squares) < 1e-3 * squares


@pytest.mark.parametrize("taps", ["free", "shared"])
def test_one_slice_is_as_good_as_a_search_of_everything(taps: Any) -> None:
    kernel = draw(1, 1, 3, 3)
    moments, squares = moments_of(kernel, 3)
    fit = fit_moments(moments, nearest(kernel, taps, "circle", None), taps, 3, "circle", passes=1)
    best = math.inf
    for degree in range(360):
        angle = torch.tensor(math.radians(degree), dtype=torch.float64)
        basis = line_kernel(torch.eye(3, dtype=torch.float64), angle.expand(3)).flatten(1)
        basis = basis if taps == "free" else basis.sum(0, keepdim=True)
        weight = torch.linalg.solve(basis @ moments.inputs @ basis.T, basis @ moments.outputs[0])
        best = min(best, (squares - weight @ (basis @ moments.outputs[0])).item())
    assert error(dense(fit, taps, "circle", 3, None), moments, squares) <= best + 1e-9


def test_white_inputs_make_it_the_fit_of_the_kernel() -> None:
    kernel = draw(4, 3, 3, 3)
    moments = Moments(torch.eye(27, dtype=torch.float64), kernel.flatten(1))
    start = nearest(kernel, "free", "circle", None)
    fit = fit_moments(moments, start, "free", 3, "circle", passes=2)
    torch.testing.assert_close(dense(fit, "free", "circle", 3, None), dense(start, "free", "circle", 3, None))
