"""The fast kernel against the plain one: values and gradients, in every form, dtype, layout and transform."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from rotateconv.kernels import fused, fused_tensors
from rotateconv.kernels.fused import fused_line_kernel
from rotateconv.kernels.line import line_kernel

pytestmark = pytest.mark.usefixtures("each_kernel_form")


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """No test takes from another one's count of compilations."""
    torch._dynamo.reset()


PATHS = ("circle", "square")
SIZES = (3, 5, 7, 9)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

each_case = pytest.mark.parametrize(
    ("size", "path", "taps"), [(s, p, t) for s, p in product(SIZES, PATHS) for t in (s, 1)]
)


def inputs(shape: tuple[int, ...], taps: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Weights and angles over more than a turn."""
    weight = torch.randn(*shape, taps, dtype=dtype).requires_grad_()
    return weight, (4 * torch.randn(shape, dtype=dtype)).requires_grad_()


def gradients(kernel: Tensor, weight: Tensor, angle: Tensor) -> tuple[Tensor, ...]:
    """Those of weight and angle, from a fixed gradient of the kernel that lies in memory in another order."""
    seed = torch.Generator().manual_seed(1)
    grad = torch.randn((*kernel.shape[-2:], *kernel.shape[:-2]), generator=seed, dtype=torch.float64)
    return torch.autograd.grad(kernel, (weight, angle), grad.movedim((0, 1), (-2, -1)).to(kernel.dtype))


def assert_equal_to_plain(
    weight: Tensor, angle: Tensor, size: int, path: Any, function: Callable[..., Tensor] = fused_line_kernel
) -> None:
    """Values and gradients agree elementwise, at the tolerance of the dtype times the size of the numbers."""
    expected, found = line_kernel(weight, angle, size, path), function(weight, angle, size, path)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    for mine, other in zip(gradients(found, weight, angle), gradients(expected, weight, angle), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@each_case
def test_equals_the_plain_form(size: int, path: str, taps: int, dtype: torch.dtype) -> None:
    for shape in ((), (5,), (7, 3), (2, 3, 4)):
        assert_equal_to_plain(*inputs(shape, taps, dtype), size, path)


@pytest.mark.parametrize("part", [1, 6, 7, 12, 10**9])
@pytest.mark.parametrize("taps", [3, 1])
def test_parts_join_without_a_seam(monkeypatch: pytest.MonkeyPatch, part: int, taps: int) -> None:
    for shape in ((13,), (7, 3), (5, 2, 3), (1, 9), (0, 3)):
        monkeypatch.setattr(fused_tensors, "_PART", part)
        weight, angle = inputs(shape, taps)
        parts = fused_tensors._parts(angle)
        assert sum(len(angle[p].reshape(-1)) for p in parts) == angle.numel()
        assert len(parts) == 1 or max(angle[p].numel() for p in parts) <= max(part, angle[0].numel())
        if angle.numel():
            assert_equal_to_plain(weight, angle, 3, "circle")
        else:
            assert fused_line_kernel(weight, angle).shape == (*shape, 3, 3)


@each_case
def test_on_the_kinks(size: int, path: str, taps: int) -> None:
    """Where a tap lies on a grid line, both forms give the mean of the one-sided derivatives."""
    angle = (torch.arange(-8, 9, dtype=torch.float64) * torch.pi / 4).requires_grad_()
    weight = torch.randn(17, taps, dtype=torch.float64, requires_grad=True)
    assert_equal_to_plain(weight, angle, size, path)
    zero = torch.zeros(17, dtype=torch.float64, requires_grad=True)  # on the lines exactly, not to rounding
    assert_equal_to_plain(weight, zero, size, path)
    assert_equal_to_plain(weight.detach().float().requires_grad_(), zero.detach().float().requires_grad_(), size, path)


@each_case
def test_non_contiguous_inputs(size: int, path: str, taps: int) -> None:
    weight = torch.randn(taps, 6, 10, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert_equal_to_plain(weight[:, :, ::2].permute(2, 1, 0), angle, size, path)
    assert_equal_to_plain(weight[:, :5, :6].permute(1, 2, 0), angle.flip(0)[:, :], size, path)
    few = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert_equal_to_plain(weight[:, :, :5].permute(2, 1, 0), few.expand(5, 6), size, path)


@pytest.mark.parametrize("taps", [3, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype, taps: int) -> None:
    weight, angle = inputs((6, 5), taps, torch.float32)
    exact = line_kernel(weight, angle)
    kernel = fused_line_kernel(weight, angle, dtype=dtype)
    assert torch.equal(kernel, fused_line_kernel(weight, angle).to(dtype))
    assert (kernel.float() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    grad = torch.randn_like(kernel)
    expected = torch.autograd.grad(exact, (weight, angle), grad.float())
    for mine, other in zip(torch.autograd.grad(kernel, (weight, angle), grad), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * other.abs().max().item())
    # Parameters in half precision are computed with in float32.
    weight, angle = (tensor.detach().to(dtype).requires_grad_() for tensor in (weight, angle))
    kernel = fused_line_kernel(weight, angle)
    exact = line_kernel(weight.float(), angle.float())
    assert kernel.dtype == dtype
    assert (kernel.float() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    found = torch.autograd.grad(kernel, (weight, angle), grad)
    expected = torch.autograd.grad(line_kernel(weight, angle), (weight, angle), grad)
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert (mine - other).abs().max() <= 2 * torch.finfo(dtype).eps * other.abs().max()


def test_dtype_of_the_result() -> None:
    for weight_dtype, angle_dtype in product((torch.bfloat16, torch.float32, torch.float64), repeat=2):
        weight, angle = torch.randn(4, 3, dtype=weight_dtype), torch.randn(4, dtype=angle_dtype)
        assert fused_line_kernel(weight, angle).dtype == torch.promote_types(weight_dtype, angle_dtype)
        assert fused_line_kernel(weight, angle, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("taps", [5, 1])
def test_channels_last_is_only_an_order_in_memory(taps: int) -> None:
    weight, angle = inputs((4, 6), taps)
    plain, ordered = (fused_line_kernel(weight, angle, 5, channels_last=last) for last in (False, True))
    assert plain.is_contiguous()
    assert ordered.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, ordered)
    for mine, other in zip(gradients(ordered, weight, angle), gradients(plain, weight, angle), strict=True):
        assert torch.equal(mine, other)
    assert fused_line_kernel(weight[0], angle[0], 5, channels_last=True).is_contiguous()  # of one dimension only


def test_angle_grad_scale_scales_one_gradient() -> None:
    weight, angle = inputs((4, 6), 3)
    exact = gradients(line_kernel(weight, angle), weight, angle)
    kernel = fused_line_kernel(weight, angle, angle_grad_scale=7.5)
    assert torch.equal(kernel, fused_line_kernel(weight, angle))
    found = gradients(kernel, weight, angle)
    torch.testing.assert_close(found[0], exact[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], 7.5 * exact[1], rtol=0, atol=1e-10)
    compiled = torch.compile(fused_line_kernel, fullgraph=True, backend="aot_eager")
    again = gradients(compiled(weight, angle, angle_grad_scale=7.5), weight, angle)
    torch.testing.assert_close(again[1], found[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shared", [False, True])
def test_derivatives_are_those_of_the_values(size: int, path: str, shared: bool) -> None:
    weight = torch.randn(2, 3, 1 if shared else size, dtype=torch.float64, requires_grad=True)
    # Away from the grid lines, where the derivative jumps.
    angle = torch.tensor([[0.2, 0.9, 2.0], [-0.3, 4.1, -2.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, a: fused_line_kernel(w, a, size, path), (weight, angle))
    assert torch.autograd.gradgradcheck(lambda w, a: fused_line_kernel(w, a, size, path), (weight, angle))


@pytest.mark.parametrize("taps", [3, 1])
def test_vmap(taps: int) -> None:
    weight, angle = inputs((4, 5, 6), taps)
    expected = line_kernel(weight, angle)
    for dim in (0, 1, 2):
        mapped = torch.vmap(fused_line_kernel, in_dims=(dim, dim), out_dims=dim)(weight, angle)
        torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-12)
    one = torch.vmap(fused_line_kernel, in_dims=(None, 0))(weight[0], angle)
    torch.testing.assert_close(one, line_kernel(weight[0].expand_as(weight), angle), rtol=0, atol=1e-12)
    one = torch.vmap(fused_line_kernel, in_dims=(0, None))(weight, angle[0])
    torch.testing.assert_close(one, line_kernel(weight, angle[0].expand_as(angle)), rtol=0, atol=1e-12)


def test_jacobians() -> None:
    weight, angle = (tensor.detach() for tensor in inputs((2, 2), 3))

    def both(transform: Callable[..., Any]) -> tuple[Any, Any]:
        return tuple(transform(function)(weight, angle) for function in (fused_line_kernel, line_kernel))

    found, expected = both(lambda f: torch.func.jacrev(f, argnums=(0, 1)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    arguments = (weight, angle)
    batched = torch.autograd.functional.jacobian(fused_line_kernel, arguments, vectorize=True)
    torch.testing.assert_close(batched, torch.func.jacrev(line_kernel, argnums=(0, 1))(*arguments), rtol=0, atol=1e-10)

    def twice(function: Callable[..., Tensor]) -> Callable[..., Any]:
        def norm(weight: Tensor, angle: Tensor) -> Tensor:
            return function(weight, angle).square().sum()

        return torch.func.jacrev(torch.func.jacrev(norm, argnums=(0, 1)), argnums=(0, 1))

    found, expected = both(twice)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("taps", [3, 1])
def test_compiles_as_one_graph(taps: int, channels_last: bool) -> None:
    weight, angle = inputs((4, 6), taps, torch.float32)
    compiled = torch.compile(fused_line_kernel, fullgraph=True, backend="aot_eager")
    kernel = compiled(weight, angle, channels_last=channels_last, dtype=torch.bfloat16)
    assert kernel.dtype == torch.bfloat16
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert kernel.is_contiguous(memory_format=layout)
    assert_equal_to_plain(weight, angle, 3, "circle", compiled)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("taps", [3, 1])
def test_compiled_closed_form(taps: int, shape: tuple[int, ...]) -> None:
    """Values and gradients, on the kinks too, of what the compiler is given for 3 x 3 on the circle."""
    weight, _ = inputs(shape, taps)
    angle = (torch.arange(weight[..., 0].numel()).double().view(shape) * torch.pi / 4).requires_grad_()
    compiled = torch.compile(fused_line_kernel, fullgraph=True, backend="aot_eager", dynamic=False)
    if weight.numel():
        assert_equal_to_plain(weight, angle, 3, "circle", compiled)
    assert compiled(weight, angle).shape == (*shape, 3, 3)


def test_the_compiler_is_given_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "line_kernel", lambda *arguments: pytest.fail("the reference was traced"))
    weight, angle = inputs((4, 6), 3)
    torch._dynamo.reset()
    torch.compile(fused_line_kernel, fullgraph=True, backend="aot_eager")(weight, angle).sum().backward()


def test_transforms_and_exports_are_given_the_plain_form() -> None:
    weight, angle = inputs((4, 6), 3)
    expected = line_kernel(weight, angle)
    mapped = torch.compile(torch.vmap(fused_line_kernel), backend="aot_eager")
    torch.testing.assert_close(mapped(weight, angle), expected, rtol=0, atol=1e-12)
    tilted = torch.compile(
        torch.func.grad(lambda a: fused_line_kernel(weight.detach(), a).square().sum()), backend="eager"
    )
    wanted = torch.autograd.grad(expected.square().sum(), angle)[0]
    torch.testing.assert_close(tilted(angle.detach()), wanted, rtol=0, atol=1e-10)

    class Layer(torch.nn.Module):
        def forward(self, weight: Tensor, angle: Tensor) -> Tensor:
            return fused_line_kernel(weight, angle)

    program = torch.export.export(Layer(), (weight.detach(), angle.detach()))
    torch.testing.assert_close(program.module()(weight.detach(), angle.detach()), expected.detach(), rtol=0, atol=1e-12)
    assert not [node for node in program.graph.nodes if "autograd" in str(node.target)]


def test_only_the_inputs_are_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []
    weight, angle = inputs((4, 6), 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        fused_line_kernel(weight, angle)
    assert {tensor.data_ptr() for tensor in kept} == {weight.data_ptr(), angle.data_ptr()}


def test_mistakes_are_those_of_the_plain_form() -> None:
    weight, angle = torch.randn(4, 3), torch.randn(4)
    with pytest.raises(ValueError, match="kernel_size must be an odd integer >= 3, got 4"):
        fused_line_kernel(weight, angle, 4)
    with pytest.raises(ValueError, match="weight must end in 5 taps"):
        fused_line_kernel(weight, angle, 5)
    with pytest.raises(ValueError, match="angle must have the shape of weight"):
        fused_line_kernel(weight, angle[:2])
    with pytest.raises(ValueError, match="path must be one of 'circle', 'square', got 'line'"):
        fused_line_kernel(weight, angle, 3, "line")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="angle must be a floating-point tensor"):
        fused_line_kernel(weight, angle.long())
