"""All layers' kernels in one launch against the reference implementation, in Triton's interpreter or on a GPU."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernel_forms import take_kernel_form
from layers import forward
from rotateconv import RotateConv2d, batched_kernels, build_model
from rotateconv.kernels import fused, fused_batch, fused_triton_batch
from rotateconv.kernels.batch_options import BatchOptions
from rotateconv.kernels.fused_batch import fused_line_kernels
from rotateconv.kernels.line import line_kernel

SHAPES = ((7, 3), (5, 13), (4, 1), (5, 13), (0, 4), (3, 0))
SCALES = (1.0, 0.5, 2.0, 3.0, 1.0, 1.0)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

pytestmark = pytest.mark.usefixtures("triton_device", "as_on_a_gpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Send the tensors of a CPU to the Triton kernels, and count the launches."""
    launches: list[int] = []
    launch = fused_triton_batch._launch
    monkeypatch.setattr(fused, "_on_gpu", lambda angle: True)
    monkeypatch.setattr(fused_triton_batch, "_launch", lambda *a: (launches.append(1), launch(*a)))
    take_kernel_form("tensor operations", monkeypatch)
    monkeypatch.setattr(fused_batch, "_in_one_piece", lambda *a: pytest.fail("torch's operations were used"))
    return launches


def leaves(shapes: Sequence[tuple[int, int]], taps: str, size: int, dtype: torch.dtype) -> list[list[Tensor]]:
    numbers = size if taps == "free" else 1
    weights = [torch.randn(*shape, numbers, dtype=dtype, requires_grad=True) for shape in shapes]
    angles = [(4 * torch.randn(shape, dtype=dtype)).requires_grad_() for shape in shapes]
    profiles = [torch.randn(shape[0], size, dtype=dtype, requires_grad=True) for shape in shapes]
    return [weights, angles, profiles if taps == "profile" else []]


def plain(sources: list[list[Tensor]], size: int, path: Any) -> list[Tensor]:
    weights, angles, profiles = sources
    if profiles:
        weights = [weight * profile[:, None] for weight, profile in zip(weights, profiles, strict=True)]
    return [line_kernel(weight, angle, size, path) for weight, angle in zip(weights, angles, strict=True)]


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    scale = max([1.0, *expected.detach().abs().flatten().tolist()])
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale, check_dtype=False)


@pytest.mark.parametrize(
    ("size", "path", "taps", "last", "dtype", "out"),
    [
        (3, "circle", "free", False, torch.float32, torch.float32),
        (3, "circle", "free", True, torch.float32, torch.bfloat16),
        (3, "square", "shared", True, torch.float64, torch.float64),
        (3, "square", "profile", True, torch.float32, torch.float32),
        (3, "circle", "profile", False, torch.float64, torch.float64),
        (5, "circle", "shared", False, torch.float32, torch.float16),
        (5, "square", "free", True, torch.float64, torch.float64),
        (5, "circle", "profile", True, torch.float64, torch.float64),
    ],
)
def test_equals_the_plain_form(
    size: int,
    path: Any,
    taps: str,
    last: bool,
    dtype: torch.dtype,
    out: torch.dtype,
    as_on_a_gpu: list[int],
) -> None:
    sources = leaves(SHAPES, taps, size, dtype)
    options = BatchOptions(size, path, out, last, SCALES)
    found = fused_line_kernels(*sources[:2], options, sources[2])
    expected = plain(sources, size, path)
    low = out.itemsize == 2  # the interpreter cuts bfloat16 off where a GPU rounds
    for mine, other in zip(found, expected, strict=True):
        layout = torch.channels_last if last else torch.contiguous_format
        assert mine.dtype == out
        assert mine.is_contiguous(memory_format=layout)
        assert mine.numel() == 0 or mine.data_ptr() % 16 == 0
        assert_close(mine, other, torch.finfo(out).eps if low else TOLERANCE[dtype])
    used = [0, 1, 3, 4, 5]  # not the third
    grads = [torch.randn_like(found[i]) for i in used]
    torch.autograd.backward([found[i] for i in used], grads)
    mine = [[tensor.grad for tensor in some] for some in sources]
    for some in sources:
        for tensor in some:
            tensor.grad = None
    torch.autograd.backward([expected[i] for i in used], [grad.to(dtype) for grad in grads])
    assert len(as_on_a_gpu) == (3 if taps == "profile" else 2)
    for some, gradients in zip(sources, mine, strict=True):
        for i, (tensor, gradient) in enumerate(zip(some, gradients, strict=True)):
            assert (gradient is None) == (i == 2)
            if gradient is not None and tensor.grad is not None:
                scale = SCALES[i] if some is sources[1] else 1.0
                assert gradient.dtype == dtype
                assert_close(gradient, scale * tensor.grad, TOLERANCE[dtype])


