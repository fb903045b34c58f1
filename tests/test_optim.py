"""Laws of param_groups: every trainable parameter once, each in the group that its role says."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from rotateconv import CONVS, MODELS, RotateConv2d, build_model, param_groups


def names(model: nn.Module, groups: list[dict]) -> dict[str, list[str]]:
    """The names of the parameters of each group."""
    of = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: [of[parameter] for parameter in group["params"]] for group in groups}


@pytest.mark.parametrize(("name", "conv"), [*(("resnet20", conv) for conv in CONVS), *product(MODELS, ["rotate2p"])])
def test_every_parameter_of_every_model_is_in_one_group(name: str, conv: str) -> None:
    with torch.device("meta"):
        model = build_model(name, conv)
    groups = param_groups(model, lr=0.1, weight_decay=5e-4)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(model.parameters())
    # The models name their parameters so that the role can be read from the name.
    for group, members in names(model, groups).items():
        assert members
        for member in members:
            *_, module, leaf = member.split(".")
            norm = isinstance(model.get_submodule(member.rpartition(".")[0]), nn.BatchNorm2d)
            expected = "angles" if leaf == "angle" else "no_decay" if norm or leaf == "bias" else "weights"
            assert group == expected, (module, leaf)


def test_the_groups_of_a_small_model_by_hand() -> None:
    model = nn.ModuleDict(
        {
            "layer": RotateConv2d(3, 4, 3, taps="profile"),
            "norm": nn.BatchNorm2d(4),
            "plane": nn.LayerNorm((4, 6, 6)),  # its weight has three dimensions
            "group": nn.GroupNorm(2, 4),
            "linear": nn.Linear(4, 2),
            "slope": nn.PReLU(),
            "table": nn.Embedding(5, 4),
        }
    )
    model.register_parameter("scale", nn.Parameter(torch.zeros(())))
    model.linear.bias = nn.Parameter(torch.zeros(1, 2))  # a bias is one by name, too
    groups = param_groups(model, lr=0.1, weight_decay=5e-4, angle_lr_scale=3.0)
    assert names(model, groups) == {
        "weights": ["layer.weight", "layer.profile", "linear.weight", "table.weight"],
        "no_decay": [
            *("scale", "layer.bias", "norm.weight", "norm.bias", "plane.weight", "plane.bias"),
            *("group.weight", "group.bias", "linear.bias", "slope.weight"),
        ],
        "angles": ["layer.angle"],
    }
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 5e-4), (0.1, 0), (0.1 * 3.0, 0)]


def test_tied_ones_count_once_and_frozen_ones_not_at_all() -> None:
    layer = RotateConv2d(4, 4, 3)
    twin = RotateConv2d(4, 4, 3, bias=False)
    twin.weight, twin.angle = layer.weight, layer.angle
    frozen = RotateConv2d(4, 4, 3).requires_grad_(False)
    model = nn.Sequential(layer, layer, twin, frozen)
    groups = param_groups(model, 0.1, 0.0)
    assert names(model, groups) == {"weights": ["0.weight"], "no_decay": ["0.bias"], "angles": ["0.angle"]}


def test_a_parametrized_angle_is_an_angle() -> None:
    model = nn.Sequential(RotateConv2d(4, 4, 3))
    parametrize.register_parametrization(model[0], "angle", nn.Identity())
    groups = param_groups(model, 0.1, 0.1)
    assert names(model, groups)["angles"] == ["0.parametrizations.angle.original"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(2, 2, bias=False), ["weights"]),
        (nn.BatchNorm2d(2), ["no_decay"]),
        (RotateConv2d(2, 2, 3, bias=False), ["weights", "angles"]),
        (RotateConv2d(2, 2, 3, learn_angle=False), ["weights", "no_decay"]),
    ],
)
def test_empty_groups_are_left_out(model: nn.Module, expected: list[str]) -> None:
    assert [group["name"] for group in param_groups(model, 0.1, 0.1)] == expected


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_weight_decay_pulls_the_weights_alone(optimizer: type[torch.optim.Optimizer]) -> None:
    model = nn.Sequential(RotateConv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.ones_(model[1].bias)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made = optimizer(param_groups(model, lr=0.5, weight_decay=0.1), lr=1.0)
    made.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])
    assert [group["name"] for group in made.param_groups] == ["weights", "no_decay", "angles"]


def test_a_scale_of_zero_keeps_the_angles() -> None:
    model = RotateConv2d(3, 4, 3)
    before = model.angle.detach().clone()
    optimizer = torch.optim.SGD(param_groups(model, 0.1, 0.1, angle_lr_scale=0.0))
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert model.angle.grad.abs().min() > 0
    optimizer.step()
    assert torch.equal(model.angle, before)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_adam_undoes_the_scale_of_the_gradient_but_not_of_the_learning_rate(
    optimizer: type[torch.optim.Optimizer], scale: float
) -> None:
    model = RotateConv2d(3, 4, 3, dtype=torch.float64)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    start = model.angle.detach().clone()
    steps = []
    for grad_scale in (1.0, model.angle_grad_scale):
        with torch.no_grad():
            model.angle.copy_(start)
        model.zero_grad()
        made = optimizer(param_groups(model, 1e-6, 0.0, angle_lr_scale=scale))
        model.angle_grad_scale = grad_scale
        model(images).square().sum().backward()
        made.step()
        steps.append((model.angle.detach() - start) / (1e-6 * scale))
    factor = grad_scale if optimizer is torch.optim.SGD else 1.0
    assert grad_scale > 2
    torch.testing.assert_close(steps[1], factor * steps[0], rtol=1e-3, atol=0)
    if optimizer is not torch.optim.SGD:
        torch.testing.assert_close(steps[0].abs(), torch.ones_like(start), rtol=1e-3, atol=0)


@pytest.mark.parametrize("argument", ["lr", "weight_decay", "angle_lr_scale", "angle_weight_decay"])
@pytest.mark.parametrize("number", [-1e-3, math.nan, math.inf])
def test_numbers_out_of_range_are_errors(argument: str, number: float) -> None:
    arguments = {"lr": 0.1, "weight_decay": 0.0, "angle_lr_scale": 1.0, argument: number}
    with pytest.raises(ValueError, match=rf"{argument} must be a finite number >= 0, got {number}"):
        param_groups(RotateConv2d(3, 4, 3), **arguments)


@pytest.mark.parametrize("model", [nn.ReLU(), RotateConv2d(3, 4, 3).requires_grad_(False)])
def test_nothing_to_train_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="the model has no trainable parameters"):
        param_groups(model, 0.1, 0.0)
