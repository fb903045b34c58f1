"""Laws of fuse: the same output from plain convolutions, an untouched input, batch norms folded where possible."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from layers import FORMS, name
from registries import each_conv
from rotateconv import RotateConv2d, fuse
from rotateconv.models import CONVS, MODELS, build_model
from rotateconv.nn._conv_base import ConvBase

# Every entry of CONVS in one model; every model, and so both families, with one entry.
BUILT = [*(("resnet20", conv) for conv in CONVS), *((model, "rotate2") for model in MODELS)]


def with_statistics(model: nn.Module) -> nn.Module:
    """The model in eval mode, its batch norms with numbers that a fold could not leave out unseen."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.7, 1.3)
                norm.bias.normal_(0, 0.2)
    return model.eval()


def assert_same_output(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max().item()
    assert scale > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def kinds(model: nn.Module, *types: type) -> list[str]:
    """The names of the modules of exactly these types."""
    return [name for name, module in model.named_modules() if type(module) in types]


def frozen_state(model: nn.Module) -> tuple[Any, ...]:
    """Everything that fuse may not change, for comparison before and after."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()}
    modules = [(name, id(module), module.training) for name, module in model.named_modules()]
    return tensors, modules, [(id(p), p.requires_grad, p.grad) for p in model.parameters()]


def assert_frozen(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(tensor, after[0][key]) for key, tensor in before[0].items())


@pytest.mark.parametrize("fold_batchnorm", [False, True])
@pytest.mark.parametrize(("name", "conv"), BUILT)
def test_every_model_has_the_same_output(name: str, conv: str, fold_batchnorm: bool) -> None:
    model = with_statistics(build_model(name, conv, width=0.25)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = frozen_state(model)
    fused = fuse(model, fold_batchnorm)
    assert_frozen(before, frozen_state(model))
    assert_same_output(fused(x), model(x), 1e-10)

    assert type(fused) is type(model)
    assert kinds(fused, RotateConv2d) == []
    assert kinds(fused, nn.Conv2d) == [name for name, m in model.named_modules() if isinstance(m, ConvBase | nn.Conv2d)]
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in model.named_modules()]
    assert not set(fused.parameters()) & set(model.parameters())
    assert {tensor.data_ptr() for tensor in fused.state_dict().values()}.isdisjoint(
        tensor.data_ptr() for tensor in model.state_dict().values()
    )


@each_conv
def test_float32_agrees_to_1e_5(conv: str) -> None:
    model = with_statistics(build_model("resnet20", conv))
    x = torch.randn(2, 3, 32, 32)
    for fold_batchnorm in (False, True):
        assert_same_output(fuse(model, fold_batchnorm)(x), model(x), 1e-5)


def test_all_norms_of_a_resnet_are_folded() -> None:
    model = with_statistics(build_model("resnet20", "rotate4", width=0.25))
    fused = fuse(model, fold_batchnorm=True)
    assert kinds(fused, nn.BatchNorm2d) == []
    assert set(kinds(fused, nn.Identity)) >= set(kinds(model, nn.BatchNorm2d))
    assert all(conv.bias is not None for conv in fused.modules() if isinstance(conv, nn.Conv2d))


def test_a_densenet_folds_the_norms_behind_its_bottlenecks_and_no_other() -> None:
    model = with_statistics(build_model("densenet-bc100", "rotate4", width=0.25))
    fused = fuse(model, fold_batchnorm=True)
    left = kinds(fused, nn.BatchNorm2d)
    bottlenecks = [name for name, module in model.named_modules() if type(module).__name__ == "DenseLayer"]
    assert len(bottlenecks) == 48
    assert all(f"{name}.0" in left and f"{name}.3" not in left for name in bottlenecks)


@each_conv
def test_the_norms_behind_every_kind_of_layer_are_folded(conv: str) -> None:
    fused = fuse(with_statistics(build_model("resnet20", conv, width=0.25)), fold_batchnorm=True)
    assert kinds(fused, nn.BatchNorm2d) == []


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_a_folded_layer_of_every_form(form: dict[str, Any]) -> None:
    layer = RotateConv2d(4, 6, 3, padding=2, padding_mode="reflect", groups=2, dtype=torch.float64, **form)
    model = with_statistics(nn.Sequential(layer, nn.BatchNorm2d(6, dtype=torch.float64)))
    fused = fuse(model, fold_batchnorm=True)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    assert_same_output(fused(x), model(x), 1e-12)
    assert repr(fused[0]) == repr(layer.fuse())
    assert type(fused[1]) is nn.Identity
    assert not fused[0].training
    assert not fused[1].training


def test_training_flags_and_requires_grad_are_kept() -> None:
    model = build_model("resnet20", "rotate4", width=0.25)
    model.stages[1].eval()
    model.stages[2].requires_grad_(False)
    fused = fuse(model)
    assert [m.training for m in fused.modules()] == [m.training for m in model.modules()]
    assert {p.requires_grad for p in fused.stages[2].parameters()} == {False}
    assert {p.requires_grad for p in fused.stages[1].parameters()} == {True}


@pytest.mark.parametrize("fold_batchnorm", [False, True])
def test_a_single_layer_gives_its_convolution(fold_batchnorm: bool) -> None:
    layer = RotateConv2d(3, 4, 3).eval()
    conv = fuse(layer, fold_batchnorm)
    assert type(conv) is nn.Conv2d
    assert torch.equal(conv.weight, layer.kernel())


def test_tied_layers_stay_tied_wherever_they_are_referred_to() -> None:
    layer = RotateConv2d(4, 4, 3, padding=1)
    model = nn.Sequential(layer, nn.Sequential(layer, nn.ReLU(), layer))
    model.schedule = [layer, "again"]  # a reference that is not registered
    fused = fuse(model)
    assert type(fused[0]) is nn.Conv2d
    assert fused[0] is fused[1][0] is fused[1][2] is fused.schedule[0]
    x = torch.randn(2, 4, 8, 8)
    assert_same_output(fused(x), model(x), 1e-6)


def test_a_parametrized_layer_is_fused_with_its_computed_values() -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    layer = RotateConv2d(3, 4, 3)
    parametrize.register_parametrization(layer, "weight", Halved())
    fused = fuse(nn.Sequential(layer))
    assert type(fused[0]) is nn.Conv2d
    torch.testing.assert_close(fused[0].weight, layer.kernel())


def test_timms_reparameterize_model_finds_fuse() -> None:
    """Its walk, in its own words: a child with fuse() is replaced by what fuse() returns."""

    def reparameterize(module: nn.Module) -> None:
        for child_name, child in module.named_children():
            if hasattr(child, "fuse"):
                setattr(module, child_name, child.fuse())
            reparameterize(child)

    model = with_statistics(build_model("resnet20", "rotate4", width=0.25))
    walked = copy.deepcopy(model)
    reparameterize(walked)
    x = torch.randn(2, 3, 8, 8)
    assert kinds(walked, RotateConv2d) == []
    assert torch.equal(walked(x), fuse(model)(x))


class Branching(nn.Module):
    """A convolution and a norm, joined by a function of both and the input."""

    def __init__(self, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv = RotateConv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.conv, self.norm, self.other)


@pytest.mark.parametrize(
    ("join", "folded"),
    [
        (lambda x, conv, norm, other: norm(conv(x)), True),
        (lambda x, conv, norm, other: other(norm(conv(x))), True),
        (lambda x, conv, norm, other: norm(conv(norm(x))), False),  # the norm is called twice
        (lambda x, conv, norm, other: norm(conv(conv(x))), False),  # the convolution is called twice
        (lambda x, conv, norm, other: (y := conv(x)) + norm(y), False),  # its output is used twice
        (lambda x, conv, norm, other: norm((y := conv(x)).relu()) + other(y), False),
        (lambda x, conv, norm, other: norm(F.relu(conv(x))), False),
        (lambda x, conv, norm, other: norm(conv(x)) * conv.bias.sum(), False),  # its parameters are used elsewhere
        (lambda x, conv, norm, other: norm(conv(x)) * norm.weight.sum(), False),
        (lambda x, conv, norm, other: conv(norm(x)), False),
    ],
)
def test_only_a_convolution_whose_output_goes_into_one_norm_alone_is_folded(
    join: Callable[..., Tensor], folded: bool
) -> None:
    model = with_statistics(Branching(join)).double()
    fused = fuse(model, fold_batchnorm=True)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert_same_output(fused(x), model(x), 1e-12)
    assert (type(fused.norm) is nn.Identity) is folded
    assert type(fused.other) is nn.BatchNorm2d


class NormSubclass(nn.BatchNorm2d):
    """A type of its own."""


@pytest.mark.parametrize(
    ("make", "folded"),
    [
        (lambda: nn.BatchNorm2d(4), True),
        (lambda: nn.BatchNorm2d(4, affine=False), True),
        (lambda: nn.SyncBatchNorm(4), True),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), False),
        (lambda: NormSubclass(4), False),
        (lambda: nn.InstanceNorm2d(4, track_running_stats=True), False),
    ],
)
def test_which_norms_are_folded(make: Callable[[], nn.Module], folded: bool) -> None:
    model = nn.Sequential(RotateConv2d(3, 4, 3), make()).eval().double()
    fused = fuse(model, fold_batchnorm=True)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert_same_output(fused(x), model(x), 1e-12)
    assert (type(fused[1]) is nn.Identity) is folded


@pytest.mark.parametrize("hooked", [0, 1])
def test_a_hooked_pair_is_not_folded(hooked: int) -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[hooked].register_forward_hook(lambda module, inputs, output: output + 1)
    fused = fuse(model, fold_batchnorm=True)
    assert type(fused[1]) is nn.BatchNorm2d
    x = torch.randn(2, 3, 6, 6)
    assert_same_output(fused(x), model(x), 1e-6)


def test_the_copy_keeps_nothing_of_the_tracing() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(RotateConv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = self.layers(x)
            return self.last

    model = with_statistics(Remembering())
    fused = fuse(model, fold_batchnorm=True)
    assert type(fused.layers[1]) is nn.Identity
    assert model.calls == fused.calls == 0
    assert not hasattr(model, "last")
    assert not hasattr(fused, "last")


def test_a_fused_model_can_be_pickled_and_trained_on() -> None:
    fused = fuse(with_statistics(build_model("resnet20", "rotate2p", width=0.25)), fold_batchnorm=True)
    again = pickle.loads(pickle.dumps(fused))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), fused(x))
    fused.train()(x).sum().backward()
    assert all(p.grad is not None for p in fused.parameters())


def test_folding_is_refused_in_training_mode() -> None:
    model = build_model("resnet20", "rotate4", width=0.25)
    with pytest.raises(ValueError, match=r"eval mode, and this one is in training mode: call model\.eval\(\)"):
        fuse(model, fold_batchnorm=True)
    model.eval().stages[1][0].norm1.train()
    with pytest.raises(ValueError, match=r"and stages\.1\.0\.norm1 is in training mode"):
        fuse(model, fold_batchnorm=True)


def test_a_wrapper_of_a_whole_model_hides_no_norm() -> None:
    model = nn.DataParallel(build_model("resnet20", "rotate4", width=0.25).eval())
    fused = fuse(model, fold_batchnorm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(fused(images), model.eval()(images), rtol=1e-4, atol=1e-4)


def test_folding_is_refused_where_forward_cannot_be_traced() -> None:
    class Undecided(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    model = Undecided(RotateConv2d(3, 4, 3)).eval()
    with pytest.raises(
        ValueError, match=r"torch\.fx can trace, and tracing Undecided ended in TraceError: symbolically"
    ):
        fuse(model, fold_batchnorm=True)
    assert type(fuse(model)[0]) is nn.Conv2d


@pytest.mark.parametrize(
    "hook",
    [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.weight.register_hook(lambda gradient: None),
    ],
)
def test_hooks_that_would_be_lost_are_an_error(hook: Callable[[RotateConv2d], object]) -> None:
    model = nn.Sequential(nn.ReLU(), RotateConv2d(3, 4, 3))
    hook(model[1])
    with pytest.raises(ValueError, match=r"^1 has hooks that its fused convolution would lose: remove them first"):
        fuse(model)


def test_a_hook_that_concerns_loading_alone_is_no_error() -> None:
    """Torch's remove_parametrizations leaves one behind."""
    layer = RotateConv2d(2, 2)
    torch.nn.utils.parametrizations.weight_norm(layer)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert layer._load_state_dict_pre_hooks
    assert type(fuse(nn.Sequential(layer))[0]) is nn.Conv2d
