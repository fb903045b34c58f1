"""Quantization: the grids, the nearest values on them, idempotence, and bad input."""

import math

import pytest
import torch
from torch import nn

from registries import each_conv
from rotateconv import CONVS, RotateConv2d, build_model, quantize
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.codebook import CodebookConv2d
from rotateconv.quantization.primitives import (
    EXPONENT_RANGE,
    angle_period,
    decode_angle,
    decode_weight,
    encode_angle,
    encode_weight,
    encode_weight_at,
    from_digits,
    scale,
    to_bf16,
    to_digits,
)
from rotateconv.quantization.qat import QuantizedTraining

FULL = 2 * math.pi


LEVELS = (2, 3, 4, 5, 6, 7, 8, 11, 15, 16, 31, 63, 64, 127, 128, 255)


def grid(levels: int) -> list[int]:
    """The codes of so many levels, as the formula has them."""
    return (
        [2 * i - (levels - 1) for i in range(levels)] if levels % 2 == 0 else [i - levels // 2 for i in range(levels)]
    )


def slow_encode(row: list[float], levels: int) -> tuple[list[int], int]:
    """Codes and exponent of one slice, by trying every scale there is, in plain Python."""
    codes_of = grid(levels)
    limit = max(codes_of)
    more = 1.5 if levels in (2, 3, 7, 15, 31, 63, 127, 255) else 1.0
    best: tuple[float, int, list[int]] | None = None
    largest = max(map(abs, row))
    for exponent in range(-200, 200):
        size = torch.tensor(2 ** (exponent / 8), dtype=torch.float32).item()
        if size > more * largest / limit * 1.0001:
            break
        codes = [min(codes_of, key=lambda c, ratio=w / size: abs(c - ratio)) for w in row]  # type: ignore[misc]
        error = sum((w - c * size) ** 2 for w, c in zip(row, codes, strict=True))
        if best is None or error <= best[0]:
            best = error, exponent, codes
    assert best is not None
    return best[2], best[1]


def test_the_scale_is_two_to_an_eighth_of_the_exponent() -> None:
    exponents = torch.arange(EXPONENT_RANGE[0], EXPONENT_RANGE[1] + 1)
    roots = torch.tensor([2.0 ** (i / 8) for i in range(8)])  # rounded to float32
    expected = torch.ldexp(roots[exponents % 8], exponents.div(8, rounding_mode="floor"))
    assert torch.equal(scale(exponents), expected)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_scale_has_the_least_squared_error_of_all(levels: int) -> None:
    weight = torch.randn(6, 25) * torch.tensor([1, 0.01, 5, 1, 1, 1])[:, None]
    weight[3] = weight[3] ** 3  # a few large ones, to be clipped
    codes, exponents = encode_weight(weight, levels)
    for row, found, exponent in zip(weight.tolist(), codes.tolist(), exponents.tolist(), strict=True):
        assert (found, exponent) == slow_encode(row, levels)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_are_symmetric_and_on_their_levels(levels: int) -> None:
    weight = torch.randn(8, 5, 7)
    codes, exponents = encode_weight(weight, levels)
    assert (codes.dtype, exponents.dtype) == (torch.int8, torch.int16)
    limit = max(grid(levels))
    assert set(codes.flatten().tolist()) <= set(grid(levels))
    assert limit / 1.5 - 0.5 <= codes.abs().amax() <= limit
    assert torch.equal(encode_weight(-weight, levels)[0], -codes)
    assert torch.equal(from_digits(to_digits(codes, levels), levels), codes.short())
    digits = to_digits(codes, levels)
    assert (digits.dtype, digits.max() < levels) == (torch.uint8, True)
    error = (decode_weight(codes, exponents) - weight).abs()
    size = scale(exponents)[:, None, None]
    clipped = codes.abs() == limit
    assert (error <= (size if levels % 2 == 0 else size / 2) * 1.0001)[~clipped].all()


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("columns", [1, 2, 3, 40])
def test_rounding_weights_twice_changes_nothing(levels: int, columns: int) -> None:
    weight = torch.randn(500, columns) * torch.randn(500, 1).exp()
    once = decode_weight(*encode_weight(weight, levels))
    assert torch.equal(decode_weight(*encode_weight(once, levels)), once)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 3e38])
