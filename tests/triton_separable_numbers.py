"""The Triton line filters against PyTorch's convolutions, interpreted or on a GPU; for test_triton_separable.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rotateconv import RotateConv2d
from rotateconv.kernels import separable, separable_triton
from rotateconv.kernels.separable_triton import filter_backward, filter_forward, line_filters, plain_filters

NAN = float("nan")
# groups, k, stride, padding, dilation: every k, and each of the others apart from its default.
CASES: list[Any] = [
    (1, 3, (1, 1), (1, 1), (1, 1)),
    (3, 3, (2, 1), (0, 2), (1, 2)),
    (2, 5, (1, 2), (2, 1), (1, 1)),
    (4, 7, (3, 3), (3, 3), (1, 1)),
]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}

pytestmark = pytest.mark.usefixtures("triton_device")
each_case = pytest.mark.parametrize(("groups", "size", "stride", "padding", "dilation"), CASES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def inputs(groups: int, size: int, layout: torch.memory_format, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    images = torch.randn(2, 3, 9, 8).to(dtype).contiguous(memory_format=layout)
    return [images.requires_grad_(), torch.randn(groups, 3, size, size).to(dtype).requires_grad_()]


@each_layout
@each_case
def test_equals_the_convolutions(
    groups: int, size: int, stride: Any, padding: Any, dilation: Any, layout: torch.memory_format
) -> None:
    images, lines = inputs(groups, size, layout)
    expected = plain_filters(images, lines, stride, padding, dilation)
    found = line_filters(images, lines, stride, padding, dilation)
    assert all(part.is_contiguous(memory_format=layout) for part in found)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    grad = torch.randn(*expected.shape[::-1]).permute(4, 3, 2, 1, 0)  # in neither order
    for mine, other in zip(
        torch.autograd.grad(found, (images, lines), grad),
        torch.autograd.grad(expected, (images, lines), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * max(1.0, other.abs().max().item()))


@each_layout
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, layout: torch.memory_format) -> None:
    images, lines = (tensor.detach() for tensor in inputs(2, 3, layout, dtype))
    places: Any = ((1, 1), (1, 1), (1, 1))
    exact = plain_filters(images.float(), lines.float(), *places)
    found = filter_forward(images, lines, *places)
    assert found.dtype == dtype
    bound = torch.finfo(dtype).eps
    assert (found.float() - exact).abs().max() <= bound * exact.abs().max()
    grad = torch.randn_like(found)
    leaf = images.float().requires_grad_()
    wanted = torch.autograd.grad(plain_filters(leaf, lines.float(), *places), leaf, grad.float())[0]
    back = filter_backward(images, lines, grad, *places)
    assert (back.dtype, back.stride()) == (dtype, images.stride())
    assert (back.float() - wanted).abs().max() <= bound * wanted.abs().max()


def test_nothing_is_written_outside_and_everything_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    # More places than a program has, and no multiple of them.
    images = torch.randn(3, 5, 11, 7)
    guarded = torch.full((4, 3, 5, 11, 7), NAN)
    right = Tensor.new_empty

    def new_empty(tensor: Tensor, *shape: Any, **options: Any) -> Tensor:
        return guarded[1:3] if shape == ((2, 3, 5, 11, 7),) else right(tensor, *shape, **options)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)
    filter_forward(images, torch.randn(2, 5, 3, 3), (1, 1), (1, 1), (1, 1))
    assert guarded[[0, 3]].isnan().all()
    assert not guarded[1:3].isnan().any()


def test_second_derivatives() -> None:
    images, lines = (tensor.detach().requires_grad_() for tensor in inputs(2, 3, torch.contiguous_format))
    places: Any = ((1, 1), (1, 1), (1, 1))
    second = []
    for function in (line_filters, plain_filters):
        gradients = torch.autograd.grad(
            function(images, lines, *places).square().sum(), (images, lines), create_graph=True
        )
        second.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), (images, lines)))
    for mine, other in zip(*second, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-2)


@each_layout
@pytest.mark.parametrize("taps", ["shared", "profile"])
def test_the_layer_runs_through_it(taps: Any, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = RotateConv2d(4, 6, 3, padding=1, taps=taps, angle_groups=2, form="separable")
    images = torch.randn(2, 4, 6, 5).contiguous(memory_format=layout)
    expected = layer(images)
    wanted = torch.autograd.grad(expected.square().sum(), tuple(layer.parameters()))
    ran: list[Any] = []
    right = separable_triton.line_filters
    monkeypatch.setattr(separable, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(separable_triton, "line_filters", lambda *a: (ran.append(a), right(*a))[1])
    found = layer(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.is_contiguous(memory_format=layout)
    for mine, other in zip(torch.autograd.grad(found.square().sum(), tuple(layer.parameters())), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)
    assert len(ran) == 1
    with torch.autocast(images.device.type, torch.bfloat16):
        low = layer(images)
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 2e-2 * expected.abs().max()
    assert len(ran) == 2
    assert ran[-1][0].dtype == torch.bfloat16
    # Transforms, one image alone and what has no kernel go through PyTorch's own.
    torch.testing.assert_close(torch.vmap(layer)(images[None])[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(images[0]), expected[0], rtol=0, atol=1e-5)
    layer.double()(images.double())
    assert len(ran) == 2
