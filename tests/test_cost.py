"""Costs: agreement with torch's own counter, tables by hand, and a model that stays as it was."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rotateconv.cost import LayerCost, cost
from rotateconv.models import CONVS, MODELS, build_model
from rotateconv.models.resnet import ResNet
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.masked import MaskedConv2d


def counted_multiply_adds(model: nn.Module, *size: int) -> int:
    """torch's own count for one image: two floating-point operations are one multiply-add."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *size, device=device))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def fused(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, ConvBase):
                setattr(module, name, child.fuse())
    assert not any(isinstance(module, ConvBase) for module in model.modules())
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "conv"),
    [
        *(("resnet20", conv) for conv in CONVS),
        *((name, conv) for conv in ("conv3x3", "rotate4") for name in MODELS if name != "resnet20"),
    ],
)
def test_totals_agree_with_torchs_counter_on_the_fused_model(name: str, conv: str) -> None:
    with torch.device("meta"):
        model = build_model(name, conv)
    plain = fused(model)
    found = cost(model, (3, 32, 32))
    assert found.multiply_adds == found.fused_multiply_adds == counted_multiply_adds(plain, 3, 32, 32)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.fused_parameters == sum(p.numel() for p in plain.parameters())


def test_one_layer_by_hand() -> None:
    layer = RotateConv2d(4, 6, 5, stride=2, padding=2, groups=2, bias=True, taps="free")
    (row,) = cost(layer, (4, 8, 8)).rows
    slices, positions = 6 * 2, 4 * 4
    assert row == LayerCost(
        name="",
        kind="RotateConv2d",
        parameters=slices * 6 + 6,
        bytes=4 * (slices * 6 + 6),
        multiply_adds=slices * 25 * positions,
        kernel_multiply_adds=slices * (5 * 25 + 5 * 25),
        fused_parameters=slices * 25 + 6,
        fused_bytes=4 * (slices * 25 + 6),
        separable_multiply_adds=None,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"taps": "free"}, 32 * 54),
        ({"taps": "shared"}, 32 * 54),
        ({"taps": "profile"}, 32 * 54 + 32 * 3),
        ({"taps": "free", "angle_groups": 2}, 32 * 54),
        ({"taps": "shared", "angle_groups": 2}, 2 * 4 * 54 + 32 * 9),
        ({"taps": "profile", "angle_groups": 2}, 2 * 4 * 54 + 32 * 9),
    ],
)
def test_building_kernels_costs_the_same_for_any_image(arguments: dict[str, Any], expected: int) -> None:
    layer = RotateConv2d(4, 8, 3, **arguments)
    for size in (5, 9):
        assert cost(layer, (4, size, size)).kernel_multiply_adds == expected


