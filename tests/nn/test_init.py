"""The values a new RotateConv2d draws: the output of Kaiming-normal, angles over a whole turn."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layers import FORMS, SIZES, name
from rotateconv import RotateConv2d, line_kernel

each_form = pytest.mark.parametrize("form", FORMS, ids=name)
each_size = pytest.mark.parametrize("size", SIZES)


@lru_cache
def images_and_mean_squared_output(size: int, groups: int) -> tuple[Tensor, float]:
    """White noise, one output pixel an image (neighbors would not be independent), and what Kaiming-normal makes."""
    with torch.random.fork_rng(), torch.no_grad():  # so that the layer drawn next does not depend on the cache
        images = torch.randn(900 * groups // size, 256, size, size)
        kaiming = nn.Conv2d(256, 256, size, groups=groups, bias=False)
        nn.init.kaiming_normal_(kaiming.weight)
        return images, kaiming(images).square().mean().item()


@pytest.mark.parametrize("groups", [1, 4])
@each_form
@each_size
def test_mean_squared_output_is_that_of_kaiming_normal(size: int, form: dict[str, Any], groups: int) -> None:
    form = form | {"angle_groups": form["angle_groups"] and 32 * form["angle_groups"]}  # enough angles to average
    images, expected = images_and_mean_squared_output(size, groups)
    layer = RotateConv2d(256, 256, size, groups=groups, bias=False, **form)
    with torch.no_grad():
        assert layer(images).square().mean().item() == pytest.approx(expected, rel=0.05)


@each_form
@each_size
def test_expected_squared_norm_of_a_slice(size: int, form: dict[str, Any]) -> None:
    """The mean over many layers is that of Kaiming-normal, 2, as far as its own spread can tell."""
    layer = RotateConv2d(16, 512, size, **form | {"angle_groups": form["angle_groups"] and 512})
    norms = []
    for _ in range(8):
        layer.reset_parameters()
        norms.append(layer.kernel().detach().square().sum((1, 2, 3)))
    found = torch.cat(norms)
    assert found.mean().item() == pytest.approx(2, abs=4 * (found.std() / len(found) ** 0.5).item())
    assert found.mean().item() == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("path", ["circle", "square"])
@each_size
def test_every_profile_has_norm_one_over_a_turn(size: int, path: Any) -> None:
    for angle_groups in (None, 4):
        layer = RotateConv2d(2, 4, size, taps="profile", path=path, angle_groups=angle_groups, dtype=torch.float64)
        profiles = layer.profile.detach().flatten(0, -2)
        turn = (torch.arange(1000, dtype=torch.float64) + 0.5) * (2 * torch.pi / 1000)
        kernels = line_kernel(profiles[:, None].expand(-1, 1000, -1), turn.expand(len(profiles), -1), size, path)
        norms = kernels.square().sum((-2, -1)).mean(1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-3, atol=0)


def test_angles_are_uniform_over_a_turn() -> None:
    angle = RotateConv2d(64, 128, 3).angle.detach()
    eighths = ((angle / (2 * torch.pi) + 0.5) * 8).floor().flatten().int().bincount() / angle.numel()
    torch.testing.assert_close(eighths, torch.full((8,), 1 / 8), rtol=0, atol=0.02)


def test_draws_again_in_place() -> None:
    layer = RotateConv2d(4, 4, taps="profile")
    parameters = list(layer.parameters())
    layer.reset_parameters()
    assert all(before is after for before, after in zip(parameters, layer.parameters(), strict=True))
    torch.manual_seed(1)
    first = RotateConv2d(4, 4)
    torch.manual_seed(1)
    assert torch.equal(first.kernel(), RotateConv2d(4, 4).kernel())
