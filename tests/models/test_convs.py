"""The registry of convolutions: signature and output norm of every entry, and what each control fixes."""

import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from registries import FIRST
from rotateconv.kernels.line import mean_gram
from rotateconv.models import CONVS, MODELS
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.factored import SeparableConv2d
from rotateconv.nn.masked import MaskedConv2d

ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (2, 0)},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "bias": False},
    {"groups": 4, "padding": 1},
    {"dtype": torch.float64, "padding": 1},
    *({"padding": (2, 1), "padding_mode": mode} for mode in ("zeros", "reflect", "replicate", "circular")),
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("conv", CONVS)
def test_arguments_and_output_of_conv2d(conv: str, arguments: dict[str, Any]) -> None:
    layer = CONVS[conv](8, 12, 3, **arguments)
    x = torch.randn(2, 8, 9, 10, dtype=arguments.get("dtype", torch.float32))
    expected = nn.Conv2d(8, 12, 3, **arguments)(x)
    found = layer(x)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert any(name.endswith("bias") for name, _ in layer.named_parameters()) == arguments.get("bias", True)
    torch.testing.assert_close(layer(x[0]), found[0])


@pytest.mark.parametrize("conv", CONVS)
def test_arguments_by_position(conv: str) -> None:
    layer = CONVS[conv](8, 12, 3, 2, 1, 1, 4, False, "reflect", "meta", torch.float64)
    assert layer(torch.empty(2, 8, 9, 9, device="meta", dtype=torch.float64)).shape == (2, 12, 5, 5)
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert "bias" not in layer.state_dict()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("conv", CONVS)
def test_mean_squared_output_is_that_of_kaiming_normal(conv: str, kernel_size: int, groups: int) -> None:
    x = torch.randn(4, 64, 24, 24)
    kaiming = nn.Conv2d(64, 256, kernel_size, groups=groups, bias=False)
    nn.init.kaiming_normal_(kaiming.weight)
    expected = kaiming(x).square().mean().item()
    assert expected == pytest.approx(2, rel=0.1)
    found = CONVS[conv](64, 256, kernel_size, groups=groups, bias=False)(x).square().mean().item()
    # Four groups share 256 line filters or fewer, and a few profiles more or less are loud.
    assert found == pytest.approx(expected, rel=0.2 if "-g4" in conv else 0.1)


@pytest.mark.parametrize("conv", CONVS)
def test_entries_do_not_share_state(conv: str) -> None:
    first, second = CONVS[conv](8, 8, 3), CONVS[conv](8, 8, 3)
    weights = [next(layer.parameters()) for layer in (first, second)]
    assert weights[0] is not weights[1]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("conv", [name for name in CONVS if name.startswith(("rotate", "line"))])
def test_fixed_angles_are_buffers(conv: str) -> None:
    layer = CONVS[conv](8, 8, 3)
    assert "angle" in layer.state_dict()
    assert ("angle" in dict(layer.named_parameters())) == (conv != "line" and not conv.endswith("-fixed"))


def test_rotate4_k5_has_two_more_taps() -> None:
    layer = CONVS["rotate4-k5"](4, 8, 3, padding=1)
    assert (layer.weight.shape, layer.kernel_size, layer.padding) == ((8, 4, 5), (5, 5), (2, 2))
    assert CONVS["rotate4-k5"](4, 8, 5, 1, "valid", (1, 2)).padding == (1, 2)


def test_line_alternates_rows_and_columns() -> None:
    kernel = CONVS["line"](6, 4, 3).kernel().detach()
    row, column = torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)
    row[1] = True
    column[:, 1] = True
    for o in range(4):
        for i in range(6):
            where = row if (o + i) % 2 == 0 else column
            assert (kernel[o, i][where].abs() > 1e-4).all()
            # cos(π/2) is 4e-8 in float32
            torch.testing.assert_close(kernel[o, i][~where], torch.zeros(6), rtol=0, atol=1e-6)


def test_rotate2b_deals_out_four_fixed_profiles() -> None:
    layer = CONVS["rotate2b"](6, 10, 3, bias=False)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "angle"}
    assert sum(parameter.numel() for parameter in layer.parameters()) == 2 * 6 * 10  # two numbers a slice
    profile = layer.profile
    assert "profile" in layer.state_dict()
    for row, shape in enumerate([(1, 1, 1), (-1, 0, 1), (1, -2, 1), (0, 0, 1)]):
        for dealt in profile[row::4]:
            torch.testing.assert_close(dealt / dealt[2], torch.tensor(shape) + 0.0, atol=1e-5, rtol=0)
    norms = torch.einsum("os,st,ot->o", profile, mean_gram(3).float(), profile)
    torch.testing.assert_close(norms, torch.ones(10))
    before = profile.clone()
    layer(torch.randn(2, 6, 5, 5)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=1.0, weight_decay=0.1).step()
    assert torch.equal(layer.profile, before)
    five, grouped = CONVS["rotate2b"](4, 8, 5).profile, CONVS["rotate2b"](4, 8, 3, angle_groups=2).profile
    assert five.shape == (8, 5)
    assert abs(five[1].sum()) < 1e-5
    assert abs(five[2] @ five[:2].T).max() < 1e-5  # the polynomials are orthogonal
    assert grouped.shape == (2, 4, 3)


