"""What torch can do with a RotateConv2d: differentiate, autocast, copy, materialize, save, stack."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layers import FORMS, gradients, image_for, name
from rotateconv import RotateConv2d
from tolerances import TOLERANCE, assert_close

each_form = pytest.mark.parametrize("form", FORMS, ids=name)
each_mode = pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])


@pytest.mark.parametrize("learn_angle", [True, False])
@each_form
def test_angle_gradient_is_scaled_and_nothing_else(form: dict[str, Any], learn_angle: bool) -> None:
    layer = RotateConv2d(4, 8, 3, **form, learn_angle=learn_angle, dtype=torch.float64)
    images, scale = image_for(4, dtype=torch.float64), layer.angle_grad_scale
    output, kernel = layer(images), layer.kernel()
    scaled = gradients(layer, output)
    layer.angle_grad_scale = 1.0
    assert torch.equal(layer(images), output)
    assert torch.equal(layer.kernel(), kernel)
    exact = gradients(layer, layer(images))
    assert set(scaled) == set(exact)
    for key, gradient in exact.items():
        assert gradient.abs().min() > 0
        if key == "angle":
            torch.testing.assert_close(scaled[key], scale * gradient, rtol=1e-12, atol=1e-14 * scale)
        else:
            assert torch.equal(scaled[key], gradient)
    assert ("angle" in exact) == learn_angle
    plain = layer.fuse()
    by_kernel = torch.autograd.grad(plain(images).square().sum(), plain.weight)
    sources = {key: parameter for key, parameter in layer.named_parameters() if key in ("weight", "angle")}
    for key, found in zip(sources, torch.autograd.grad(kernel, list(sources.values()), by_kernel), strict=True):
        assert_close(found, exact[key], scale=exact[key].abs().max().item())


@each_form
def test_angle_grad_scale_is_one_over_the_expected_sum_of_squares(form: dict[str, Any]) -> None:
    layer = RotateConv2d(64, 128, 3, **form | {"angle_groups": form["angle_groups"] and 8})
    weight = layer.weight.detach().square()
    if form["taps"] == "free":  # per tap: the variance of one weight
        weight = weight.mean(-1, keepdim=True)
    sums = weight if form["angle_groups"] is None else weight.unflatten(0, (8, 16)).sum(1)
    assert layer.angle_grad_scale == pytest.approx(1 / sums.mean().item(), rel=0.05)
    assert "angle_grad_scale" not in layer.state_dict()


@pytest.mark.slow
@each_form
def test_double_backward(form: dict[str, Any]) -> None:
    layer = RotateConv2d(2, 2, 3, **form, padding=1, dtype=torch.float64)
    layer.angle_grad_scale = 1.0
    with torch.no_grad():
        layer.angle.copy_(
            torch.tensor([0.3, 2.0, 4.0, 5.5], dtype=torch.float64)[: layer.angle.numel()].view_as(layer.angle)
        )
    names, values = zip(*layer.named_parameters(), strict=True)
    images = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def forward(images: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), images)

    torch.autograd.gradcheck(forward, (images, *values))
    torch.autograd.gradgradcheck(forward, (images, *values))


@each_form
@each_mode
def test_forward_leaves_everything_as_it_was(padding_mode: str, form: dict[str, Any]) -> None:
    layer = RotateConv2d(4, 8, 3, padding=1, padding_mode=padding_mode, **form)
    images = image_for(4)
    before, seen = copy.deepcopy(layer.state_dict()), images.clone()
    versions = {key: value._version for key, value in layer.named_parameters()}
    layer(images).sum().backward()
    layer.fuse()
    assert torch.equal(images, seen)
    assert {key: value._version for key, value in layer.named_parameters()} == versions
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert set(layer.state_dict()) == set(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_form
def test_autocast_keeps_the_kernel_in_float32(form: dict[str, Any], dtype: torch.dtype) -> None:
    layer, images = RotateConv2d(4, 8, 3, **form), image_for(4)
    expected, kernel = layer(images), layer.kernel()
    conv = layer.fuse()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer.kernel(), kernel)
        assert layer.kernel().dtype == torch.float32
        output = layer(images)
        assert output.dtype == conv(images).dtype == dtype
        assert torch.equal(output, conv(images))
    assert_close(output.float(), expected, scale=TOLERANCE[dtype] / TOLERANCE[torch.float32] * 10)
    for gradient in gradients(layer, output.float()).values():
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_form
def test_layer_of_another_dtype(form: dict[str, Any], dtype: torch.dtype) -> None:
    layer, images = RotateConv2d(4, 8, 3, **form), image_for(4)
    expected = layer(images)
    output = layer.to(dtype)(images.to(dtype))
    assert output.dtype == dtype
    error = (output.double() - expected.double()).abs().max().item()
    assert error < 20 * max(TOLERANCE[dtype], TOLERANCE[torch.float32])
    with pytest.raises(RuntimeError):  # as nn.Conv2d: the input must have the dtype of the layer
        layer(images)


@pytest.mark.parametrize("arguments", [{}, {"groups": 4}, {"padding": 1, "padding_mode": "circular"}], ids=name)
@each_form
def test_memory_format_of_conv2d(form: dict[str, Any], arguments: dict[str, Any]) -> None:
    layer = RotateConv2d(4, 8, 3, **arguments, **form)
    conv = layer.fuse().to(memory_format=torch.channels_last)
    images = image_for(4)
    expected = layer(images)
    assert expected.is_contiguous()
    images = images.to(memory_format=torch.channels_last)
    output = layer(images)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert output.stride() == conv(images).stride()
    assert_close(output, expected, scale=3)
    layer = layer.to(memory_format=torch.channels_last)  # as one does to a whole model
    assert torch.equal(layer(images), output)


@pytest.mark.parametrize("learn_angle", [True, False])
@each_form
def test_vmap_over_stacked_layers(form: dict[str, Any], learn_angle: bool) -> None:
    layers = [RotateConv2d(4, 8, 3, padding=1, **form, learn_angle=learn_angle, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    images = image_for(4, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        output = torch.func.functional_call(layers[0], (parameters, buffers), (images,))
        return output.square().sum(), output

    stacked = torch.func.vmap(torch.func.grad(loss, has_aux=True), in_dims=(0, 0, None))
    found, outputs = stacked(parameters, buffers, images)
    for index, layer in enumerate(layers):
        assert_close(outputs[index], layer(images), scale=10)
        for key, expected in gradients(layer, layer(images)).items():
            assert_close(found[key][index], expected, scale=10 * expected.abs().max().item())


@each_mode
@each_form
def test_vmap_over_images(form: dict[str, Any], padding_mode: str) -> None:
    layer, images = RotateConv2d(4, 8, 3, padding=1, padding_mode=padding_mode, **form), image_for(4)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = torch.func.vmap(layer)(images.to(memory_format=layout))
        assert_close(found, layer(images), scale=3)


@pytest.mark.parametrize("learn_angle", [True, False])
@each_form
def test_copies(form: dict[str, Any], learn_angle: bool) -> None:
    layer = RotateConv2d(4, 8, 3, **form, learn_angle=learn_angle).eval()
    layer.angle_grad_scale = 7.0
    images = image_for(4)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(images), layer(images))
        assert (repr(again), again.training, again.angle_grad_scale) == (repr(layer), False, 7.0)
        assert not {id(value) for value in again.state_dict(keep_vars=True).values()} & {
            id(value) for value in layer.state_dict(keep_vars=True).values()
        }


@pytest.mark.parametrize("learn_angle", [True, False])
@each_form
def test_materialized_from_the_meta_device(form: dict[str, Any], learn_angle: bool) -> None:
    with torch.device("meta"):
        layer = RotateConv2d(4, 8, 3, **form, learn_angle=learn_angle)
    assert all(value.is_meta for value in layer.state_dict().values())
    assert layer(torch.empty(2, 4, 5, 5, device="meta")).shape == (2, 8, 3, 3)
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(5)
    layer.reset_parameters()
    torch.manual_seed(5)
    other = RotateConv2d(4, 8, 3, **form, learn_angle=learn_angle)
    assert layer.angle_grad_scale == other.angle_grad_scale
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in layer.state_dict().items())
    loaded = RotateConv2d(4, 8, 3, **form, learn_angle=learn_angle, device="meta")
    loaded.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(loaded.kernel(), other.kernel())


@each_form
def test_state_dict_is_the_same_in_every_mode(form: dict[str, Any]) -> None:
    learned, fixed = (RotateConv2d(4, 8, 3, **form, learn_angle=learn) for learn in (True, False))
    assert list(learned.state_dict()) == list(learned.eval().state_dict())
    assert set(learned.state_dict()) == set(fixed.state_dict())
    for source, target in ((learned, fixed), (fixed, learned), (learned.eval(), fixed.train())):
        source.reset_parameters()
        assert not torch.equal(target.kernel(), source.kernel())
        target.load_state_dict(source.state_dict(), strict=True)
        assert torch.equal(target.kernel(), source.kernel())


@pytest.mark.parametrize("taps", ["free", "shared", "profile"])
def test_another_default_dtype_and_device_context(taps: Any) -> None:
    torch.set_default_dtype(torch.float64)
    layer = RotateConv2d(4, 8, 3, taps=taps)
    assert {value.dtype for value in layer.state_dict().values()} == {torch.float64}
    assert layer.fuse()(torch.randn(1, 4, 5, 5)).dtype == torch.float64


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (1, 4, 3, 3), (4, 3, 9)], ids=str)
def test_smallest_and_empty_inputs_as_conv2d(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    assert RotateConv2d(4, 8, 3)(images).shape == nn.Conv2d(4, 8, 3)(images).shape


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 4, 2, 8), (4, 8), (1, 1, 4, 8, 8)], ids=str)
def test_inputs_that_conv2d_refuses(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    with pytest.raises(RuntimeError) as theirs:
        nn.Conv2d(4, 8, 3)(images)
    with pytest.raises(RuntimeError) as ours:
        RotateConv2d(4, 8, 3)(images)
    assert str(ours.value) == str(theirs.value)


@each_form
def test_trains_with_the_optimizer_already_there(form: dict[str, Any]) -> None:
    target, layer = RotateConv2d(4, 4, 3, **form), RotateConv2d(4, 4, 3, **form)
    images = torch.randn(8, 4, 8, 8)
    wanted, optimizer = target(images).detach(), torch.optim.Adam(layer.parameters(), lr=0.03)
    start = layer.angle.detach().clone()
    losses = []
    for _ in range(60):
        loss = (layer(images) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert (layer.angle - start).abs().max() > 0.1
