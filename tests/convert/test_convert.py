"""Laws of convert: what is replaced and what stays, ties, the report's numbers, and a model unharmed by errors."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from rotateconv import ConversionReport, RotateConv2d, convert, fit_line
from rotateconv.convert.convert import convert_layers
from rotateconv.convert.module_swap import replace_modules
from rotateconv.models import CONVS, build_model
from tolerances import assert_close


class Model(nn.Module):
    """One convolution of each kind, under a name that says which."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, padding=3)
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 12, 5, padding=2, bias=False)
        self.oblong = nn.Conv2d(12, 8, (1, 3), padding=(0, 1))
        self.even = nn.Conv2d(8, 8, 4, padding=3, dilation=2)
        self.inner = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1))
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


CONVERTED = ["plain", "grouped", "wide", "inner.1"]
REASONS = {
    "stem": "the stem",
    "pointwise": "1x1 kernel",
    "depthwise": "depthwise",
    "oblong": "1x3 kernel",
    "even": "4x4 kernel",
    "up": "ConvTranspose2d, not nn.Conv2d",
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def everything(name: str, conv: nn.Conv2d) -> bool:
    return True


def two(**arguments: Any) -> nn.Sequential:
    """A stem and one convolution that is converted by default, named "1"."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, **arguments))


def test_every_kind_of_convolution_is_converted_or_has_its_reason() -> None:
    model = Model()
    report = convert(model)
    assert [entry.name for entry in report.converted] == CONVERTED
    assert {entry.name: entry.reason for entry in report.skipped} == REASONS
    for name, module in model.named_modules():
        assert isinstance(module, RotateConv2d) == (name in CONVERTED)
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 8, 9, 9)


def test_everything_includes_the_stem_and_depthwise_ones() -> None:
    report = convert(Model(), where=everything)
    assert {entry.name for entry in report.converted} == {*CONVERTED, "stem", "depthwise"}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (lambda name, conv: name.startswith("inner"), ["inner.1"]),
        (lambda name, conv: conv.kernel_size == (5, 5), ["wide"]),
        (lambda name, conv: conv.groups > 1, ["grouped", "depthwise"]),
    ],
)
def test_where_alone_decides_by_name_and_by_module(
    where: Callable[[str, nn.Conv2d], bool], expected: list[str]
) -> None:
    model, asked = Model(), []

    def noted(name: str, conv: nn.Conv2d) -> bool:
        asked.append((name, conv))
        return where(name, conv)

    eligible = [
        (name, model.get_submodule(name)) for name in ("stem", "plain", "grouped", "depthwise", "wide", "inner.1")
    ]
    report = convert(model, where=noted)
    assert asked == eligible  # each once, and only those
    assert [entry.name for entry in report.converted] == expected
    left = [entry.name for entry in report.skipped if entry.reason == "filtered out by where"]
    assert left == [name for name, _ in eligible if name not in expected]


@pytest.mark.parametrize("taps", ["free", "shared", "profile"])
@pytest.mark.parametrize("path", ["circle", "square"])
@pytest.mark.parametrize(("angle_groups", "learn_angle"), [(None, True), (4, False)])
def test_layers_are_those_of_from_conv(taps: Any, path: Any, angle_groups: int | None, learn_angle: bool) -> None:
    model = two(bias=False).requires_grad_(False)
    expected = RotateConv2d.from_conv(model[1], taps, path, angle_groups, learn_angle)
    convert(model, taps, path=path, angle_groups=angle_groups, learn_angle=learn_angle)
    assert repr(model[1]) == repr(expected)
    assert model[1].state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model[1].state_dict()[name], tensor)
    assert dict(model[1].named_parameters()).keys() == dict(expected.named_parameters()).keys()


@pytest.mark.parametrize("taps", ["free", "shared", "profile"])
def test_the_reports_numbers_are_sums_over_parameters(taps: Any) -> None:
    model = Model()
    before = copy.deepcopy(model)
    report = convert(model, taps)
    assert (report.parameters_before, report.parameters_after) == (count(before), count(model))
    assert report.parameters_after < report.parameters_before
    assert len(report.entries) == 10
    for entry in report.entries:
        old, new = before.get_submodule(entry.name), model.get_submodule(entry.name)
        assert entry.shape == tuple(old.weight.shape)
        assert (entry.parameters_before, entry.parameters_after) == (count(old), count(new))
        assert (entry.residual is None) == (entry.reason is not None) == (type(old) is type(new))
        if entry.residual is not None:
            left = fit_line(old.weight, taps).residual.double().norm() / old.weight.double().norm()
            assert entry.residual == pytest.approx(left.item(), rel=1e-5)
            assert 0.1 < entry.residual < 1


def test_resnet20_gets_the_size_of_a_model_built_with_rotate4() -> None:
    report = convert(build_model("resnet20", "conv3x3"))
    assert (report.parameters_before, report.parameters_after) == (269_722, 121_242)
    assert [entry.name for entry in report.skipped] == ["stem"]


def test_line_segments_are_converted_without_loss() -> None:
    model = two()
    line = RotateConv2d(4, 8, 3)
    model[1] = line.fuse()
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    (entry,) = convert(model).converted
    assert entry.residual == pytest.approx(0, abs=1e-5)
    assert_close(model(x), expected)


def test_a_kernel_of_zeros_has_no_residual() -> None:
    model = two()
    nn.init.zeros_(model[1].weight)
    (entry,) = convert(model).converted
    assert entry.residual == 0
    assert torch.equal(model[1].kernel(), torch.zeros(8, 4, 3, 3))


def test_str_is_a_table_with_a_line_for_every_convolution() -> None:
    report = convert(Model())
    head, rule, *rows, second_rule, total = str(report).splitlines()
    assert rule == second_rule == "-" * max(map(len, str(report).splitlines()))
    assert [row.split()[0] for row in rows] == [entry.name for entry in report.entries]
    assert head.split()[:3] == ["convolution", "kernel", "parameters"]
    assert re.split(r"  +", rows[0]) == ["stem", "8x3x7x7", "1,184", "1,184", "skipped: the stem"]
    plain = report.converted[0]
    assert re.split(r"  +", rows[1]) == ["plain", "8x8x3x3", "584", "264", f"{plain.residual:.4f}"]
    assert f"{report.parameters_before:,}" in total
    assert f"{report.parameters_after:,}" in total


def test_the_report_is_frozen() -> None:
    report = convert(two())
    for part, field in ((report, "entries"), (report.entries[0], "name")):
        with pytest.raises(dataclasses.FrozenInstanceError, match=field):
            setattr(part, field, ())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_training_flags_and_requires_grad_are_kept(dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    model.plain.eval()
    model.wide.requires_grad_(False)
    flags = {name: module.training for name, module in model.named_modules()}
    convert(model)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {p.requires_grad for p in model.wide.parameters()} == {False}
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("wide"))


def test_biases_stay_the_same_parameters() -> None:
    model = two()
    bias = model[1].bias
    convert(model)
    assert model[1].bias is bias


def test_tied_modules_stay_tied() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), conv, nn.Sequential(conv, nn.ReLU(), conv))
    report = convert(model)
    assert isinstance(model[1], RotateConv2d)
    assert model[1] is model[2][0] is model[2][2]
    assert [entry.name for entry in report.converted] == ["1"]
    assert report.parameters_after == count(model[0]) + count(model[1])


@pytest.mark.parametrize("taps", ["free", "profile"])
@pytest.mark.parametrize("learn_angle", [True, False])
def test_shared_weights_stay_shared(taps: Any, learn_angle: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2, bias=False))
    model[2].weight = model[1].weight
    report = convert(model, taps, learn_angle=learn_angle)
    first, second = model[1], model[2]
    assert first is not second
    assert first.weight is second.weight
    assert first.angle is second.angle
    assert first.profile is second.profile
    assert (first.profile is None) == (taps == "free")
    assert (second.bias, second.stride) == (None, (2, 2))
    assert report.parameters_after == count(model[0]) + count(first)
    model(torch.randn(1, 3, 12, 12)).sum().backward()
    assert first.weight.grad is not None


def test_shared_weights_stay_as_they_are_if_only_some_would_be_converted() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4)))
    model[1].weight = model[2].weight = model[0].weight
    report = convert(model)
    assert [entry.name for entry in report.converted] == ["3"]
    assert model[0].weight is model[1].weight is model[2].weight
    assert [entry.reason for entry in report.skipped] == ["the stem", *["shares its weight with 0"] * 2]


def test_a_weight_that_the_model_uses_itself_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model.register_parameter("kernel", model[1].weight)
    report = convert(model)
    assert report.entries[1].reason == "shares its weight with the model itself"


class Subclass(nn.Conv2d):
    """A type of its own."""


def _replace_forward(conv: nn.Conv2d) -> None:
    conv.forward = lambda x: x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda conv: setattr(conv, "__class__", Subclass), "Subclass, not nn.Conv2d"),
        (parametrizations.weight_norm, "ParametrizedConv2d, not nn.Conv2d"),
        (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "has hooks"),
        (lambda conv: conv.register_forward_hook(lambda *_: None), "has hooks"),
        (lambda conv: conv.register_full_backward_hook(lambda *_: None), "has hooks"),
        (lambda conv: conv.register_state_dict_post_hook(lambda *_: None), "has hooks"),
        (lambda conv: conv.weight.register_hook(lambda gradient: None), "has hooks"),
        (_replace_forward, "has hooks"),
        (lambda conv: conv.to("meta"), "on the meta device"),
        (lambda conv: conv.to(torch.complex64), "torch.complex64 weights"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_convolutions_that_cannot_be_replaced_stay(change: Callable[[nn.Conv2d], Any], reason: str) -> None:
    model = nn.Sequential(*two(), nn.Conv2d(8, 8, 3))
    conv = model[1]
    change(conv)
    report = convert(model, where=everything)
    assert model[1] is conv
    assert [entry.reason for entry in report.entries] == [None, reason, None]


def test_angle_groups_select_the_divisible_ones() -> None:
    model = Model()
    report = convert(model, angle_groups=8)
    assert [entry.name for entry in report.converted] == ["plain", "grouped", "inner.1"]
    reasons = {entry.name: entry.reason for entry in report.skipped}
    assert reasons["wide"] == "12 output channels, not divisible by angle_groups=8"
    assert model.plain.angle.shape == (8, 8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "the model has no convolution"),
        (nn.Sequential(nn.Conv1d(2, 2, 3)), r"Conv1d, not nn.Conv2d \(1\)$"),
        (
            nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1)),
            r"the stem \(1\), 1x1 kernel \(1\); where \(--only\) can",
        ),
        (build_model("resnet20", "rotate4"), r"the stem \(1\); where \(--only\) can include"),
        (nn.Conv2d(2, 2, 3), "use RotateConv2d.from_conv"),
        (nn.Sequential(nn.LazyConv2d(2, 3)), "run a batch through it first"),
    ],
)
def test_a_model_without_anything_to_convert_is_an_error(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(model)


def test_nothing_left_by_where_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"filtered out by where \(2\)$"):
        convert(two(), where=lambda name, conv: False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"taps": "rotate4"}, "taps must be one of"),
        ({"path": "ring"}, "path must be one of"),
        ({"angle_groups": 0}, "angle_groups must be a positive integer"),
    ],
)
def test_unknown_arguments_are_errors(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(two(), **arguments)


def test_a_failed_fit_names_the_layer_and_leaves_the_model_unchanged() -> None:
    model = Model()
    with torch.no_grad():
        model.inner[1].weight[3, 2, 1, 0] = math.nan
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"cannot convert inner\.1: kernel must be finite"):
        convert(model)
    assert dict(model.named_modules()) == modules


def test_replace_modules_finds_every_name() -> None:
    old, new = nn.ReLU(), nn.GELU()
    model = nn.ModuleDict({"a": old, "b": nn.Sequential(nn.Identity(), old, old)})
    model.register_module("none", None)
    replace_modules(model, {old: new})
    assert model["a"] is model["b"][1] is model["b"][2] is new


def test_an_optimizer_made_afterwards_trains_the_converted_model() -> None:
    model = two()
    report = convert(model, taps="shared")
    assert isinstance(report, ConversionReport)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(4, 3, 8, 8)
    losses = []
    for _ in range(5):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert model[1].angle.grad.abs().sum() > 0


@pytest.mark.parametrize("conv", [conv for conv in CONVS if not conv.startswith("conv")])
def test_layers_of_any_kind_take_the_place_of_dense_ones(conv: str) -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1, dtype=torch.float64)
    tied = nn.Conv2d(8, 8, 3, padding=1, dtype=torch.float64)
    tied.weight = shared.weight
    model = nn.Sequential(nn.Conv2d(3, 8, 3, dtype=torch.float64), shared, tied.eval())
    kernel, biases = shared.weight.detach().clone(), [shared.bias.detach().clone(), tied.bias.detach().clone()]
    report = convert_layers(model, CONVS[conv])
    assert [entry.name for entry in report.converted] == ["1", "2"]
    residual = report.converted[0].residual
    found = model[1].kernel().detach()
    around = (found.shape[-1] - 3) // 2
    wanted = nn.functional.pad(kernel, (around,) * 4)
    assert residual == pytest.approx(((found - wanted).norm() / wanted.norm()).item())
    assert residual < 1
    assert torch.equal(model[2].kernel(), model[1].kernel())
    assert [layer.training for layer in model] == [True, True, False]
    for layer, bias in zip((model[1], model[2]), biases, strict=True):
        assert torch.equal(layer.bias, bias)


def test_a_layer_that_cannot_be_fitted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match="cannot convert 1: a Conv2d cannot be fitted to a dense kernel"):
        convert_layers(model, CONVS["conv5x5"])
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Conv2d]
