"""The models: exact parameter counts, where the convolutions go, what torch can do with them, and bad input."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from registries import each_model
from rotateconv.models import CONVS, MODELS, build_model, equal_size_width
from rotateconv.models.densenet import DenseLayer, DenseNet
from rotateconv.models.resnet import ResidualBlock, ResNet, ShortcutA
from rotateconv.nn.conv import RotateConv2d

# parameters at 10 classes and 3 channels: conv3x3, rotate4, rotate2
COUNTS = {
    "resnet20": (269_722, 121_242, 61_850),
    "resnet32": (464_154, 208_154, 105_754),
    "resnet44": (658_586, 295_066, 149_658),
    "resnet56": (853_018, 381_978, 193_562),
    "resnet110": (1_727_962, 773_082, 391_130),
    "densenet40": (1_019_722, 531_562, 336_298),
    "densenet100": (6_979_642, 3_604_282, 2_254_138),
    "densenet-bc100": (769_162, 630_922, 575_626),
}
# 29,696 slices of resnet20 take a convolution of the registry, in 672 output channels of 18 layers
RESNET20 = {
    "conv3x3": 269_722,
    "rotate4": 121_242,
    "rotate2": 61_850,
    "rotate2p": 63_866,
    "rotate4-fixed": 121_242 - 29_696,
    "rotate2p-fixed": 63_866 - 29_696,
    "line": 121_242 - 29_696,
    "mask4": 121_242,
    "separable": 37_770,  # 8 numbers fewer a slice, then 9 for each of the 624 input channels
    "rotate4-g4": 94_042,
    "rotate2p-g4": 42_138,
    "rotate2b": 61_850,
    "rotate4-k5": 121_242 + 2 * 29_696,
    "rotate2p-k5": 63_866 + 2 * 672,  # the same numbers a slice, two more a channel
    "codebook16": 269_722 + 18 * 16 * 9,  # in training: what the indices are learned by counts
    "codebook32": 269_722 + 18 * 32 * 9,
    "lowrank4": 121_594,  # as near to 4 and 2 numbers a slice as a whole rank comes
    "lowrank2": 61_258,
    "outer": 269_722 - 3 * 29_696,
    "pattern4": 121_242,
    "conv5x5": 269_722 + 16 * 29_696,
    "conv7x7": 269_722 + 40 * 29_696,
    "conv3x3-d2": 269_722,
    "rotate2-k5": 61_850,
    "rotate2p-g4-k5": 42_138 + 2 * 4 * 624,
    "rotate4-k7": 121_242 + 4 * 29_696,
    "rotate2-k7": 61_850,
    "rotate2p-k7": 63_866 + 4 * 672,
    "rotate2p-g4-k7": 42_138 + 4 * 4 * 624,
    "rotate4-k9": 121_242 + 6 * 29_696,
    "rotate2-k9": 61_850,
    "rotate2p-k9": 63_866 + 6 * 672,
    "rotate2p-g4-k9": 42_138 + 6 * 4 * 624,
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(*args: object, **kwargs: object) -> nn.Module:
    with torch.device("meta"):
        return build_model(*args, **kwargs)  # type: ignore[arg-type]


def test_the_registries_are_complete() -> None:
    assert list(MODELS) == list(COUNTS)
    assert list(CONVS) == list(RESNET20)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name: str) -> None:
    found = tuple(count(on_meta(name, conv)) for conv in ("conv3x3", "rotate4", "rotate2"))
    assert found == COUNTS[name]


@pytest.mark.parametrize("conv", CONVS)
def test_parameter_counts_of_every_convolution(conv: str) -> None:
    assert count(on_meta("resnet20", conv)) == RESNET20[conv]


@pytest.mark.parametrize("name", MODELS)
def test_every_3x3_convolution_but_the_stem_is_made_by_conv(name: str) -> None:
    class Marked(nn.Conv2d):
        pass

    model = on_meta(name, Marked)
    dense = {n: m for n, m in model.named_modules() if type(m) is nn.Conv2d}
    marked = [m for m in model.modules() if isinstance(m, Marked)]
    assert dense.pop("stem").kernel_size == (3, 3)
    assert all(module.kernel_size == (1, 1) for module in dense.values())
    assert all(module.kernel_size == (3, 3) for module in marked)
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Conv2d))
    depth = int("".join(filter(str.isdigit, name)))
    assert len(marked) + len(dense) + 2 == depth  # and the stem and the linear layer


@each_model
def test_output_shape_at_every_input_size(name: str) -> None:
    model = on_meta(name, "conv3x3", num_classes=7, in_channels=1)
    for size in ((8, 8), (9, 13), (32, 32)):
        assert model(torch.empty(2, 1, *size, device="meta")).shape == (2, 7)


def test_shortcut_a_takes_every_second_cell_and_adds_channels_of_zeros() -> None:
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    expected = torch.zeros(1, 3, 3, 3)
    expected[0, 0] = torch.tensor([[0.0, 2, 4], [10, 12, 14], [20, 22, 24]])
    torch.testing.assert_close(ShortcutA(2, 2)(x), expected, rtol=0, atol=0)


def test_a_residual_block_adds_the_shortcut_before_the_last_relu() -> None:
    block = ResidualBlock(nn.Conv2d, 4, 8, 2).eval()
    nn.init.zeros_(block.norm2.weight)
    nn.init.constant_(block.norm2.bias, -0.5)
    x = torch.randn(2, 4, 8, 8)
    expected = torch.zeros(2, 8, 4, 4)
    expected[:, :4] = (x[:, :, ::2, ::2] - 0.5).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


def test_a_dense_layer_keeps_what_came_in_and_adds_its_own_channels() -> None:
    layer = DenseLayer(nn.Conv2d, 5, 3, 0.0, bottleneck=False).eval()
    x = torch.randn(2, 5, 8, 8)
    y = layer(x)
    torch.testing.assert_close(y[:, :5], x, rtol=0, atol=0)
    new = nn.functional.conv2d(layer[0](x).clamp(min=0), layer[2].weight, padding=1)
    torch.testing.assert_close(y[:, 5:], new)


def test_channels_of_a_compressed_densenet() -> None:
    model = on_meta("densenet-bc100", "conv3x3")
    kept = [m.out_channels for m in model.modules() if type(m) is nn.Conv2d and m.kernel_size == (1, 1)]
    assert model.stem.out_channels == 24
    assert [channels for channels in kept if channels != 48] == [(24 + 192) // 2, (108 + 192) // 2]
    assert model.classifier.in_features == 150 + 192


def test_the_layers_keep_their_own_initialization() -> None:
    made: list[tuple[RotateConv2d, Tensor]] = []

    def conv(*args: int, **kwargs: int) -> RotateConv2d:
        layer = RotateConv2d(*args, **kwargs)
        made.append((layer, layer.kernel().detach().clone()))
        return layer

    for name in ("resnet20", "densenet40"):
        build_model(name, conv)
        assert made
        for layer, kernel in made:
            torch.testing.assert_close(layer.kernel(), kernel, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_dense_convolutions_are_kaiming_normal(name: str) -> None:
    model = build_model(name, "conv3x3")
    sums, numbers = 0.0, 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            sums += (module.weight.square().sum() * fan_in / 2).item()
            numbers += module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert sums / numbers == pytest.approx(1, abs=6 * math.sqrt(2 / numbers))


@pytest.mark.parametrize(("width", "base"), [(0.25, 4), (11 / 16, 11), (1.0, 16), (2.5, 40)])
def test_width_of_a_resnet(width: float, base: int) -> None:
    model = on_meta("resnet20", "conv3x3", width=width)
    channels = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [base] * 7 + [2 * base] * 6 + [4 * base] * 6


def test_width_of_a_densenet_is_a_factor_on_its_growth() -> None:
    assert count(on_meta("densenet40", "conv3x3", width=0.5)) == count(on_meta("densenet40", "conv3x3", growth=6))
    assert count(on_meta("densenet40", "conv3x3", growth=24, width=0.5)) == COUNTS["densenet40"][0]


@pytest.mark.slow
def test_equal_size_width_of_resnet20() -> None:
    for target, width, parameters in ((121_242, 11 / 16, 128_017), (63_866, 8 / 16, 68_050)):
        assert equal_size_width("resnet20", target) == width
        assert count(on_meta("resnet20", "conv3x3", width=width)) == parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "conv"), [("resnet20", "conv3x3"), ("resnet32", "rotate4"), ("densenet40", "conv3x3")]
)
def test_equal_size_width_has_no_nearer_neighbor(name: str, conv: str) -> None:
    step = 1 / 12 if name.startswith("densenet") else 1 / 16
    for target in (1, COUNTS[name][2], 3_000_000):
        width = equal_size_width(name, target, conv=conv, num_classes=100, in_channels=1)
        near = [w for w in (width - step, width, width + step) if w > step / 2]
        distances = [abs(count(on_meta(name, conv, 100, 1, w)) - target) for w in near]
        assert min(distances) == distances[near.index(width)]


def test_dropout_follows_every_convolution_but_the_stem() -> None:
    for name in ("densenet40", "densenet-bc100"):
        model = on_meta(name, "conv3x3", dropout=0.2)
        modules = list(model.blocks.modules())
        followers = [after for m, after in pairwise(modules) if isinstance(m, nn.Conv2d)]
        assert len(followers) == sum(isinstance(m, nn.Conv2d) for m in model.modules()) - 1
        assert all(isinstance(after, nn.Dropout) and after.p == 0.2 for after in followers)
    model, x = DenseNet(7, "conv3x3", dropout=0.2), torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    torch.testing.assert_close(model.eval()(x), model(x), rtol=0, atol=0)


def test_unknown_names_say_which_come_near() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet21': did you mean .*'resnet20'"):
        build_model("resnet21")
    with pytest.raises(ValueError, match=r"unknown model 'vgg': choose from resnet20, resnet32"):
        build_model("vgg")
    with pytest.raises(ValueError, match=r"unknown conv 'rotate3': did you mean '.*rotate4'"):
        build_model("resnet20", conv="rotate3")
    with pytest.raises(ValueError, match=r"unknown conv None: choose from conv3x3"):
        build_model("resnet20", conv=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown model 'resnet-20': did you mean 'resnet20'"):
        equal_size_width("resnet-20", 1000)


@pytest.mark.parametrize("width", [0, -1, math.nan, math.inf])
def test_width_must_be_positive(width: float) -> None:
    with pytest.raises(ValueError, match=r"width must be a positive finite number, got"):
        build_model("resnet20", width=width)


def test_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"width 0.01 leaves no channels in the first stage: choose at least 0.0625"):
        build_model("resnet20", width=0.01)
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        build_model("densenet40", num_classes=0)
    with pytest.raises(ValueError, match="in_channels must be a positive integer, got 0"):
        build_model("resnet20", in_channels=0)
    with pytest.raises(ValueError, match="growth must be a positive integer, got 0"):
        build_model("densenet40", growth=0)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        build_model("densenet40", dropout=1.0)
    with pytest.raises(ValueError, match="resnet20 has no growth, got growth=12: leave it out"):
        build_model("resnet20", growth=12)
    with pytest.raises(ValueError, match=r"resnet20 has no dropout, got dropout=0.2: leave it out"):
        build_model("resnet20", dropout=0.2)
    with pytest.raises(ValueError, match=r"compression must be in \(0, 1\], got 0"):
        DenseNet(40, compression=0)
    with pytest.raises(ValueError, match=r"depth of this DenseNet must be 3n \+ 4, such as 40 or 100, got 41"):
        DenseNet(41)
    with pytest.raises(ValueError, match=r"depth of this DenseNet must be 6n \+ 4, such as 40 or 100, got 43"):
        DenseNet(43, bottleneck=True)
    with pytest.raises(ValueError, match=r"depth of a ResNet must be 6n \+ 2 with n >= 1, .* got 21"):
        ResNet(21)
    with pytest.raises(ValueError, match="parameters must be a positive integer, got 0"):
        equal_size_width("resnet20", 0)
