"""Packing: the round trip, the sizes, architectures of one's own, and what cannot be packed."""

import copy
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from registries import each_conv
from rotateconv import RotateConv2d, build_model, convert, fuse, load_packed, pack, quantize
from rotateconv.convert.fuse import fold_statistics
from rotateconv.nn.codebook import CodebookConv2d
from rotateconv.nn.masked import MaskedConv2d
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.pack import describe_packed
from rotateconv.quantization.pack_file import read_packed
from rotateconv.quantization.quantize import entries


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    """The same names, shapes, dtypes and bits."""
    ours, theirs = found.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def shaken(model: nn.Module) -> nn.Module:
    """The model with other norms and statistics than those of a fresh one."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.mul_(torch.rand_like(tensor) * 3).add_(torch.rand_like(tensor))
            elif tensor.dim() == 0:
                tensor.fill_(12345678901)
    return model


def build(name: str, conv: str) -> nn.Module:
    growth = 4 if name == "densenet40" else None
    return shaken(build_model(name, conv, width=0.5 if growth is None else 1.0, growth=growth))


@each_conv
@pytest.mark.parametrize("name", ["resnet20", pytest.param("densenet40", marks=pytest.mark.slow)])
def test_loading_gives_what_quantize_gives(name: str, conv: str, tmp_path: Path) -> None:
    model = build(name, conv)
    pack(model, tmp_path / "model")
    loaded = load_packed(tmp_path / "model")
    assert_same(loaded, quantize(model))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(images), quantize(model).eval()(images))


def test_a_stream_of_one_number(tmp_path: Path) -> None:
    # A single norm counts its batches in the only integer of the model, a single slice has the only scale.
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    pack(model, tmp_path / "model.rotateconv")
    loaded = load_packed(tmp_path / "model.rotateconv", model=model)
    expected = quantize(model).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("levels", ["fewest", "most", None])
@pytest.mark.parametrize("bits", [(1, 2, 1), (2, 3, 2), (3, 4, 5), (5, 6, 7), (7, 8, 8), (8, 8, 8)])
def test_any_bits(bits: tuple[int, int, int], levels: str | None, tmp_path: Path) -> None:
    weight, angle, dense = bits
    profile = None if levels is None else angle
    most = 255 if weight == 8 else 2**weight
    count = {"fewest": most if weight == 8 else 2 ** (weight - 1) + 1, "most": most, None: None}[levels]
    model = build_model("resnet20", "rotate2p-g4", width=0.5)
    more = {"dense_bits": dense, "weight_levels": count, "profile_bits": profile}
    pack(model, tmp_path / "model", weight_bits=weight, angle_bits=angle, **more)
    assert_same(load_packed(tmp_path / "model"), quantize(model, weight, angle, **more))
    described = describe_packed(tmp_path / "model")
    assert described.bits == [weight, angle, dense]
    # What is so without being said is not in the file: older versions read it.
    assert described.levels == (None if count in (2, 2**weight - 1) else count)


@pytest.mark.parametrize(
    ("bits", "levels"),
    [(2, 4), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((2, None), (1, None), (1, 2)))],
)
@each_conv
def test_layers_with_bits_of_their_own(conv: str, bits: int, levels: int | None, tmp_path: Path) -> None:
    model = build_model("resnet20", conv, width=0.25)
    own = {"stages.0.*": (4, 5), "stages.0.1.conv*": (1, 2), "stages.2.*.conv1*": (2, 8)}
    more: dict[str, Any] = {"weight_bits": bits, "angle_bits": 3, "weight_levels": levels}
    kinds = {entry.kind for entry in entries(model, Bits())}
    if not kinds & {"weight", "codebook"}:  # of low rank, grouped or 1x1 all of it
        with pytest.raises(ValueError, match="no layer with weight_bits is called so: the model has none"):
            pack(model, tmp_path / "own", **more, layer_bits=own)
        return
    pack(model, tmp_path / "own", **more, layer_bits=own)
    loaded = load_packed(tmp_path / "own")
    assert_same(loaded, quantize(model, **more, layer_bits=own))
    for name, entry in ((entry.name, entry) for entry in entries(model, Bits.of(bits, 3, 8, levels, None, own))):
        layer = name.rpartition(".")[0]
        weight, angle = (bits, 3)
        for pattern in own:  # an independent reading of "the last one that fits"
            weight, angle = own[pattern] if fnmatch(layer, pattern) else (weight, angle)
        if entry.kind in ("weight", "codebook"):
            assert (entry.bits, entry.levels) == (weight, 2**weight if levels or weight == 1 else 2**weight - 1)
        elif entry.kind == "angle":
            assert entry.bits == angle
    pack(model, tmp_path / "plain", **more)
    assert describe_packed(tmp_path / "plain").layer_bits is None  # older versions read such a file
    plain = None if (bits, levels) == (1, 2) else levels  # goes without saying
    for name, expected in (("own", (levels, None, own)), ("plain", (plain, None, None))):
        assert describe_packed(tmp_path / name).widths == Bits.of(bits, 3, 8, *expected)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"stage9.*": (2, 3)}, "names stage9.*, and no layer with weight_bits is called so: stages.0.0.conv1, "),
        ({"stem": (2, 3)}, "layer_bits names stem, and no layer with weight_bits"),
        ({"stages.*": (0, 3)}, "layer_bits of stages.*: a weight's must be a whole number from 1 to 8, got 0"),
        ({"stages.*": (2, 9)}, "layer_bits of stages.*: an angle's must be a whole number from 2 to 8, got 9"),
    ],
)
def test_bits_of_layers_that_cannot_be(own: dict[str, tuple[int, int]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pack(build_model("resnet20", "rotate2p", width=0.25), tmp_path / "model", layer_bits=own)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("conv", ["rotate2p", "conv3x3"])
def test_folded_norms_compute_the_same_in_fewer_bytes(conv: str, tmp_path: Path) -> None:
    model = build_model("resnet20", conv, width=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, fold in (("kept", False), ("folded", True)):
        pack(model, tmp_path / name, weight_bits=8, angle_bits=8, fold_norms=fold)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    channels = sum(len(module.weight) for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    kept, folded = ((tmp_path / name).stat().st_size for name in ("kept", "folded"))
    assert kept - folded > 1.5 * channels
    exact = copy.deepcopy(model).eval()
    fold_statistics(exact)
    images = torch.randn(4, 3, 32, 32)
    expected, loaded = model.eval()(images), load_packed(tmp_path / "folded")
    torch.testing.assert_close(exact(images), expected, rtol=1e-4, atol=1e-5)
    assert (loaded(images) - expected).abs().max() < 0.05 * expected.abs().max()
    norms = [module for module in loaded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.running_mean == 0).all() and (norm.running_var == 1).all() for norm in norms)


def test_norms_without_statistics_or_weights_are_not_folded() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.BatchNorm1d(3, track_running_stats=False))
    nn.init.normal_(model[0].running_mean)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold_statistics(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_quantized_already_is_packed_without_loss(tmp_path: Path) -> None:
    model = quantize(build_model("resnet20", width=0.5), 3, 4)
    pack(model, tmp_path / "model", weight_bits=3, angle_bits=4)
    assert_same(load_packed(tmp_path / "model"), model)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = build_model("resnet20", width=0.25)
    pack(model, tmp_path / "one")
    pack(model, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_neither_model_nor_random_numbers_are_touched(tmp_path: Path) -> None:
    model = build_model("resnet20", width=0.25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    pack(model, tmp_path / "model")
    load_packed(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_loading_does_not_look_at_the_default_dtype(tmp_path: Path) -> None:
    model = build_model("resnet20", width=0.25)
    pack(model, tmp_path / "model")
    torch.set_default_dtype(torch.float64)
    assert_same(load_packed(tmp_path / "model"), quantize(model))


@pytest.mark.parametrize(
    ("conv", "most"), [("rotate4", 65_000), ("rotate2p", 40_500), ("rotate2", 36_000), ("conv3x3", 132_000)]
)
def test_sizes_of_resnet20(conv: str, most: int, tmp_path: Path) -> None:
    pack(build_model("resnet20", conv), tmp_path / "model")
    assert (tmp_path / "model").stat().st_size < most


def test_every_stream_is_as_small_as_its_bits(tmp_path: Path) -> None:
    model = build_model("resnet20", "rotate4")
    pack(model, tmp_path / "model", weight_bits=4, angle_bits=5)
    with safetensors.safe_open(tmp_path / "model", "pt") as file:
        sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, RotateConv2d))
    angles = sum(m.angle.numel() for m in model.modules() if isinstance(m, RotateConv2d))
    assert sizes["weight"] < 0.94 * weights * 4 / 8  # what Huffman's code gains
    assert sizes["angle"] <= angles * 5 / 8 + 1
    counts = torch.bincount(read_packed(tmp_path / "model").codes("weight").long()).double()
    entropy = -(counts / counts.sum() * (counts / counts.sum()).clamp(min=1e-9).log2()).sum().item()
    assert sizes["weight"] < 1.02 * weights * entropy / 8


def test_a_model_knows_the_arguments_that_build_it() -> None:
    model = build_model("densenet40", "rotate2", 7, 1, 2, growth=2, dropout=0.1)
    arguments = json.loads(json.dumps(model.build_arguments))
    again = build_model(**arguments)
    assert again.build_arguments == model.build_arguments
    assert {name: t.shape for name, t in again.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }
    assert arguments["dropout"] == 0.1
    assert not hasattr(build_model("resnet20", nn.Conv2d, width=0.25), "build_arguments")


def test_fused(tmp_path: Path) -> None:
    model = shaken(build_model("resnet20", "rotate2p", width=0.5))
    pack(model, tmp_path / "model")
    fused = load_packed(tmp_path / "model", fused=True)
    assert not any(isinstance(module, RotateConv2d) for module in fused.modules())
    assert_same(fused, fuse(quantize(model)))
    assert not fused.training


def test_what_the_file_says(tmp_path: Path) -> None:
    pack(
        build_model("resnet20", num_classes=2, width=0.25),
        tmp_path / "model",
        classes=("café", "dog"),
        mean=(0.1, 0.2, 0.3),
        std=(1, 2, 3),
        input_size=(3, 32, 32),
    )
    found = describe_packed(tmp_path / "model")
    assert (found.classes, found.mean, found.std) == (["café", "dog"], [0.1, 0.2, 0.3], [1, 2, 3])
    assert found.input_size == [3, 32, 32]
    assert found.architecture == "ResNet"
    assert found.build["name"] == "resnet20"
    pack(build_model("resnet20", width=0.25), tmp_path / "model")
    assert describe_packed(tmp_path / "model").classes is None


# ------------------------------------------------------------------------------------ other architectures


class Own(nn.Module):
    """An architecture that build_model knows nothing of."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3)
        self.body = nn.Sequential(nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 5))
        self.scale = nn.Parameter(torch.rand(()))
        self.register_buffer("offsets", torch.arange(5))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("grid", torch.rand(3), persistent=False)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.head(self.body(torch.relu(self.stem(images))).mean((2, 3))) + self.grid