def separable_form(layer: RotateConv2d) -> nn.Module:
    """The line filters at the input channels, then a pointwise convolution over them."""
    assert layer.angle_groups is not None
    fan, per_angle = layer.weight.shape[1], layer.out_channels // layer.angle_groups
    per_group = layer.out_channels // layer.groups
    with torch.no_grad():
        kernel = layer.kernel()
        pairs = sorted({(o // per_angle, o // per_group) for o in range(layer.out_channels)})
        filters, inputs, weights = [], [], []
        for angle, group in pairs:
            members = [o for o in range(layer.out_channels) if (o // per_angle, o // per_group) == (angle, group)]
            for i in range(fan):
                filters.append(kernel[members[0], i] / layer.weight[members[0], i])
                inputs.append(group * fan + i)
            weights.append(layer.weight[members, :, 0])
        runs = [len(weight) for weight in weights]

    class Separable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x[:, inputs]
            depthwise = torch.stack(filters)[:, None]
            x = nn.functional.conv2d(
                x, depthwise, None, layer.stride, layer.padding_pixels, layer.dilation, len(inputs)
            )
            parts = x.split(fan, 1)
            return torch.cat(
                [nn.functional.conv2d(p, w[:, :, None, None]) for p, w in zip(parts, weights, strict=True)], 1
            )

    assert sum(runs) == layer.out_channels
    return Separable()


@pytest.mark.parametrize("taps", ["shared", "profile"])
@pytest.mark.parametrize(("angle_groups", "groups"), [(1, 1), (3, 1), (12, 1), (1, 4), (4, 4), (3, 4), (4, 2), (6, 4)])
def test_separable_form(taps: Any, angle_groups: int, groups: int) -> None:
    layer = RotateConv2d(
        8, 12, 3, 2, 1, groups=groups, bias=False, dtype=torch.float64, taps=taps, angle_groups=angle_groups
    )
    form = separable_form(layer)
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(form(x), layer(x), rtol=1e-9, atol=1e-9)  # the same layer
    with FlopCounterMode(display=False) as counter:
        form(x)
    assert cost(layer, (8, 9, 9)).separable_multiply_adds == counter.get_total_flops() // 2


def test_separable_total_takes_the_other_layers_fused() -> None:
    found = cost(build_model("resnet20", "rotate2p-g4"), (3, 32, 32))
    separable = [row for row in found.rows if row.separable_multiply_adds is not None]
    assert {row.kind for row in separable} == {"RotateConv2d"}
    assert len(separable) == 18
    saved = sum(row.multiply_adds - (row.separable_multiply_adds or 0) for row in separable)
    assert found.separable_multiply_adds == found.multiply_adds - saved
    assert found.multiply_adds / found.separable_multiply_adds > 3.5


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["rotate4", "rotate4-fixed", "mask4"])
def test_bytes_are_those_of_the_state(conv: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = ResNet(8, conv).to(dtype)
        tensors = model.state_dict().values()
        assert cost(model, (3, 32, 32)).bytes == sum(t.numel() * t.element_size() for t in tensors)
        plain = fused(model)
        tensors = plain.state_dict().values()
        assert cost(model, (3, 32, 32)).fused_bytes == sum(t.numel() * t.element_size() for t in tensors)


def test_the_masked_layer() -> None:
    (row,) = cost(MaskedConv2d(4, 6, 3, bias=False), (4, 5, 5)).rows
    assert (row.parameters, row.bytes) == (24 * 4, 24 * 4 * (4 + 2))
    assert (row.fused_parameters, row.fused_bytes) == (24 * 9, 24 * 9 * 4)
    assert (row.multiply_adds, row.kernel_multiply_adds) == (24 * 9 * 9, 0)


class Assorted(nn.Module):
    """Layers that are called twice, not at all, or share their parameters, and a few that are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = RotateConv2d(3, 3, 3, padding=1)
        self.never = nn.Linear(7, 5)
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2, groups=1)
        self.grouped_up = nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2)
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.embedding = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped_up(self.up(self.twice(self.twice(x))))
        return self.tied(self.first(x.permute(0, 2, 3, 1) + self.embedding))


def test_layers_of_every_kind() -> None:
    model = Assorted()
    found = cost(model, (3, 6, 6))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.multiply_adds == counted_multiply_adds(fused(model), 3, 6, 6)
    rows = {row.name: row for row in found.rows}
    assert rows["twice"].multiply_adds == 2 * 9 * 9 * 36
    assert (rows["never"].parameters, rows["never"].multiply_adds) == (40, 0)
    assert (rows["first"].parameters, rows["tied"].parameters) == (20, 4)
    assert (rows[""].kind, rows[""].parameters) == ("Assorted", 4)


def test_the_model_stays_as_it_was() -> None:
    model = build_model("resnet20", "rotate4")
    model.stages[1].eval()
    calls: list[object] = []
    handle = model.register_forward_hook(lambda *inputs: calls.append(inputs))
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    hooks = [list(module._forward_hooks) for module in model.modules()]
    identities = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    cost(model, (3, 16, 16))
    assert flags == [module.training for module in model.modules()]
    assert hooks == [list(module._forward_hooks) for module in model.modules()]
    assert identities == [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not calls
    handle.remove()


def test_weights_that_a_pre_hook_computes() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
    found = cost(conv, (3, 8, 8))
    assert found.multiply_adds == 4 * 27 * 64
    assert found.parameters == 4 * 27 + 4 + 4


def test_a_layer_that_runs_separably_has_both_costs() -> None:
    rows = [
        cost(RotateConv2d(8, 8, 3, padding=1, taps="shared", angle_groups=2, form=form), (8, 9, 9)).rows[0]
        for form in ("dense", "separable")
    ]
    assert rows[0] == rows[1]
    assert rows[0].multiply_adds == 8 * 8 * 9 * 81
    assert rows[0].separable_multiply_adds == (2 * 8 * 9 + 8 * 8) * 81


class Attention(nn.Module):
    """Products of tensors, outside of every layer that holds numbers."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        return rows @ rows.mT


def test_products_outside_of_layers_have_a_row() -> None:
    found = cost(nn.Sequential(nn.Conv2d(3, 4, 1), Attention()), (3, 5, 5))
    assert [(row.kind, row.parameters, row.multiply_adds) for row in found.rows] == [
        ("Conv2d", 16, 3 * 4 * 25),
        ("Attention", 0, 4 * 25 * 4),
    ]


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = RotateConv2d(3, 8, 3, taps="shared", angle_groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.max() > 0 else x


def test_a_model_that_needs_values_has_unknown_multiply_adds() -> None:
    found = cost(LooksAtValues(), (3, 8, 8))
    assert (found.parameters, found.fused_parameters) == (8 * 3 + 2 * 3 + 8, 8 * 27 + 8)
    assert (found.multiply_adds, found.fused_multiply_adds, found.separable_multiply_adds) == (None, None, None)
    assert found.rows[0].multiply_adds is None
    *_, row, _, total, why = str(found).splitlines()
    assert row.split().count("unknown") == total.split().count("unknown") == 2
    assert re.match(r"multiply-adds are unknown: the model does not run on the meta device \(.+\)$", why)


def test_the_table_shows_rows_and_totals() -> None:
    found = cost(build_model("resnet20", "rotate2p-g4"), (3, 32, 32))
    lines = str(found).splitlines()
    assert len(lines) == len(found.rows) + 4
    assert lines[0].split("  ")[0] == "layer"
    assert lines[-1].startswith("total")
    assert "one image of 3 x 32 x 32" in lines[-1]
    numbers = [f"{number:,}" for number in (found.parameters, found.bytes, found.multiply_adds)]
    assert lines[-1].split()[-7:-4] == numbers
    assert lines[-1].split()[-1] == f"{found.separable_multiply_adds:,}"
    assert "stages.0.0.conv1  RotateConv2d" in lines[4]
    assert len({len(line) for line in lines}) == 1  # columns are aligned to the right edge


@pytest.mark.parametrize("size", [(32, 32), (1, 3, 32, 32)])
def test_the_size_of_one_image(size: Any) -> None:
    with pytest.raises(ValueError, match=r"input_size must be \(channels, height, width\), got"):
        cost(nn.Conv2d(3, 3, 3), size)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="every number of input_size must be a positive integer, got 0"):
        cost(nn.Conv2d(3, 3, 3), (3, 0, 8))
