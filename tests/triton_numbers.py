"""The Triton kernels against the reference, in Triton's interpreter or on a GPU; test_triton.py runs this file."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from kernel_forms import take_kernel_form
from rotateconv.kernels import fused, fused_tensors, fused_triton
from rotateconv.kernels.fused import fused_line_kernel
from rotateconv.kernels.line import line_kernel

NAN = float("nan")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# The interpreter takes seconds for a large kernel: all forms at the smallest, every form once among the others.
CASES: list[tuple[int, Any, int]] = [(3, path, taps) for path, taps in product(("circle", "square"), (3, 1))]
CASES += [(5, "circle", 5), (5, "square", 1), (7, "square", 7), (9, "circle", 1)]

pytestmark = pytest.mark.usefixtures("triton_device")
each_case = pytest.mark.parametrize(("size", "path", "taps"), CASES)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the tensors of a CPU to the Triton kernels."""
    monkeypatch.setattr(fused, "_on_gpu", lambda angle: True)
    monkeypatch.setattr(fused_tensors, "_backward", poisoned)
    take_kernel_form("tensor operations", monkeypatch)


def poisoned(*arguments: Any) -> Tensor:
    """What a fallback that nobody noticed would return."""
    raise AssertionError("the form in torch operations was used")


def inputs(shape: tuple[int, ...], taps: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    weight = torch.randn(*shape, taps, dtype=dtype).requires_grad_()
    return weight, (4 * torch.randn(shape, dtype=dtype)).requires_grad_()


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale, check_dtype=False)


@pytest.mark.parametrize("dtype", TOLERANCE)
@each_case
def test_equals_the_plain_form(size: int, path: Any, taps: int, dtype: torch.dtype) -> None:
    # More slices than a program has, and no multiple of it.
    weight, angle = inputs({3: (7, 11), 5: (7, 5)}.get(size, (3, 5)), taps, dtype)
    kernel = line_kernel(weight, angle, size, path)
    grad = torch.randn_like(kernel)
    expected = torch.autograd.grad(kernel, (weight, angle), grad)
    guarded = torch.full((len(angle) + 2, *kernel.shape[1:]), NAN, dtype=dtype)
    fused_triton.line_kernel_forward(weight.detach(), angle.detach(), size, path, guarded[1:-1])
    assert guarded[[0, -1]].isnan().all()  # nothing is written outside
    assert_close(guarded[1:-1], kernel.detach(), TOLERANCE[dtype])
    found = fused_triton.line_kernel_backward(weight.detach(), angle.detach(), grad, size, path, 0.5)
    for mine, other, scale in zip(found, expected, (1.0, 0.5), strict=True):
        assert mine.dtype == dtype
        assert mine.is_contiguous()
        assert_close(mine, scale * other, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", ["circle", "square"])
@pytest.mark.parametrize("taps", [3, 1])
def test_on_the_kinks(path: Any, taps: int, dtype: torch.dtype) -> None:
    # In the type itself: π/2 in float32 is 4e-8 beside the quarter turn, that of float64 6e-17.
    quarter = torch.pi / (2 if path == "square" and dtype == torch.float32 else 4)  # 45° is a corner of the square
    angle = (torch.cat([torch.zeros(1), torch.arange(-4, 5)]).to(dtype) * quarter).requires_grad_()
    weight = torch.randn(10, taps, dtype=dtype, requires_grad=True)
    grad = torch.randn(10, 3, 3, dtype=dtype)
    expected = torch.autograd.grad(line_kernel(weight, angle, 3, path), (weight, angle), grad)
    found = fused_triton.line_kernel_backward(weight.detach(), angle.detach(), grad, 3, path)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other, TOLERANCE[dtype])


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("taps", [3, 1])
def test_every_layout_and_dtype(out_dtype: torch.dtype, taps: int) -> None:
    weight = torch.randn(taps, 11, 7)[..., ::2].permute(2, 1, 0)  # (4, 11, taps), no two steps in order
    for angle in (torch.randn(11, 4).T, torch.randn(11).expand(4, 11), torch.randn(8, 11)[::2]):
        exact = line_kernel(weight, angle)
        for memory in (torch.contiguous_format, torch.channels_last):
            out = torch.full((4, 11, 3, 3), NAN, dtype=out_dtype).contiguous(memory_format=memory)
            fused_triton.line_kernel_forward(weight, angle, 3, "circle", out)
            # The interpreter cuts bfloat16 off where a GPU rounds.
            assert_close(out.float(), exact, max(1e-5, torch.finfo(out_dtype).eps))
        grad = torch.randn(3, 3, 11, 4).permute(3, 2, 0, 1).to(out_dtype)
        leaves = [tensor.detach().requires_grad_() for tensor in (weight, angle)]
        expected = torch.autograd.grad(line_kernel(*leaves), leaves, grad.float())
        for mine, other in zip(
            fused_triton.line_kernel_backward(weight, angle, grad, 3, "circle"), expected, strict=True
        ):
            assert_close(mine, other, 1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 2), (0, 4), (4, 0)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    weight, angle = inputs(shape, 3)
    kernel = line_kernel(weight, angle)
    out, grad = torch.full_like(kernel, NAN), torch.randn_like(kernel)
    fused_triton.line_kernel_forward(weight.detach(), angle.detach(), 3, "circle", out)
    torch.testing.assert_close(out, kernel.detach(), rtol=0, atol=1e-10)
    found = fused_triton.line_kernel_backward(weight.detach(), angle.detach(), grad, 3, "circle")
    expected = torch.autograd.grad(kernel, (weight, angle), grad)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("taps", [3, 1])
