"""Training through the rounding: gradients, what is left afterwards, and what it recovers."""

import pytest
import torch
from torch import Tensor, nn

from rotateconv import CONVS, quantize
from rotateconv.quantization.qat import QuantizedTraining


def losses(model: nn.Module, images: Tensor, labels: Tensor, steps: int, bits: dict[str, int] | None) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    quantized = QuantizedTraining(model, **bits) if bits else None
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        if quantized is None:
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
        else:
            with quantized():
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def small_net(conv: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        CONVS[conv](8, 16, 3),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


@pytest.mark.parametrize("conv", CONVS)
def test_a_step_moves_the_exact_numbers_by_the_gradient_at_the_rounded_ones(conv: str) -> None:
    bits = {"weight_bits": 2, "angle_bits": 3, "dense_bits": 3}
    model, images, labels = small_net(conv), torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rounded = quantize(model, **bits)
    nn.functional.cross_entropy(rounded(images), labels).backward()
    gradients = {name: parameter.grad for name, parameter in rounded.named_parameters()}
    losses(model, images, labels, 1, bits)
    for name, parameter in model.named_parameters():
        expected = before[name] - 0.05 * gradients[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-7)
    moved = dict(model[1].named_parameters())
    assert any(not torch.equal(parameter, before[f"1.{name}"]) for name, parameter in moved.items())


@pytest.mark.parametrize("conv", ["rotate4", "rotate2", "rotate2p", "rotate4-fixed"])
def test_what_is_trained_is_what_quantize_gives(conv: str) -> None:
    bits = {"weight_bits": 2, "angle_bits": 3}
    model, images, labels = small_net(conv), torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    found = losses(model, images, labels, 20, bits)
    assert found[-1] < found[0]
    result = quantize(model, **bits)
    with QuantizedTraining(model, **bits)():
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name}
    assert all(torch.equal(tensor, result.state_dict()[name]) for name, tensor in inside.items())
    changed = [
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, result.state_dict()[name])
    ]
    assert changed  # outside of the context the exact numbers are back


def test_training_through_the_rounding_beats_rounding_afterwards() -> None:
    bits = {"weight_bits": 2, "angle_bits": 3, "dense_bits": 2}
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    model = small_net("rotate4")
    losses(model, images, labels, 60, None)

    def after(net: nn.Module) -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(quantize(net, **bits)(images), labels).item()

    before = after(model)
    losses(model, images, labels, 60, bits)
    assert after(model) < 0.7 * before


def test_an_error_inside_puts_the_exact_numbers_back() -> None:
    model = small_net("rotate4")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyError), QuantizedTraining(model, 2)():
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
