"""Statistics of norms measured again: the values, what stays as it was, and bad input."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from rotateconv import build_model, quantize, recalibrate
from rotateconv.quantization.primitives import to_bf16


def batches(*sizes: int, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, channels, 8, 8, generator=generator) * 3 + 1 for size in sizes]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def test_batches_count_by_their_images() -> None:
    norm = nn.BatchNorm2d(3).double()
    norm.running_mean.fill_(torch.nan)  # whatever they were
    images = [batch.double() for batch in batches(2, 5, 1)]
    recalibrate(norm, images)
    channels = [batch.transpose(0, 1).flatten(1) for batch in images]
    total = sum(len(batch) for batch in images)
    mean = sum(len(batch) * rows.mean(1) for batch, rows in zip(images, channels, strict=True)) / total
    var = sum(len(batch) * rows.var(1) for batch, rows in zip(images, channels, strict=True)) / total
    torch.testing.assert_close(norm.running_mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_var, var, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet20", "densenet40"])
def test_equal_batches_give_what_torch_gives_for_averaged_weights(name: str) -> None:
    model = (
        build_model(name, "rotate4", width=0.5).double() if name == "resnet20" else build_model(name, growth=2).double()
    )
    images = [batch.double() for batch in batches(4, 4, 4)]
    recalibrate(model, images)
    found = statistics(model)
    update_bn(images, model)
    for key, expected in statistics(model).items():
        torch.testing.assert_close(found[key], expected, rtol=1e-9, atol=1e-9, msg=key)


def test_dropout_drops_nothing() -> None:
    wet, dry = (build_model("densenet40", growth=2, dropout=rate) for rate in (0.5, 0.0))
    dry.load_state_dict(wet.state_dict())
    for model in (wet, dry):
        recalibrate(model, batches(4, 2))
    assert all(torch.equal(value, statistics(dry)[name]) for name, value in statistics(wet).items())


def test_all_but_the_statistics_stays() -> None:
    model = build_model("resnet20", "rotate2p", width=0.5).train()
    model.stages[0].eval()
    model.stem_norm = nn.BatchNorm2d(3, track_running_stats=False)  # keeps none
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[1].momentum, norms[2].momentum = None, 0.3
    modes, momenta = [module.training for module in model.modules()], [norm.momentum for norm in norms]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recalibrate(model, batches(4))
    assert [module.training for module in model.modules()] == modes
    assert [norm.momentum for norm in norms] == momenta
    for name, tensor in model.state_dict().items():
        kept = "running" not in name and "num_batches" not in name
        assert torch.equal(tensor, before[name]) == kept, name


def test_a_failing_batch_leaves_flags_and_momentum() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).eval()
    with pytest.raises(RuntimeError):
        recalibrate(model, [torch.zeros(2, 4, 8, 8)])
    assert model[0].momentum == 0.1
    assert not model[0].training


def test_pairs_with_labels_are_batches_too() -> None:
    one, two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    recalibrate(one, batches(4, 2))
    recalibrate(two, [(images, torch.zeros(len(images))) for images in batches(4, 2, 0)])
    assert all(torch.equal(value, statistics(two)[name]) for name, value in statistics(one).items())


def test_no_image_is_refused_and_changes_nothing() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(7)
    with pytest.raises(ValueError, match="expected at least one image to measure the statistics on, not 0"):
        recalibrate(norm, [])
    assert (norm.running_mean == 7).all()


@pytest.mark.parametrize("conv", ["conv3x3", "rotate4", "mask4"])
def test_quantizing_with_images_is_rounding_measuring_and_rounding(conv: str) -> None:
    model = build_model("resnet20", conv, width=0.5)
    recalibrate(model, batches(4))  # not the ones of the start, which are exact in 16 bits
    original = statistics(model)
    found = quantize(model, 3, 4, calibration=batches(6, 6))
    expected = quantize(model, 3, 4)
    recalibrate(expected, batches(6, 6))
    measured = statistics(expected)
    for name, tensor in found.state_dict().items():
        if "running" in name:
            assert torch.equal(tensor, to_bf16(measured[name]).float()), name
            assert not torch.equal(tensor, to_bf16(original[name]).float()), name
        else:
            assert torch.equal(tensor, expected.state_dict()[name]), name
    assert all(torch.equal(value, statistics(model)[name]) for name, value in original.items())
    again = quantize(found, 3, 4).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.state_dict().items())


class Norms(nn.Module):
    """A norm that is passed twice, and one that no pass reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.never.running_mean.fill_(7.0)
        self.never.running_var.fill_(3.0)
        self.never.num_batches_tracked.fill_(5)

    def forward(self, images: Tensor) -> Tensor:
        self.twice(images)
        return self.twice(images + 10)


def test_a_norm_passed_twice_counts_both_and_one_never_passed_stays() -> None:
    batches = [torch.randn(4, 1, 5, 5) for _ in range(4)]
    model, expected = Norms(), Norms()
    recalibrate(model, batches)
    update_bn(batches, expected)
    torch.testing.assert_close(model.twice.running_mean, expected.twice.running_mean)
    torch.testing.assert_close(model.twice.running_var, expected.twice.running_var)
    assert (model.never.running_mean, model.never.running_var, model.never.num_batches_tracked) == (7.0, 3.0, 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused_and_change_nothing(bad: float) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="the images give the norm '0' statistics that are not finite: look for NaN"):
        recalibrate(model, [torch.randn(2, 1, 3, 3), torch.full((2, 1, 3, 3), bad)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].momentum == 0.1