@pytest.mark.parametrize("converted", [True, False])
def test_a_converted_model_needs_its_structure(converted: bool, tmp_path: Path) -> None:
    model, template = Own(), Own()
    template.grid.copy_(model.grid)
    convert(model, taps="profile", path="square", angle_groups=4)
    if converted:
        convert(template, taps="profile", path="square", angle_groups=4)
    before = {name: tensor.clone() for name, tensor in template.state_dict().items()}
    pack(model, tmp_path / "model")
    loaded = load_packed(tmp_path / "model", model=template)
    assert_same(loaded, quantize(model))
    assert torch.equal(loaded(torch.ones(1, 3, 16, 16)), quantize(model)(torch.ones(1, 3, 16, 16)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in template.state_dict().items())
    assert template.training


def test_a_converted_model_of_ours_needs_none(tmp_path: Path) -> None:
    model = build_model("resnet20", "conv3x3", width=0.25)
    convert(model, taps="shared", where=lambda name, conv: "stages.1" in name)
    pack(model, tmp_path / "model")
    assert_same(load_packed(tmp_path / "model"), quantize(model))
    assert len(describe_packed(tmp_path / "model").layers) == 6


def test_profiles_that_are_not_learned_stay_so(tmp_path: Path) -> None:
    model = build_model("resnet20", "conv3x3", width=0.25)
    old = model.stages[0][0].conv1
    model.stages[0][0].conv1 = RotateConv2d.from_conv(old, taps="profile", learn_profile=False)
    pack(model, tmp_path / "model")
    loaded = load_packed(tmp_path / "model")
    assert_same(loaded, quantize(model))
    assert not loaded.stages[0][0].conv1.learn_profile
    convert(model, taps="profile")
    pack(model, tmp_path / "converted")
    layers = describe_packed(tmp_path / "converted").layers
    assert [config.learn_profile for config in layers.values()].count(False) == 1


def test_a_model_of_ours_with_another_layer_needs_its_structure(tmp_path: Path) -> None:
    model, template = build_model("resnet20", width=0.25), build_model("resnet20", width=0.25)
    for one in (model, template):
        one.classifier = nn.Linear(16, 3)
    pack(model, tmp_path / "model")
    with pytest.raises(ValueError, match="holds a ResNet, which build_model does not build: give one as the argument"):
        load_packed(tmp_path / "model")
    assert_same(load_packed(tmp_path / "model", model=template), quantize(model))


def test_tied_layers(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        layer = RotateConv2d(4, 4, 3)
        return nn.Sequential(layer, nn.ReLU(), layer)

    model = tied()
    pack(model, tmp_path / "model")
    loaded = load_packed(tmp_path / "model", model=tied())
    assert_same(loaded, quantize(model))
    assert loaded[0] is loaded[2]


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "holds a Own, which build_model does not build: give one as the argument model"),
        (Own(channels=4), "holds the numbers of a Own with other tensors than the model given has"),
        (nn.Linear(3, 3), "Linear has no attribute `body`"),
        (nn.Sequential(), "Sequential has no attribute `body`"),
    ],
)
def test_another_structure(template: nn.Module | None, match: str, tmp_path: Path) -> None:
    model = Own()
    convert(model)
    pack(model, tmp_path / "model")
    with pytest.raises(ValueError, match=match):
        load_packed(tmp_path / "model", model=template)