@pytest.mark.parametrize("path", ["circle", "square"])
def test_on_the_kinks(path: Any) -> None:
    # Multiples of 90° in float32, 4e-8 beside the quarter turns; of 45° the square's corners are left out.
    angle = (torch.arange(-4, 5) * torch.pi / 2).view(3, 3).requires_grad_()
    weight = torch.randn(3, 3, 3, requires_grad=True)
    grad = torch.randn(3, 3, 3, 3)
    (kernel,) = fused_line_kernels([weight], [angle], BatchOptions(3, path, torch.float32, False, (1.0,)))
    found = torch.autograd.grad(kernel, (weight, angle), grad)
    expected = torch.autograd.grad(line_kernel(weight, angle, 3, path), (weight, angle), grad)
    for mine, other in zip(found, expected, strict=True):
        assert_close(mine, other, 1e-5)


def test_gradients_in_another_order_of_memory_and_apart() -> None:
    sources = leaves(SHAPES[:2], "profile", 3, torch.float64)
    kernels = fused_line_kernels(*sources[:2], BatchOptions(3, "circle", torch.float64, True, (1.0, 1.0)), sources[2])
    for i, expected in enumerate(plain(sources, 3, "circle")):
        grad = torch.randn(3, 3, *SHAPES[i], dtype=torch.float64).permute(2, 3, 0, 1)
        mine = [some[i] for some in sources]
        found = torch.autograd.grad(kernels[i], mine, grad)  # two losses, two passes
        for one, other in zip(found, torch.autograd.grad(expected, mine, grad), strict=True):
            assert_close(one, other, 1e-10)


def test_second_derivatives_with_profiles() -> None:
    weight, angle, profile = (some[0] for some in leaves([(2, 2)], "profile", 3, torch.float64))

    def kernel(weight: Tensor, angle: Tensor, profile: Tensor) -> Tensor:
        options = BatchOptions(3, "circle", torch.float64, False, (1.0,))
        return fused_line_kernels([weight], [angle], options, [profile])[0]

    assert torch.autograd.gradgradcheck(kernel, (weight, angle, profile))


def gradients(model: nn.Module, images: Tensor, batched: bool) -> dict[str, Tensor | None]:
    model.zero_grad()
    forward(model, images, batched).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("conv", ["rotate4", "rotate2p"])
def test_a_model_with_frozen_and_parametrized_layers(conv: str, as_on_a_gpu: list[int]) -> None:
    model = build_model("resnet20", conv, width=0.25).double()
    layers = [module for module in model.modules() if isinstance(module, RotateConv2d)]
    layers[0].requires_grad_(False)
    layers[2].angle.requires_grad_(False)
    nn.utils.parametrizations.spectral_norm(layers[1], "weight").eval()
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    found, expected = (gradients(model, images, batched) for batched in (True, False))
    # The frozen layer's kernel, the others', and the gradients of those; of profiles there is a sum left to take.
    assert len(as_on_a_gpu) == (4 if conv == "rotate2p" else 3)
    for name, gradient in expected.items():
        mine = found[name]
        assert (mine is None) == (gradient is None), name
        if mine is not None and gradient is not None:
            assert_close(mine, gradient, 1e-7)  # scales are rounded to float32


def test_a_second_step_builds_and_uploads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = RotateConv2d(2, 4, taps="profile"), torch.randn(1, 2, 5, 5)
    with batched_kernels(model):
        model(images).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    made = fused_triton_batch._plan_of.cache_info().misses
    found = gradients(model, images, batched=True)
    assert fused_triton_batch._plan_of.cache_info().misses == made
    for name, expected in gradients(model, images, batched=False).items():  # of the parameters as they are
        torch.testing.assert_close(found[name], expected)