def test_weights_of_any_size_stay_finite(size: float) -> None:
    weight = torch.linspace(-1, 1, 15)[None] * size
    rounded = decode_weight(*encode_weight(weight, 15))
    assert rounded.isfinite().all()
    torch.testing.assert_close(rounded, weight, rtol=0, atol=max(0.1 * size, 1e-38))


@pytest.mark.parametrize("levels", LEVELS)
def test_zeros_and_nothing_stay(levels: int) -> None:
    codes, exponents = encode_weight(torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]), levels)
    zero = (0, 0) if levels % 2 else (1, EXPONENT_RANGE[0])
    assert [(*set(codes[row].tolist()), exponents[row].item()) for row in (0, 2)] == [zero, zero]
    for shape in ((0, 4), (2, 0)):
        codes, exponents = encode_weight(torch.empty(shape), levels)
        assert (codes.shape, codes.dtype, exponents.dtype) == (shape, torch.int8, torch.int16)
        assert exponents.tolist() == [0] * shape[0]
        assert encode_weight_at(torch.empty(shape), torch.ones(shape[0]), levels)[0].shape == shape


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", [0.3, 1e-30, 1e30, 0.0, -1.0])
def test_at_any_scale_the_codes_are_the_nearest_and_found_again(levels: int, size: float) -> None:
    weight = torch.randn(6, 25)
    weight[2] = 0
    codes, exponents = encode_weight_at(weight, torch.full((6,), size), levels)
    assert (codes.dtype, exponents.dtype) == (torch.int8, torch.int16)
    once, step = decode_weight(codes, exponents), scale(exponents)[:, None]
    assert once[2].abs().max() <= 2.0**-126
    nearest = (step[..., None] * torch.tensor(grid(levels)) - weight[..., None]).abs().amin(-1)
    torch.testing.assert_close((once - weight).abs(), nearest)
    assert torch.equal(decode_weight(*encode_weight(once, levels)), once)


def test_more_rows_than_fit_at_once_give_the_same() -> None:
    weight = torch.randn(40, 9000)
    codes, exponents = encode_weight(weight, 15)
    for row in (0, 17, 39):
        one, exponent = encode_weight(weight[row : row + 1], 15)
        assert torch.equal(one[0], codes[row])
        assert exponent == exponents[row]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("period", [FULL, math.pi])
def test_angles_go_to_the_nearest_step_of_the_period(bits: int, period: float) -> None:
    angle = torch.linspace(-20, 20, 1001)
    codes = encode_angle(angle, bits, period)
    rounded = decode_angle(codes, bits, period)
    step = period / 2**bits
    away = (rounded.double() - angle.double() + period / 2).remainder(period) - period / 2
    assert away.abs().max() <= step / 2 + 1e-5
    assert len(codes.unique()) == 2**bits
    assert (rounded >= -period / 2).all()
    assert (rounded < period / 2).all()
    assert torch.equal(encode_angle(rounded, bits, period), codes)


def test_half_is_the_nearest_bfloat16_and_never_infinite() -> None:
    values = torch.tensor([1.0, -2.5, 1e-40, 3.4028e38, -3.4028e38, 0.0])
    assert torch.equal(to_bf16(values)[:3], values[:3].to(torch.bfloat16))
    assert to_bf16(values).isfinite().all()
    doubles = torch.tensor([1e300, -1e300], dtype=torch.float64)
    assert to_bf16(doubles).isfinite().all()


