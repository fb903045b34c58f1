"""line_kernel: its laws at random angles, the slow twin, its derivatives, and what torch can do with it."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from laws import LAWS
from rotateconv import line_kernel
from rotateconv.kernels.line import (
    check_taps,
    mean_gram,
    tap_direction,
    tap_slopes,
    tap_splats,
    tap_velocity,
    unit_profile,
)
from tolerances import TOLERANCE, assert_close

SIZES, PATHS = (3, 5, 7, 9), ("circle", "square")
GRIDS = list(product(SIZES, PATHS))
each_grid = pytest.mark.parametrize(("size", "path"), GRIDS)
each_path = pytest.mark.parametrize("path", PATHS)

angles = st.lists(st.floats(-10, 10), min_size=1, max_size=10)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=12, deadline=None, derandomize=True)


def weights_for(angle: Tensor, taps: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*angle.shape, taps, generator=generator, dtype=torch.float64).to(angle.dtype) * 2 - 1


def smooth_angles(size: int, path: str, count: int = 4) -> Tensor:
    """Random angles at which no tap is close to a grid line."""
    angle = torch.rand(100 * count, dtype=torch.float64) * 2 * torch.pi
    smooth = angle[torch.from_numpy(reference.distance_to_kink(angle.numpy(), size, path) > 1e-3)]
    assert len(smooth) > count
    return smooth[:count]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@each_grid
def test_laws(law: Callable[..., None], size: int, path: str) -> None:
    @quick
    @given(angles, seeds)
    def holds(values: list[float], seed: int) -> None:
        for dtype, taps in product((torch.float32, torch.float64), (1, size)):
            angle = torch.tensor(values, dtype=dtype)
            law(line_kernel, weights_for(angle, taps, seed), angle, size, path)

    holds()


@each_grid
@quick
@given(values=angles, seed=seeds)
def test_equals_the_slow_twin(size: int, path: str, values: list[float], seed: int) -> None:
    angle = torch.tensor(values, dtype=torch.float64)
    splats = reference.splats(angle.numpy(), size, path)
    assert_close(tap_splats(angle, size, path), torch.from_numpy(splats))
    rows, cols = reference.tap_places(angle.numpy(), size, path)
    row, col = tap_direction(angle, path)
    assert_close(row, torch.from_numpy(rows[:, size // 2 + 1]))
    assert_close(col, torch.from_numpy(cols[:, size // 2 + 1]))
    for taps in (1, size):
        weight = weights_for(angle, taps, seed)
        expected = torch.from_numpy(reference.line_kernel(weight.numpy(), angle.numpy(), size, path))
        assert_close(line_kernel(weight, angle, size, path), expected)
        assert_close(line_kernel(weight.float(), angle.float(), size, path), expected, scale=size)


@each_grid
def test_gradcheck_and_gradgradcheck(size: int, path: str) -> None:
    angle = smooth_angles(size, path, count=2).requires_grad_()
    for taps in (1, size):
        weight = weights_for(angle, taps).requires_grad_()
        torch.autograd.gradcheck(lambda w, a: line_kernel(w, a, size, path), (weight, angle))
        torch.autograd.gradgradcheck(lambda w, a: line_kernel(w, a, size, path), (weight, angle))


@each_grid
@quick
@given(values=angles)
def test_autograd_is_the_closed_form(size: int, path: str, values: list[float]) -> None:
    angle = torch.tensor([*values, 0.0, torch.pi / 2, torch.pi / 4, -torch.pi], dtype=torch.float64)
    by_angle = torch.func.jacrev(lambda a: tap_splats(a, size, path).sum(0))(angle)  # [tap, row, col, angle]
    assert_close(tap_slopes(angle, size, path), by_angle.movedim(-1, 0), scale=size)


@each_grid
def test_closed_form_is_the_slope_of_the_slow_twin(size: int, path: str) -> None:
    angle, step = smooth_angles(size, path, count=50), 1e-5
    after, before = (reference.splats(angle.numpy() + side * step, size, path) for side in (1, -1))
    expected = torch.from_numpy((after - before) / (2 * step))
    torch.testing.assert_close(tap_slopes(angle, size, path), expected, rtol=0, atol=1e-7)


@each_grid
def test_slope_at_a_kink_is_the_mean_of_both_sides(size: int, path: str) -> None:
    step = 1e-7
    for turn in range(-4, 5):  # cos(π/2) and sin(π) are not 0 in floating point, and yet these are the kinks
        angle = torch.tensor(turn * torch.pi / 2, dtype=torch.float64)
        ahead, here, behind = (reference.splats(angle.item() + side * step, size, path) for side in (1, 0, -1))
        left, right = torch.from_numpy((here - behind) / step), torch.from_numpy((ahead - here) / step)
        assert (left - right).abs().max() > 0.5  # it is a kink
        mean = (left + right) / 2
        found = torch.func.jacrev(lambda a: tap_splats(a, size, path))(angle)
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(tap_slopes(angle, size, path), mean, rtol=0, atol=1e-5)


@each_grid
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_finite_on_every_kink(size: int, path: str, dtype: torch.dtype) -> None:
    crossings = np.arange(1, size // 2 + 1)[:, None] ** -1.0 * np.arange(size // 2 + 1)
    inverse = {"circle": np.arcsin, "square": np.arctan}[path](crossings.clip(0, 1)).flatten()
    quarter = torch.from_numpy(np.unique(np.concatenate([inverse, np.pi / 2 - inverse])))
    angle = torch.cat([quarter + turn * torch.pi / 2 for turn in range(4)]).to(dtype).requires_grad_()
    assert (reference.distance_to_kink(angle.detach().numpy(), size, path) < 1e-5).all()
    weight = weights_for(angle, size).requires_grad_()
    line_kernel(weight, angle, size, path).square().sum().backward()
    assert angle.grad is not None
    assert angle.grad.isfinite().all()
    # Half the sum of both sides is not far from either: no slope of 1/0 hides in the rounding of a kink.
    assert angle.grad.abs().max() < 20 * size
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@each_grid
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_shape_dtype_and_layout(size: int, path: str, shape: tuple[int, ...]) -> None:
    for taps, first, second in product((1, size), *[[torch.float32, torch.float64, torch.bfloat16]] * 2):
        weight, angle = torch.randn(*shape, taps, dtype=first), torch.randn(shape, dtype=second)
        kernel = line_kernel(weight, angle, size, path)
        assert kernel.shape == (*shape, size, size)
        assert kernel.dtype == torch.promote_types(first, second)
        assert kernel.is_contiguous()
        assert line_kernel(weight.to("meta"), angle.to("meta"), size, path).is_meta


def test_defaults_are_three_by_three_on_the_circle() -> None:
    weight, angle = torch.randn(4, 3), torch.randn(4)
    assert torch.equal(line_kernel(weight, angle), line_kernel(weight, angle, 3, "circle"))
    for function in (tap_direction, tap_velocity):
        assert torch.equal(torch.stack(function(angle)), torch.stack(function(angle, "circle")))
    for function in (tap_splats, tap_slopes):
        assert torch.equal(function(angle), function(angle, 3, "circle"))
    assert torch.equal(mean_gram(3), mean_gram(3, "circle"))
    assert torch.equal(unit_profile(weight, 3), unit_profile(weight, 3, "circle"))


def test_kernels_of_45_degrees_by_hand() -> None:
    half = 0.5**0.5  # the taps lie at (∓half, ±half) on the circle, in the corner on the square
    corner, side, middle = half * half, half * (1 - half), (1 - half) ** 2
    weight, angle = torch.tensor([1.0, 10.0, 100.0]), torch.tensor(torch.pi / 4)
    expected = [[0, 100 * side, 100 * corner], [side, 101 * middle + 10, 100 * side], [corner, side, 0]]
    assert_close(line_kernel(weight, angle), torch.tensor(expected), scale=100)
    expected = [[0, 0, 100], [0, 10, 0], [1, 0, 0]]
    assert_close(line_kernel(weight, angle, path="square"), torch.tensor(expected).float(), scale=100)


@each_grid
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(size: int, path: str, dtype: torch.dtype) -> None:
    angle = (torch.rand(50) * 6).to(dtype)
    weight = weights_for(angle, size)
    exact = line_kernel(weight.float(), angle.float(), size, path)
    assert torch.equal(line_kernel(weight, angle, size, path), exact.to(dtype))
    assert (exact.to(dtype).float() - exact).abs().max() < TOLERANCE[dtype]


@each_grid
def test_autocast_changes_nothing(size: int, path: str) -> None:
    angle = torch.randn(20)
    weight = weights_for(angle, size)
    expected = line_kernel(weight, angle, size, path)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(line_kernel(weight, angle, size, path), expected)


@each_grid
def test_mean_gram_is_the_mean_over_a_turn(size: int, path: str) -> None:
    splats = reference.splats((np.arange(20001) + 0.3) * (2 * np.pi / 20001), size, path)
    splats = splats.reshape(-1, size, size * size)
    expected = torch.from_numpy(np.einsum("asc,atc->st", splats, splats) / len(splats))
    gram = mean_gram(size, path)
    assert (gram.dtype, gram.device.type) == (torch.float64, "cpu")
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-5)


@each_grid
def test_mean_gram_gives_the_mean_squared_norm(size: int, path: str) -> None:
    weight = weights_for(torch.zeros(1), size)[0].double()
    angle = torch.rand(20000, dtype=torch.float64) * 2 * torch.pi
    norms = line_kernel(weight.expand(len(angle), size), angle, size, path).square().sum((-2, -1))
    expected = (weight @ mean_gram(size, path) @ weight).item()
    assert norms.mean().item() == pytest.approx(expected, rel=5 * (norms.std() / norms.mean()).item() / 20000**0.5)


@each_path
def test_mean_gram_lies_on_the_cpu_whatever_the_default_device(path: str) -> None:
    with torch.device("meta"):  # of a size that no other test has had computed already
        assert mean_gram(11, path)[5, 5].item() == pytest.approx(1)


def test_mean_gram_of_three_taps_by_hand() -> None:
    # ∫ over a quarter of (c² + (1-c)²)·(s² + (1-s)²), times 2/π, with s = sin, c = cos.
    outer = (2 / torch.pi) * (torch.pi / 2 - 2 - 2 + torch.pi - 4 / 3 - 4 / 3 + 2 + torch.pi / 4)
    assert mean_gram(3)[0, 0].item() == pytest.approx(mean_gram(3)[2, 2].item())
    assert mean_gram(3)[0, 0].item() == pytest.approx(outer, abs=1e-5)


@each_grid
def test_unit_profile_has_norm_one_over_a_turn(size: int, path: str) -> None:
    profile = torch.cat([torch.randn(5, size, dtype=torch.float64), torch.zeros(1, size)])
    unit = unit_profile(profile, size, path)
    norms = reference.line_kernel(unit[:, None].numpy(), np.linspace(0, 2 * np.pi, 5000, endpoint=False), size, path)
    torch.testing.assert_close(
        torch.from_numpy((norms**2).sum((-2, -1)).mean(1)), torch.ones(6).double(), rtol=1e-4, atol=0
    )
    assert_close(unit[:5] * (profile[:5, :1] / unit[:5, :1]), profile[:5], scale=10)  # only the size has changed
    assert_close(unit[5], unit[5, :1].expand(size))  # zeros become equal taps
    for scale in (1e-3, 1e3):
        assert_close(unit_profile(scale * profile, size, path), unit)
    for dtype in (torch.float32, torch.bfloat16):
        assert unit_profile(profile.to(dtype), size, path).dtype == dtype


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own, at the first jacfwd
@each_grid
def test_vmap_and_jacobians(size: int, path: str) -> None:
    angle = smooth_angles(size, path)
    weight = weights_for(angle, size)
    found = torch.func.vmap(lambda w, a: line_kernel(w, a, size, path))(weight, angle)
    assert torch.equal(found, line_kernel(weight, angle, size, path))
    by_weight, by_angle = torch.func.jacrev(lambda w, a: line_kernel(w, a, size, path), (0, 1))(weight[0], angle[0])
    assert_close(by_weight.movedim(-1, 0), tap_splats(angle[0], size, path))
    assert_close(by_angle, (weight[0, :, None, None] * tap_slopes(angle[0], size, path)).sum(0), scale=size)
    found = torch.func.jacfwd(lambda w, a: line_kernel(w, a, size, path), 1)(weight[0], angle[0])
    assert_close(found, by_angle, scale=size)


@each_grid
def test_one_graph_without_a_break(size: int, path: str) -> None:
    angle = smooth_angles(size, path).float()
    weight = weights_for(angle, size)
    compiled = torch.compile(line_kernel, fullgraph=True, backend="eager")
    assert torch.equal(compiled(weight, angle, size, path), line_kernel(weight, angle, size, path))


@pytest.mark.slow
def test_compiled_gradient() -> None:
    angle = smooth_angles(3, "circle").float().requires_grad_()
    weight = weights_for(angle.detach(), 3).requires_grad_()
    compiled = torch.compile(line_kernel, fullgraph=True, backend="aot_eager")
    found, expected = compiled(weight, angle), line_kernel(weight, angle)
    assert_close(found, expected)
    for got, wanted in zip(
        torch.autograd.grad(found.square().sum(), (weight, angle)),
        torch.autograd.grad(expected.square().sum(), (weight, angle)),
        strict=True,
    ):
        assert_close(got, wanted, scale=3)


@pytest.mark.parametrize("function", [line_kernel, tap_splats, tap_slopes, mean_gram, unit_profile])
@pytest.mark.parametrize("size", [-3, 0, 1, 2, 4])
def test_even_or_small_kernel_size(function: Callable[..., Tensor], size: int) -> None:
    tensors = {line_kernel: 2, mean_gram: 0}.get(function, 1)
    arguments = [torch.zeros(1, max(1, size)), torch.zeros(1)][:tensors]
    with pytest.raises(ValueError, match=rf"kernel_size must be an odd integer >= 3, got {size}"):
        function(*arguments, size)


@pytest.mark.parametrize("size", [3.0, "3", True, (3, 3), None])
def test_kernel_size_that_is_no_integer(size: object) -> None:
    with pytest.raises(TypeError, match="kernel_size must be an odd integer >= 3, got "):
        line_kernel(torch.zeros(1, 3), torch.zeros(1), size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda path: line_kernel(torch.zeros(1, 3), torch.zeros(1), 3, path),
        lambda path: tap_direction(torch.zeros(1), path),
        lambda path: tap_splats(torch.zeros(1), 3, path),
        lambda path: tap_slopes(torch.zeros(1), 3, path),
        lambda path: mean_gram(3, path),
    ],
)
def test_unknown_path(call: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="path must be one of 'circle', 'square', got 'ellipse'"):
        call("ellipse")


def test_unknown_taps() -> None:
    for taps in ("free", "shared", "profile"):
        check_taps(taps)
    with pytest.raises(ValueError, match=r"^taps must be one of 'free', 'shared', 'profile', got 'paired'$"):
        check_taps("paired")


@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (2, 0), ()], ids=str)
def test_weight_with_another_number_of_taps(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weight must end in 3 taps or in 1 shared weight, got shape \("):
        line_kernel(torch.zeros(shape), torch.zeros(2))


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1,)], ids=str)
def test_angle_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"angle must have the shape of weight without its last .*\(2,\), got \("):
        line_kernel(torch.zeros(2, 3), torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64], ids=str)
def test_tensors_that_are_not_floating_point(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"weight must be a floating-point tensor, got {dtype}"):
        line_kernel(torch.zeros(2, 3, dtype=dtype), torch.zeros(2))
    with pytest.raises(TypeError, match=f"angle must be a floating-point tensor, got {dtype}"):
        line_kernel(torch.zeros(2, 3), torch.zeros(2, dtype=dtype))


def test_numbers_that_are_no_tensors() -> None:
    with pytest.raises(TypeError, match="weight must be a floating-point tensor, got list"):
        line_kernel([1.0, 2.0, 3.0], torch.zeros(()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="angle must be a floating-point tensor, got float"):
        line_kernel(torch.zeros(3), 0.5)  # type: ignore[arg-type]
