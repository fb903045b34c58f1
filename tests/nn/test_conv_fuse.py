"""RotateConv2d to nn.Conv2d and back: fuse gives the same output, from_conv the same kernel."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from layers import ARGUMENTS, FORMS, image_for, name
from rotateconv import RotateConv2d
from rotateconv.nn.config import RotateConfig
from tolerances import assert_close

each_form = pytest.mark.parametrize("form", FORMS, ids=name)
each_arguments = pytest.mark.parametrize(("channels", "arguments"), ARGUMENTS, ids=name)


@each_form
@each_arguments
def test_fuse_gives_the_same_output(channels: tuple[int, int], arguments: dict[str, Any], form: dict[str, Any]) -> None:
    for size, dtype in ((3, torch.float64), (5, torch.float32)):
        layer = RotateConv2d(*channels, size, **arguments, **form, dtype=dtype)
        images = image_for(channels[0], dtype=dtype)
        expected = layer(images)
        conv = layer.fuse()
        assert type(conv) is nn.Conv2d
        assert_close(conv(images), expected, scale=expected.abs().max().item())
        plain = nn.Conv2d(*channels, size, **arguments)
        for key in (
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
            "kernel_size",
            "in_channels",
            "out_channels",
        ):
            assert getattr(conv, key) == getattr(plain, key)
        assert conv.extra_repr() == plain.extra_repr()


def test_fuse_is_a_copy_with_every_flag() -> None:
    for training in (True, False):
        layer = RotateConv2d(2, 4, 3, dtype=torch.float64).train(training)
        conv = layer.fuse()
        assert conv.training == training
        assert conv.weight.dtype == torch.float64
        assert conv.weight.is_leaf
        assert isinstance(conv.weight, nn.Parameter)
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.zero_()
        assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    layer.weight.requires_grad_(False)
    assert [layer.fuse().weight.requires_grad, layer.fuse().bias.requires_grad] == [False, True]
    layer.bias.requires_grad_(False)
    layer.weight.requires_grad_(True)
    assert [layer.fuse().weight.requires_grad, layer.fuse().bias.requires_grad] == [True, False]
    assert RotateConv2d(2, 4, 3, device="meta").fuse().weight.is_meta


# The profiles of whole rows are fitted together, which is proved where that fit is.
@pytest.mark.parametrize(
    "form", [form for form in FORMS if form["taps"] != "profile" or form["angle_groups"]], ids=name
)
@each_arguments
def test_from_conv_gives_back_a_fused_layer(
    channels: tuple[int, int], arguments: dict[str, Any], form: dict[str, Any]
) -> None:
    layer = RotateConv2d(*channels, 3, **arguments, **form).eval()
    conv = layer.fuse()
    again = RotateConv2d.from_conv(conv, **form)
    assert again.extra_repr() == layer.extra_repr()
    assert not again.training
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in layer.state_dict().items()
    }
    assert_close(again.kernel(), layer.kernel())
    images = image_for(channels[0])
    assert_close(again(images), conv(images), scale=5)


def test_from_conv_carries_flags_and_leaves_the_convolution() -> None:
    conv = nn.Conv2d(2, 4, 3, dtype=torch.float64)
    before = conv.weight.detach().clone()
    conv.bias.requires_grad_(False)
    layer = RotateConv2d.from_conv(conv, learn_angle=False)
    assert (layer.weight.dtype, layer.learn_angle, layer.training) == (torch.float64, False, True)
    assert [layer.weight.requires_grad, layer.bias.requires_grad] == [True, False]
    assert torch.equal(layer.bias, conv.bias)
    assert layer.bias is not conv.bias
    assert torch.equal(conv.weight, before)
    conv.weight.requires_grad_(False)
    layer = RotateConv2d.from_conv(conv, taps="profile", angle_groups=2)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    held = RotateConv2d.from_conv(conv, taps="profile", learn_profile=False)
    assert "profile" in dict(held.named_buffers())
    assert_close(held.kernel(), RotateConv2d.from_conv(conv, taps="profile").kernel())
    half = nn.Conv2d(2, 4, 3, dtype=torch.bfloat16)
    assert RotateConv2d.from_conv(half).weight.dtype == torch.bfloat16


def test_from_conv_has_the_options_of_the_constructor() -> None:
    conv = nn.Conv2d(4, 8, 3)
    assert RotateConv2d.from_conv(conv).config == RotateConv2d(4, 8).config == RotateConfig()
    config = RotateConfig("profile", "square", 2, False, "dense", False)
    assert RotateConv2d.from_conv(conv, **vars(config)).config == RotateConv2d(4, 8, **vars(config)).config == config


@pytest.mark.parametrize("frozen", ["weight", "bias", "neither"])
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_like_a_convolution_has_its_flags(frozen: str, training: bool) -> None:
    """Weights, angles and profiles are trained where its weight is, the bias where its bias is."""
    conv = nn.Conv2d(2, 4, (5, 5), (2, 1), 2, padding_mode="reflect").train(training)
    for key, parameter in conv.named_parameters():
        parameter.requires_grad_(key != frozen)
    layer = RotateConv2d.like(conv, RotateConfig("profile"))
    trained = {name: parameter.requires_grad for name, parameter in layer.named_parameters()}
    assert trained == dict.fromkeys(("weight", "angle", "profile"), frozen != "weight") | {"bias": frozen != "bias"}
    assert layer.training == training
    for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups", "padding_mode"):
        assert getattr(layer, key) == getattr(conv, key)
    with pytest.raises(ValueError, match=r"^expected a convolution with values, got one on the meta device: mat"):
        RotateConv2d.from_conv(nn.Conv2d(2, 4, 3, device="meta"))
    with pytest.raises(TypeError, match="Linear"):
        RotateConv2d.like(nn.Linear(2, 2), RotateConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("trained", [True, False])
def test_a_layer_under_a_parametrization_is_trained_on_as_before(trained: bool) -> None:
    layer = parametrizations.spectral_norm(RotateConv2d(3, 4, 3))
    layer.requires_grad_(trained)
    assert layer.eval().fuse().weight.requires_grad == trained