@each_conv
def test_every_number_of_a_model_is_on_its_grid(conv: str) -> None:
    model = build_model("resnet20", conv, width=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized = quantize(model, weight_bits=3, angle_bits=4, dense_bits=6)
    assert type(quantized) is type(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    seen = set()
    for name, module in quantized.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            original = before[f"{name}.{key}"]
            seen.add(key)
            if key == "angle":
                period = math.pi if module.taps == "shared" else FULL
                step = period / 16
                torch.testing.assert_close(tensor / step, (tensor / step).round(), rtol=0, atol=1e-5)
                off = (tensor - original + step / 2).remainder(period)
                assert ((off <= step + 1e-5) | (tensor == 0)).all()
            elif not tensor.is_floating_point():
                assert torch.equal(tensor, original)
            elif key == "codebook" or (key == "weight" and isinstance(module, CodebookConv2d)):
                index, factor = module.assign()  # the slices are multiples of the codebook's kernels, by few factors
                torch.testing.assert_close(module.weight, factor[..., None, None] * module.codebook[index])
                assert max(len(row.unique()) for row in (factor * 1e4).round()) <= 7
                assert max(len(row.unique()) for row in module.codebook.flatten(1)) > 7
            elif key == "weight" and tensor.dim() > 1:
                spatial = isinstance(module, ConvBase) or (
                    name != "stem"
                    and isinstance(module, nn.Conv2d)
                    and max(module.kernel_size) > 1
                    and module.groups == 1
                )
                limit = 3 if spatial else 31
                rows = tensor.detach().flatten(1)
                units = rows / scale(encode_weight(rows, 7 if spatial else 63)[1])[:, None]
                torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-4)
                assert limit / 2 <= units.abs().max() <= limit + 1e-4
                assert not spatial or len(rows[0].unique()) <= 7
                assert name != "stem" or len(rows[0].unique()) > 7
            else:
                assert torch.equal(tensor, original.to(torch.bfloat16).float())
    assert {"weight", "running_var", "num_batches_tracked"} <= seen


@pytest.mark.parametrize("levels", [None, 9, 16])
@each_conv
def test_quantizing_twice_changes_nothing(conv: str, levels: int | None) -> None:
    profile = None if levels is None else levels // 3
    once = quantize(build_model("resnet20", conv, width=0.25), weight_levels=levels, profile_bits=profile)
    twice = quantize(once, weight_levels=levels, profile_bits=profile).state_dict()
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.state_dict().items())


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (2, 4), (3, 5), (3, 6), (3, 8)])
def test_weights_have_so_many_levels_and_a_zero_where_their_number_is_odd(bits: int, levels: int) -> None:
    layer = quantize(RotateConv2d(64, 4, 3, taps="profile"), bits, 4, weight_levels=levels)
    assert [len(row.unique()) for row in layer.weight] == [levels] * 4
    assert bool((layer.weight == 0).any()) == (levels % 2 == 1)


@pytest.mark.parametrize("groups", [None, 2])
def test_each_profile_has_so_many_levels_and_a_scale(groups: int | None) -> None:
    layer = RotateConv2d(64, 4, 5, taps="profile", angle_groups=groups)
    torch.nn.init.normal_(layer.profile)
    found = quantize(layer, profile_bits=3).profile.flatten(0, -2)
    assert (found - layer.profile.flatten(0, -2)).abs().amax() < 0.3 * layer.profile.abs().amax()
    for row in found:
        step = row.abs()[row != 0].amin()
        multiples = [row / step * code for code in (1, 2, 3)]
        assert any(torch.allclose(codes.round(), codes, atol=1e-3) and codes.abs().amax() < 3.5 for codes in multiples)
    assert len({row.abs().amax().item() for row in found}) > 1


@pytest.mark.parametrize("conv", ["rotate4", "rotate2", "rotate2p", "rotate4-g4", "rotate2p-g4"])
def test_only_directions_without_weights_are_dropped(conv: str) -> None:
    layer = CONVS[conv](8, 16, 3)
    bits = {"weight_bits": 2, "angle_bits": 8}
    quantized = quantize(layer, **bits)
    kept = quantize(layer, weight_bits=2, angle_bits=8)
    with torch.no_grad():
        kept.angle.copy_(
            decode_angle(encode_angle(layer.angle, 8, angle_period(layer.taps)), 8, angle_period(layer.taps))
        )
    changed = kept.angle != quantized.angle
    assert changed.any() == (conv not in ("rotate4-g4",))  # no direction of that one is unused
    assert (quantized.angle[changed] == 0).all()
    assert torch.equal(kept.kernel(), quantized.kernel())


