"""Laws of conversion with images: outputs come nearer, layers that are lines stay, and nothing else changes."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rotateconv import RotateConv2d, convert, recalibrate
from rotateconv.convert.recalibrate import evaluating


def images(count: int = 64, channels: int = 3, size: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    smooth = nn.functional.avg_pool2d(torch.randn(count, channels, size + 4, size + 4, generator=generator), 5, 1)
    return list((4 * smooth).split(16))


def trained(*layers: nn.Module) -> nn.Sequential:
    """A model whose norms know the images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *layers)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    recalibrate(model, images())
    return model.eval()


def outputs(model: nn.Module) -> Tensor:
    with evaluating(model):
        return torch.cat([model(batch) for batch in images()])


def distance(model: nn.Module, other: Tensor) -> float:
    return ((outputs(model) - other).norm() / other.norm()).item()


CONVS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride, dilation": {"stride": 2, "dilation": 2, "padding": 2},
    "same, circular": {"padding": "same", "padding_mode": "circular"},
    "groups": {"groups": 4, "padding": 1},
    "k=5": {"kernel_size": 5, "padding": (2, 1)},
    "no bias": {"bias": False, "padding": 1},
}


@pytest.mark.parametrize("taps", ["free", "shared", "profile"])
@pytest.mark.parametrize("conv", CONVS)
def test_images_bring_outputs_nearer(conv: str, taps: Any) -> None:
    model = trained(nn.Conv2d(8, 16, **{"kernel_size": 3, **CONVS[conv]}), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
    expected = outputs(model)
    plain, fitted = copy.deepcopy(model), copy.deepcopy(model)
    convert(plain, taps)
    recalibrate(plain, images())
    report = convert(fitted, taps, data=images())
    assert distance(fitted, expected) < 0.95 * distance(plain, expected)
    (entry,) = report.converted
    # What is reported is the error of the layer's own outputs, up to their mean where no bias can make up for it.
    wanted, found = outputs(model[:4]), outputs(fitted[:4])
    left, whole = (t - t.mean((0, 2, 3), keepdim=True) for t in (wanted - found, wanted))
    assert entry.output_residual == pytest.approx((left.norm() / whole.norm()).item(), rel=1e-3)


def test_angle_groups_and_two_layers() -> None:
    model = trained(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    expected = outputs(model)
    plain, fitted = copy.deepcopy(model), copy.deepcopy(model)
    convert(plain, "profile", angle_groups=4)
    recalibrate(plain, images())
    convert(fitted, "profile", angle_groups=4, data=images())
    assert distance(fitted, expected) < 0.9 * distance(plain, expected)


def test_a_convolution_that_is_line_segments_stays_what_it_is() -> None:
    model = trained(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16))
    model[3] = RotateConv2d(8, 16, 3, padding=1).fuse().eval()
    recalibrate(model, images())
    expected = outputs(model)
    convert(model, data=images())
    assert distance(model, expected) < 5e-3


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.relu(self.conv(x)))

    model = trained(Twice())
    expected = outputs(model)
    plain, fitted = copy.deepcopy(model), copy.deepcopy(model)
    convert(plain)
    convert(fitted, data=images())
    assert distance(fitted, expected) < distance(plain, expected)


def test_flags_random_numbers_and_the_rest_of_the_model_are_as_before() -> None:
    model = trained(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten())
    model[3].weight.requires_grad_(False)
    model[5].train()
    stem, bias, momentum = model[0].weight.clone(), model[3].bias, model[4].momentum
    state = torch.get_rng_state()
    progress: list[tuple[int, int, str]] = []
    convert(model, data=images(), progress=lambda *call: progress.append(call))
    assert torch.equal(model[0].weight, stem)
    assert model[3].bias is bias
    assert not model[3].weight.requires_grad
    assert (model[5].training, model[4].training, model[4].momentum) == (True, False, momentum)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert progress == [(1, 2, "3"), (2, 2, "3")]
    expected = torch.get_rng_state()
    torch.set_rng_state(state)
    convert(trained(nn.Conv2d(8, 8, 3)), data=images())
    again = copy.deepcopy(model)
    assert torch.equal(again[3].weight, model[3].weight)
    assert expected is not None


def test_it_is_the_same_every_time() -> None:
    first, second = (trained(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(2))
    convert(first, data=images())
    torch.randn(7)
    convert(second, data=images())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def batches() -> Iterator[Tensor]:
    yield from images()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (batches(), "data must be batches that can be iterated many times, not an iterator: make a list"),
        ([], "expected at least one image to fit the layers to, not 0"),
        ([torch.full((4, 3, 12, 12), torch.nan)], "inputs or outputs that are not finite: look for NaN"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(data: Any, message: str) -> None:
    model = trained(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        convert(model, data=data)
    assert type(model[3]) is nn.Conv2d
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batches_may_be_those_of_a_loader() -> None:
    model = trained(nn.Conv2d(8, 8, 3))
    labeled = torch.utils.data.TensorDataset(torch.cat(images()), torch.zeros(64))
    report = convert(model, data=torch.utils.data.DataLoader(labeled, batch_size=20))
    assert report.converted[0].output_residual is not None
    assert "of its outputs 0." in str(report)
