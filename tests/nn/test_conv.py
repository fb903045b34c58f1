"""RotateConv2d: its output against the slow twin, its likeness to nn.Conv2d, its parameters."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import reference
from layers import ARGUMENTS, FORMS, SIZES, image_for, name
from rotateconv import RotateConv2d, line_kernel
from tolerances import TOLERANCE, assert_close

pytestmark = pytest.mark.usefixtures("each_kernel_form")

each_form = pytest.mark.parametrize("form", FORMS, ids=name)
each_arguments = pytest.mark.parametrize(("channels", "arguments"), ARGUMENTS, ids=name)
each_size = pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.slow] * (size > 5)) for size in SIZES]
)


@each_form
@each_arguments
@each_size
def test_equals_the_slow_twin(
    size: int, channels: tuple[int, int], arguments: dict[str, Any], form: dict[str, Any]
) -> None:
    layer = RotateConv2d(*channels, size, **arguments, **form, dtype=torch.float64)
    images = image_for(channels[0], dtype=torch.float64)
    values = {key: value.numpy() for key, value in layer.state_dict().items()}
    rest = {key: value for key, value in arguments.items() if key != "bias"}
    expected = torch.from_numpy(reference.rotate_conv2d(images.numpy(), **values, size=size, **rest, **form))
    found = layer(images)
    assert found.shape == nn.Conv2d(*channels, size, **arguments, dtype=torch.float64)(images).shape
    assert_close(found, expected, scale=expected.abs().max().item())
    assert_close(layer(images[0]), found[0], scale=expected.abs().max().item())  # unbatched


@pytest.mark.parametrize("path", ["circle", "square"])
@pytest.mark.parametrize("taps", ["shared", "profile"])
@pytest.mark.parametrize(("channels", "arguments"), [case for case in ARGUMENTS if "groups" not in case[1]], ids=name)
def test_separable_form_equals_the_slow_twin(
    channels: tuple[int, int], arguments: dict[str, Any], taps: Any, path: Any
) -> None:
    for angle_groups, size in ((1, 3), (2, 5)):
        form = {"taps": taps, "path": path, "angle_groups": angle_groups}
        layer = RotateConv2d(*channels, size, **arguments, **form, form="separable", dtype=torch.float64)
        images = image_for(channels[0], dtype=torch.float64)
        values = {key: value.numpy() for key, value in layer.state_dict().items()}
        rest = {key: value for key, value in arguments.items() if key != "bias"}
        expected = torch.from_numpy(reference.rotate_conv2d(images.numpy(), **values, size=size, **rest, **form))
        assert_close(layer(images), expected, scale=expected.abs().max().item())
        assert_close(layer(images[0]), expected[0], scale=expected.abs().max().item())


@each_form
@each_size
def test_kernel_is_the_formula(size: int, form: dict[str, Any]) -> None:
    layer = RotateConv2d(6, 8, size, groups=2, **form, dtype=torch.float64)
    values = {key: value.numpy() for key, value in layer.state_dict().items()}
    expected = np.zeros((8, 3, size, size))
    taps, groups = form["taps"], form["angle_groups"]
    for out, i, weights, angle in reference.slice_taps(
        values["weight"], values["angle"], values.get("profile"), size, taps, groups
    ):
        expected[out, i] = reference.line_kernel(weights, angle, size, form["path"])
    assert_close(layer.kernel(), torch.from_numpy(expected), scale=5)
    assert torch.equal(layer.kernel(), layer.kernel())
    assert torch.equal(layer.eval().kernel(), layer.train().kernel())


def test_signature_and_defaults_of_conv2d() -> None:
    ours = list(inspect.signature(RotateConv2d).parameters.values())
    theirs = list(inspect.signature(nn.Conv2d).parameters.values())
    assert [parameter.name for parameter in ours[: len(theirs)]] == [parameter.name for parameter in theirs]
    for mine, other in zip(ours, theirs, strict=False):
        assert mine.kind == other.kind
        assert mine.default == (3 if mine.name == "kernel_size" else other.default)
    own = {parameter.name: parameter.default for parameter in ours[len(theirs) :]}
    assert own == {
        "taps": "free",
        "path": "circle",
        "angle_groups": None,
        "learn_angle": True,
        "form": "auto",
        "learn_profile": True,
    }
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours[len(theirs) :])


def test_is_not_a_conv2d() -> None:
    assert not isinstance(RotateConv2d(2, 4), nn.Conv2d)
    for key in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(RotateConv2d(2, 4), key) == getattr(nn.Conv2d(2, 4, 3), key)
    assert RotateConv2d(2, 4, (5, 5)).kernel_size == (5, 5)


@pytest.mark.parametrize("learn_angle", [True, False])
@each_form
@each_size
def test_shapes_of_parameters(size: int, form: dict[str, Any], learn_angle: bool) -> None:
    layer = RotateConv2d(6, 8, size, groups=2, **form, learn_angle=learn_angle)
    groups, taps = form["angle_groups"], form["taps"]
    expected = {
        "weight": (8, 3, size if taps == "free" else 1),
        "angle": (8 if groups is None else groups, 3),
        **({"profile": (8, size) if groups is None else (groups, 3, size)} if taps == "profile" else {}),
        "bias": (8,),
    }
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == expected
    elsewhere = RotateConv2d(6, 8, size, groups=2, **form, learn_angle=learn_angle, dtype=torch.half, device="meta")
    assert {(value.dtype, value.is_meta) for value in elsewhere.state_dict().values()} == {(torch.half, True)}
    learned = {key for key, _ in layer.named_parameters()}
    assert learned == set(expected) - (set() if learn_angle else {"angle"})
    assert {key for key, _ in layer.named_buffers()} == (set() if learn_angle else {"angle"})
    without = RotateConv2d(6, 8, size, groups=2, **form, learn_angle=learn_angle, bias=False)
    assert set(without.state_dict()) == set(expected) - {"bias"}
    assert without.bias is None
    if taps == "profile":
        kept = RotateConv2d(6, 8, size, groups=2, **form, learn_angle=learn_angle, learn_profile=False)
        assert kept.state_dict().keys() == layer.state_dict().keys()
        assert {key for key, _ in kept.named_parameters()} == learned - {"profile"}
        kept.load_state_dict(layer.state_dict())
        assert torch.equal(kept.kernel(), layer.kernel())
    else:
        with pytest.raises(ValueError, match='learn_profile=False needs taps="profile", got taps='):
            RotateConv2d(6, 8, size, groups=2, **form, learn_profile=False)


REBUILT: list[dict[str, Any]] = [
    {**arguments, **form, "learn_angle": learn, "learn_profile": learn or form["taps"] != "profile"}
    for (channels, arguments), form, learn in zip(
        [case for case in ARGUMENTS if case[0] != (1, 2)], FORMS * 2, [True, False] * 9, strict=False
    )
]


@pytest.mark.parametrize("arguments", REBUILT, ids=name)
@each_size
def test_repr_is_the_call_that_rebuilds_the_layer(size: int, arguments: dict[str, Any]) -> None:
    layer = RotateConv2d(4, 8, size, **arguments)
    assert repr(layer) == f"RotateConv2d({layer.extra_repr()})"
    again = eval(repr(layer), {"RotateConv2d": RotateConv2d})
    for key in inspect.signature(RotateConv2d).parameters:
        if key not in ("bias", "device", "dtype"):
            assert getattr(again, key) == getattr(layer, key), key
    assert (again.bias is None) == (layer.bias is None)
    assert again.load_state_dict(layer.state_dict(), strict=True)
    images = image_for(4)
    assert torch.equal(again(images), layer(images))


def test_kernel_of_a_half_precision_layer() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        layer = RotateConv2d(4, 8, 3, dtype=dtype)
        assert layer.kernel().dtype == dtype
        exact = line_kernel(layer.weight.float(), layer.angle.float())
        assert (layer.kernel().float() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()