@pytest.mark.parametrize("taps", ["free", "profile"])
def test_three_bits_on_the_square_path_are_grid_lines(taps: str) -> None:
    layer = quantize(RotateConv2d(32, 16, 5, taps=taps, path="square"), angle_bits=3)
    kernel = layer.kernel().flatten(-2).detach()  # [out, in, cell]
    lines = [[10, 11, 12, 13, 14], [2, 7, 12, 17, 22], [0, 6, 12, 18, 24], [4, 8, 12, 16, 20]]
    off = torch.stack([kernel.index_fill(-1, torch.tensor(line), 0).abs().amax(-1) for line in lines])
    assert (off.amin(0) < 1e-6).all()
    circle = quantize(RotateConv2d(32, 16, 5, taps=taps), angle_bits=3).kernel().flatten(-2).detach()
    off = torch.stack([circle.index_fill(-1, torch.tensor(line), 0).abs().amax(-1) for line in lines])
    assert (off.amin(0) > 1e-3).any()


def test_more_bits_are_nearer() -> None:
    model = build_model("resnet20", "rotate4").eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        exact = model(images)
        errors = [
            (quantize(model, weight, angle)(images) - exact).norm() / exact.norm()
            for weight, angle in ((2, 3), (4, 5), (8, 8))
        ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors
    assert errors[2] < 0.1


def test_tied_parameters_stay_tied() -> None:
    layer = RotateConv2d(4, 4, 3)
    model = quantize(nn.Sequential(layer, nn.ReLU(), layer))
    assert model[0] is model[2]
    first, second = RotateConv2d(4, 4, 3), RotateConv2d(4, 4, 3)
    first.angle = second.angle
    first.weight.data[:, :2] = 0
    model = quantize(nn.Sequential(first, second), angle_bits=3)
    assert model[0].angle is model[1].angle
    turned = decode_angle(encode_angle(second.angle, 3, FULL), 3, FULL)
    assert torch.equal(model[1].angle, turned)  # unused in the first layer, not in the second


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_flags_are_kept(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), RotateConv2d(4, 4, 3), nn.BatchNorm2d(4)).to(dtype).eval()
    model[0].weight.requires_grad_(False)
    quantized = quantize(model)
    assert all(tensor.dtype == dtype for tensor in quantized.parameters())
    assert not quantized.training
    assert not quantized[0].weight.requires_grad
    assert quantized[1].weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"weight_bits": 0}, "weight_bits must be a whole number from 1 to 8, got 0"),
        ({"weight_bits": 9}, "weight_bits must be a whole number from 1 to 8, got 9"),
        ({"angle_bits": 1}, "angle_bits must be a whole number from 2 to 8, got 1"),
        ({"angle_bits": 5.0}, "angle_bits must be a whole number from 2 to 8, got 5.0"),
        ({"profile_bits": 1}, "profile_bits must be a whole number from 2 to 8, got 1"),
        ({"dense_bits": True}, "dense_bits must be a whole number from 1 to 8, got True"),
        ({"weight_bits": 2, "weight_levels": 2}, "weight_levels must be from 3 to 4 with 2 bits, got 2"),
        ({"weight_bits": 3, "weight_levels": 9}, "weight_levels must be from 5 to 8 with 3 bits, got 9"),
        ({"weight_bits": 1, "weight_levels": 3}, "weight_levels must be 2 with 1 bits, got 3"),
        ({"weight_bits": 8, "weight_levels": 254}, "weight_levels must be 255 with 8 bits, got 254"),
        ({"weight_levels": 15.0}, "weight_levels must be from 9 to 16 with 4 bits, got 15.0"),
    ],
)
def test_bits_out_of_range(arguments: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        quantize(nn.Linear(2, 2), **arguments)
    with pytest.raises(ValueError, match=match):
        QuantizedTraining(nn.Linear(2, 2), **arguments)


@pytest.mark.parametrize("key", ["weight", "angle", "profile"])
def test_numbers_that_are_not_finite(key: str) -> None:
    model = nn.Sequential(RotateConv2d(2, 2, 3, taps="profile"))
    getattr(model[0], key).data.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=f"cannot quantize 0.{key}: only finite numbers can be quantized .* nan"):
        quantize(model)


def test_complex_numbers_are_refused() -> None:
    model = nn.Module()
    model.register_buffer("spectrum", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"cannot quantize spectrum: expected real numbers, got torch.complex64"):
        quantize(model)
