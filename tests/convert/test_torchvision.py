"""convert and fuse on torchvision's models: shapes kept, and the same output fused, with and without folded norms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from rotateconv import RotateConv2d, convert, fuse

try:
    from torchvision import models
    from torchvision.models.segmentation import fcn_resnet50
except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
    pytest.skip(f"needs torchvision: {error}", allow_module_level=True)


def everything(name: str, conv: nn.Conv2d) -> bool:
    return True


def before_layer4(name: str, conv: nn.Conv2d) -> bool:
    return not name.startswith("layer4")


def dilated(name: str, conv: nn.Conv2d) -> bool:
    return conv.dilation != (1, 1)


class Case(NamedTuple):
    """A model, how to convert it, and what is then expected of it."""

    build: Callable[[], nn.Module]
    taps: str
    where: Callable[[str, nn.Conv2d], bool] | None
    converted: int
    norms: int
    left: int  # norms that no convolution precedes


def full_size(*case: Any) -> Any:
    return pytest.param(Case(*case), marks=pytest.mark.slow, id=case[0].__name__)


def resnet18() -> nn.Module:
    return models.resnet18(weights=None)


def resnet50() -> nn.Module:
    return models.resnet50(weights=None)


def densenet121() -> nn.Module:
    return models.densenet121(weights=None)


def mobilenet_v3_small() -> nn.Module:
    return models.mobilenet_v3_small(weights=None)


def fcn() -> nn.Module:
    return fcn_resnet50(weights=None, weights_backbone=None)


CASES = [
    # With the stem; without the last stage, which has three quarters of the slices, to save time.
    pytest.param(Case(resnet18, "free", before_layer4, 13, 20, 0), id="resnet18"),
    full_size(resnet50, "shared", None, 16, 53, 0),
    # 58 layers of norm, 1x1, norm, 3x3 behind a stem with a norm; three transitions and the end have one.
    pytest.param(Case(densenet121, "free", None, 58, 121, 62), id="densenet121"),
    pytest.param(Case(mobilenet_v3_small, "profile", everything, 12, 34, 0), id="mobilenet_v3_small"),
    # What sets it apart from resnet50: half of the slices of its backbone, and not the head, to save time.
    full_size(fcn, "shared", dilated, 8, 54, 0),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_converted_and_fused_models(case: Case) -> None:
    model = case.build().eval()
    images = torch.randn(2, 3, 64, 64)
    shape = output(model, images).shape
    norms = of_type(model, nn.BatchNorm2d)
    assert len(norms) == case.norms

    report = convert(model, case.taps, where=case.where)
    assert len(report.converted) == len(of_type(model, RotateConv2d)) == case.converted
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.parameters_after < report.parameters_before

    set_statistics(model, images)
    expected = output(model, images)
    assert expected.shape == shape
    for fold_batchnorm in (False, True):
        fused = fuse(model, fold_batchnorm)
        assert type(fused) is type(model)
        assert [name for name, _ in fused.named_modules()] == [name for name, _ in model.named_modules()]
        assert of_type(fused, RotateConv2d) == []
        assert len(of_type(fused, nn.BatchNorm2d)) == (case.left if fold_batchnorm else case.norms)
        assert_relative(output(fused, images), expected, 1e-5)
    assert of_type(model, nn.BatchNorm2d) == norms


@pytest.mark.parametrize(("path", "angle_groups"), [("circle", None), ("square", 8)])
def test_a_model_in_float64(path: Any, angle_groups: int | None) -> None:
    model = mobilenet_v3_small().double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert len(convert(model, where=everything, path=path, angle_groups=angle_groups).converted) == 12
    set_statistics(model, images)
    expected = output(model, images)
    for fold_batchnorm in (False, True):
        assert_relative(output(fuse(model, fold_batchnorm), images), expected, 1e-10)


def output(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(images)
    return found["out"] if isinstance(found, dict) else found


def of_type(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def set_statistics(model: nn.Module, images: Tensor) -> None:
    """Give the batch norms statistics of the images, and scales and shifts a fold could not leave out unseen."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = (
            0.5  # half of the images, half of the initial variance 1: none is small, and no rounding is enlarged
        )
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.train()
    output(model, images)
    model.eval()


def assert_relative(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare elementwise, at a tolerance relative to the largest number."""
    scale = expected.abs().max().item()
    assert scale > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)