def test_mask4_keeps_four_positions_of_every_slice() -> None:
    layer = CONVS["mask4"](16, 24, 3)
    assert layer.weight.shape == (24, 16, 4)
    kernel = layer.kernel().detach()
    for o in range(24):
        for i in range(16):
            expected = torch.zeros(9)
            for j in range(4):
                expected[layer.position[o, i, j].item()] += layer.weight[o, i, j].item()
            assert int((expected != 0).sum()) == 4
            torch.testing.assert_close(kernel[o, i].flatten(), expected, rtol=0, atol=0)


def test_mask4_keeps_every_position_equally_often() -> None:
    position = CONVS["mask4"](64, 64, 3).position
    share = torch.bincount(position.flatten().long(), minlength=9) / 64**2
    sigma = math.sqrt(4 / 9 * 5 / 9 / 64**2)
    torch.testing.assert_close(share, torch.full((9,), 4 / 9), rtol=0, atol=5 * sigma)
    assert (position.diff(dim=-1) > 0).all()
    assert len({tuple(p) for p in position.flatten(0, 1).tolist()}) == math.comb(9, 4)


def test_mask4_positions_are_fixed_and_saved() -> None:
    layer = MaskedConv2d(4, 6, 3)
    assert set(layer.state_dict()) == {"weight", "position", "bias"}
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    other = MaskedConv2d(4, 6, 3)
    assert not torch.equal(other.position, layer.position)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    before = layer.position.clone()
    torch.optim.SGD(layer.parameters(), lr=1.0, weight_decay=0.1).zero_grad()
    layer(x).square().sum().backward()
    assert torch.equal(layer.double().position, before)


@pytest.mark.parametrize("arguments", [a for a in ARGUMENTS if "dtype" not in a], ids=str)
def test_masked_convolution_is_the_convolution_with_its_kernel(arguments: dict[str, Any]) -> None:
    layer = MaskedConv2d(8, 12, 5, kept=7, dtype=torch.float64, **arguments)
    conv = nn.Conv2d(8, 12, 5, dtype=torch.float64, **arguments)
    with torch.no_grad():
        conv.weight.copy_(layer.kernel())
        if conv.bias is not None:
            conv.bias.copy_(layer.bias)
    x = torch.randn(2, 8, 12, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-12)


def test_masked_convolution_gradient() -> None:
    layer = MaskedConv2d(2, 3, 3, padding=1, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(layer, {"weight": weight}, (x,)), (layer.weight,)
    )


def test_separable_is_the_convolution_with_the_product_kernel() -> None:
    layer = SeparableConv2d(5, 7, 3, stride=2, padding=1, dilation=2, dtype=torch.float64)
    kernel = layer.pointwise.weight * layer.depthwise.weight[:, 0]  # [out, in, 1, 1] · [in, row, col]
    x = torch.randn(2, 5, 11, 11, dtype=torch.float64)
    expected = F.conv2d(x, kernel, layer.pointwise.bias, stride=2, padding=1, dilation=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [MaskedConv2d, SeparableConv2d, *CONVS.values()])
def test_reset_parameters_draws_again(make: Any) -> None:
    layer = make(8, 8, 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_drawn_from_the_seed() -> None:
    for name, conv in CONVS.items():
        torch.manual_seed(3)
        first = conv(8, 8, 3).state_dict()
        torch.manual_seed(3)
        second = conv(8, 8, 3).state_dict()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, msg=f"{name} {key}")


def test_representations_build_the_layer_again() -> None:
    layer = MaskedConv2d(4, 6, 5, stride=2, padding=1, bias=False, padding_mode="circular", kept=3)
    again = eval(repr(layer), {"MaskedConv2d": MaskedConv2d})
    assert repr(again) == repr(layer)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}


def test_masked_convolution_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="kept must be between 1 and the 9 positions of the kernel, got 10"):
        MaskedConv2d(4, 4, 3, kept=10)
    with pytest.raises(ValueError, match="kernel_size must be an odd integer >= 3, got 4"):
        MaskedConv2d(4, 4, 4)
    with pytest.raises(ValueError, match="in_channels must be divisible by groups, got in_channels=5 and groups=2"):
        MaskedConv2d(5, 4, 3, groups=2)
    with pytest.raises(ValueError, match="out_channels must be a positive integer, got 0"):
        MaskedConv2d(4, 0, 3)
    with pytest.raises(ValueError, match=r"padding_mode must be one of .*, got 'wrap'"):
        MaskedConv2d(4, 4, 3, padding_mode="wrap")
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type, got torch\.int64"):
        MaskedConv2d(4, 4, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="in_channels must be a positive integer, got 0"):
        SeparableConv2d(0, 4, 3)


def test_rotated_entries_are_rotated_layers() -> None:
    for name, make in CONVS.items():
        layer = make(8, 8, 3)
        assert isinstance(layer, RotateConv2d) == name.startswith(("rotate", "line"))


def test_the_fast_tests_have_a_layer_of_each_kind() -> None:
    def kinds(names: Iterable[str]) -> set[object]:
        return {type(CONVS[name](8, 8, 3)) for name in names}

    assert CONVS.keys() | MODELS.keys() >= FIRST
    assert kinds(FIRST & CONVS.keys()) == kinds(CONVS)