def test_the_function_of_the_layer(taps: int) -> None:
    weight, angle = inputs((4, 6), taps, torch.float32)
    exact = line_kernel(weight, angle)
    kernel = fused_line_kernel(weight, angle, angle_grad_scale=3.0, dtype=torch.bfloat16, channels_last=True)
    assert kernel.dtype == torch.bfloat16
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert_close(kernel.float(), exact, torch.finfo(torch.bfloat16).eps)
    grad = torch.randn_like(kernel)
    expected = torch.autograd.grad(exact, (weight, angle), grad.float())
    found = torch.autograd.grad(kernel, (weight, angle), grad)
    assert_close(found[0], expected[0], 1e-5)
    assert_close(found[1], 3 * expected[1], 1e-5)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, angle = inputs((3, 4), 3)
    mapped = torch.vmap(fused_line_kernel, in_dims=(0, None))(weight, angle[0])
    assert_close(mapped, line_kernel(weight, angle[:1].expand_as(angle)), 1e-10)
    jacobians = torch.func.jacrev(fused_line_kernel, argnums=(0, 1))(weight[:1], angle[:1])
    expected = torch.func.jacrev(line_kernel, argnums=(0, 1))(weight[:1], angle[:1])
    torch.testing.assert_close(jacobians, expected, rtol=0, atol=1e-10)

    monkeypatch.undo()  # what follows is done by torch: second derivatives, and gradients of a batch
    monkeypatch.setattr(fused, "_on_gpu", lambda angle: True)
    arguments = (weight.detach()[:1], angle.detach()[:1])
    batched = torch.autograd.functional.jacobian(fused_line_kernel, arguments, vectorize=True)
    torch.testing.assert_close(batched, expected, rtol=0, atol=1e-10)
    weight, angle = torch.randn(1, 2, 3).double().requires_grad_(), torch.tensor([[0.3, 2.5]]).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w, a: fused_line_kernel(w, a, angle_grad_scale=1.0), (weight, angle))

    def hessian(function: Any) -> Tensor:
        def norm(angle: Tensor) -> Tensor:
            return function(weight.detach(), angle).square().sum()

        return torch.func.jacrev(torch.func.jacrev(norm))(angle.detach())

    assert_close(hessian(fused_line_kernel), hessian(line_kernel), 1e-10)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_tensor_that_stands_for_another_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Tensor):
        pass

    monkeypatch.setattr(fused_triton, "line_kernel_forward", poisoned)
    weight, angle = (tensor.detach() for tensor in inputs((2, 3), 3))
    kernel = fused_line_kernel(weight.as_subclass(Counted), angle)
    assert_close(kernel.as_subclass(Tensor), line_kernel(weight, angle), 1e-10)