def test_a_structure_whose_convolution_is_something_else(tmp_path: Path) -> None:
    model, template = Own(), Own()
    convert(model)
    template.body[0] = nn.Linear(3, 3)
    pack(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"body.0 should be a convolution to make a RotateConv2d of, not a Linear"):
        load_packed(tmp_path / "model", model=template)


def test_a_structure_that_is_not_needed(tmp_path: Path) -> None:
    pack(build_model("resnet20", width=0.25), tmp_path / "model")
    with pytest.raises(ValueError, match="it says itself how its model is built: leave the argument model out"):
        load_packed(tmp_path / "model", model=build_model("resnet20", width=0.25))


# -------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"pack needs float32 numbers, and weight is {dtype}: call model.float\(\)"):
        pack(nn.Linear(2, 2).to(dtype), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_bits_out_of_range_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weight_bits must be a whole number from 1 to 8, got 9"):
        pack(nn.Linear(2, 2), tmp_path / "model", weight_bits=9)
    model = nn.Linear(2, 2)
    model.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match="cannot quantize bias: only finite numbers"):
        pack(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is a folder; give the name of a file"):
        pack(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match=r"cannot write .*nowhere/model: there is no folder .*nowhere; make it first"):
        pack(nn.Linear(2, 2), tmp_path / "nowhere" / "model")


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").write_bytes(b"before")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"cannot write .*model: No space left on device"):
        pack(nn.Linear(2, 2), tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("conv", "index"),
    [("mask4", (0, 1)), ("pattern4", (29_696, 3)), ("codebook16", (29_696, 4)), ("codebook32", (29_696, 5))],
)
def test_an_index_has_no_more_bits_than_it_needs(conv: str, index: tuple[int, int], tmp_path: Path) -> None:
    """Positions of a seed need none, those of eight patterns three bits a slice, one of K kernels log2 K."""
    model = build_model("resnet20", conv)
    pack(model, tmp_path / "model")
    stored = read_packed(tmp_path / "model").stored
    assert (stored["index"].count, stored["index"].width) == index
    assert stored["weight"].count == 29_696 * (4 if conv in ("mask4", "pattern4") else 1)


@pytest.mark.slow
def test_any_positions_are_kept(tmp_path: Path) -> None:
    model = nn.Sequential(MaskedConv2d(16, 64, 5, kept=7), MaskedConv2d(4, 8, 3, kept=9))  # none twice; all of them
    with torch.no_grad():
        random = torch.rand(64, 16, 25).argsort(-1)[..., :7]
        model[0].position.copy_(random)
    pack(model, tmp_path / "model")
    loaded = load_packed(tmp_path / "model", model=model)
    assert torch.equal(loaded[0].position, random.short())
    assert torch.equal(loaded[1].position, model[1].position)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_equal_kernels_of_a_codebook_are_told_apart_every_time(bits: int, tmp_path: Path) -> None:
    """With few bits kernels of a codebook fall on one line: what is loaded is still what was quantized, to the bit."""
    model = nn.Sequential(CodebookConv2d(8, 16, 3, entries=32))
    with torch.no_grad():
        model[0].codebook[5:9] = model[0].codebook[3]
        model[0].codebook[9:11] = -2 * model[0].codebook[2]
    pack(model, tmp_path / "model", weight_bits=bits, dense_bits=bits)
    expected = quantize(model, weight_bits=bits, dense_bits=bits)
    assert_same(load_packed(tmp_path / "model", model=model), expected)
    assert_same(quantize(expected, weight_bits=bits, dense_bits=bits), expected)


def test_zeros_of_a_pruned_model_take_little(tmp_path: Path) -> None:
    model = build_model("resnet20", "conv3x3")
    pack(model, tmp_path / "whole")
    layers = [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d)][1:]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.9)
    for layer in layers:
        prune.remove(*layer)
    pack(model, tmp_path / "pruned")
    whole, pruned = ((tmp_path / name).stat().st_size for name in ("whole", "pruned"))
    assert pruned < 0.35 * whole
