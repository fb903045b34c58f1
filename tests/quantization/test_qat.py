"""Quantization-aware training: gradients, what is left afterwards, and what it recovers."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from registries import each_conv
from rotateconv import CONVS, RotateConv2d, export_onnx, load_packed, pack, quantize
from rotateconv.errors import InputError
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.primitives import scale
from rotateconv.quantization.qat import QuantizedTraining
from rotateconv.quantization.quantize import entries, quantize_in_place

BITS = {"weight_bits": 2, "angle_bits": 3, "dense_bits": 3}


def losses(
    model: nn.Module, images: Tensor, labels: Tensor, steps: int, quantized: QuantizedTraining | None
) -> list[float]:
    learned = list(quantized.scales.values()) if quantized is not None else []
    optimizer = torch.optim.SGD([*model.parameters(), *learned], lr=0.05, momentum=0.9)
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


def small_model(conv: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        CONVS[conv](8, 16, 3),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


@each_conv
def test_a_step_moves_the_exact_numbers_by_the_gradient_at_the_quantized_ones(conv: str) -> None:
    model, images, labels = small_model(conv), torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    quantized = copy.deepcopy(model)
    quantize_in_place(entries(quantized, Bits(*BITS.values())), keep_unused=True)
    nn.functional.cross_entropy(quantized(images), labels).backward()
    gradients = {name: parameter.grad for name, parameter in quantized.named_parameters()}
    losses(model, images, labels, 1, QuantizedTraining(model, **BITS))
    for name, parameter in model.named_parameters():
        expected = before[name] - 0.05 * gradients[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-7)
    moved = dict(model[1].named_parameters())
    assert any(not torch.equal(parameter, before[f"1.{name}"]) for name, parameter in moved.items())


@pytest.mark.parametrize("scales", ["searched", "learned"])
@each_conv
@pytest.mark.parametrize("weight_bits", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_what_is_trained_is_what_quantize_gives_and_pack_holds(
    conv: str, scales: str, weight_bits: int, tmp_path: Path
) -> None:
    model, images, labels = small_model(conv), torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    bits = {**BITS, "weight_bits": weight_bits}
    quantized = QuantizedTraining(model, **bits, scales=scales)
    found = losses(model, images, labels, 20, quantized)
    assert found[-1] < found[0]
    result = quantize(model, **bits, scales=quantized.scales)
    with quantized():
        unused = {e.name: e.unused() for e in entries(model, Bits(*bits.values())) if e.kind == "angle"}
        inside = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in result.named_parameters():
        without_effect = unused.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[~without_effect], inside[name][~without_effect]), name
        assert not parameter[without_effect].any()
    # Outside of the context the exact numbers are back.
    assert any(not torch.equal(parameter, inside[name]) for name, parameter in model.named_parameters())
    pack(result, tmp_path / "model.rcp", **bits)
    loaded = load_packed(tmp_path / "model.rcp", model=small_model(conv)).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in result.state_dict().items())


class LearnedStep(torch.autograd.Function):
    """Learned step sizes after the paper, a slice's at a time, in whatever precision it is given."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, weight: Tensor, size: Tensor, bits: int) -> Tensor:
        context.save_for_backward(weight, size)
        context.limit = 2 ** (bits - 1) - 1
        if bits == 1:
            return torch.where(weight < 0, -size, size)
        return (weight / size).round().clamp(-context.limit, context.limit) * size

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, size = context.saved_tensors
        limit, ratio = context.limit, weight / size
        if limit == 0:
            slope, passes = torch.where(weight < 0, -1.0, 1.0).to(weight), torch.ones_like(weight)
        else:
            slope = torch.where(ratio <= -limit, -limit, torch.where(ratio >= limit, limit, ratio.round() - ratio))
            passes = (ratio.abs() <= limit).to(weight)
        factor = 1 / (weight.numel() * max(1, limit)) ** 0.5
        return gradient * passes, (gradient * slope).sum() * factor, None


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_learned_scales_and_their_weights_have_the_gradients_of_the_paper(bits: int) -> None:
    model = nn.Sequential(nn.Linear(30, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    quantized = QuantizedTraining(model, dense_bits=bits, scales="learned")
    with torch.no_grad():
        for size in quantized.scales.values():
            size.mul_(scale(torch.randint(bits - 10, 1, size.shape) + 0.3))  # of few bits, some clip
    images = torch.randn(2, 7, 30)
    weights = [model[at].weight.detach().double().requires_grad_() for at in (0, 2)]
    # One pass after the other adds up, as for every gradient; the first brings the scales into their range.
    for batch in images:
        with quantized():
            model(batch).square().sum().backward()
    sizes = [size.detach().double().requires_grad_() for size in quantized.scales.values()]
    for batch in images.double():
        features = batch
        for weight, size, activation in zip(weights, sizes, (torch.tanh, torch.square), strict=True):
            # The pass sees the scale on the grid, the gradient goes to the scale as it is.
            grid = size + (scale((8 * size.log2()).round()).double() - size).detach()
            rows = [LearnedStep.apply(w, s, bits) for w, s in zip(weight, grid, strict=True)]
            features = activation(features @ torch.stack(rows).T)
        features.sum().backward()
    for at, weight in zip((0, 2), weights, strict=True):
        torch.testing.assert_close(model[at].weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)
        if bits > 1:
            assert (weight.grad == 0).any() or bits == 8 or at == 2
    for found, expected in zip(quantized.scales.values(), sizes, strict=True):
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-4)


def test_learned_scales_start_from_the_least_squared_error_and_move() -> None:
    model, images, labels = small_model("rotate2p"), torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    quantized = QuantizedTraining(model, **BITS, scales="learned")
    assert list(quantized.scales) == ["0.weight", "1.weight", "5.weight"]
    start = quantize(model, **BITS)
    assert all(
        torch.equal(tensor, quantize(model, **BITS, scales=quantized.scales).state_dict()[name])
        for name, tensor in start.state_dict().items()
    )
    losses(model, images, labels, 20, quantized)
    searched, learned = quantize(model, **BITS), quantize(model, **BITS, scales=quantized.scales)
    assert not torch.equal(searched[1].weight, learned[1].weight)


@pytest.mark.parametrize("size", [0.0, -1.0, 1e-30, 1e30])
def test_a_scale_that_has_left_its_weights_behind_comes_back(size: float) -> None:
    model = nn.Linear(4, 2)
    quantized = QuantizedTraining(model, dense_bits=3, scales="learned")
    with torch.no_grad():
        quantized.scales["weight"].fill_(size)
    with quantized():
        assert model.weight.isfinite().all()
        assert model.weight.any(1).all()
    assert (quantized.scales["weight"] > 0.01 * model.weight.abs().amax(1)).all()
    assert (quantized.scales["weight"] < model.weight.abs().amax(1)).all()


@pytest.mark.parametrize("conv", ["rotate4", "rotate2", "rotate2p-g4"])
def test_an_angle_whose_weights_are_0_for_the_moment_keeps_its_direction(conv: str) -> None:
    model, images, labels = small_model(conv), torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    layer = model[1]
    assert isinstance(layer, RotateConv2d)
    with torch.no_grad():
        layer.angle.fill_(torch.pi / 2)
        layer.weight[:, :4] *= 1e-3  # beside the others they become 0
    quantized = QuantizedTraining(model, **BITS)
    with quantized():
        assert not layer.weight[:, :4].any()
        assert (layer.angle == torch.pi / 2).all() if conv != "rotate2" else (layer.angle.abs() == torch.pi / 2).all()
        nn.functional.cross_entropy(model(images), labels).backward()
    # Turned to where it was, the gradient of its weights would be that of another line.
    turned = copy.deepcopy(model)
    quantize_in_place(entries(turned, Bits(*BITS.values())))
    turned.zero_grad()
    nn.functional.cross_entropy(turned(images), labels).backward()
    assert not torch.allclose(turned[1].weight.grad[:, :4], layer.weight.grad[:, :4])


def test_training_quantized_beats_quantizing_afterwards() -> None:
    bits = {"weight_bits": 2, "angle_bits": 3, "dense_bits": 2}
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    model = small_model("rotate4")
    losses(model, images, labels, 60, None)

    def after(scales: dict[str, nn.Parameter]) -> float:
        with torch.no_grad():
            quantized = quantize(model, **bits, scales=scales)
            return nn.functional.cross_entropy(quantized(images), labels).item()

    before = after({})
    training = QuantizedTraining(model, **bits, scales="learned")
    losses(model, images, labels, 60, training)
    assert after(training.scales) < 0.7 * before


def test_an_error_inside_puts_the_exact_numbers_back() -> None:
    model = small_model("rotate4")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyError), QuantizedTraining(model, 2)():
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_words_for_the_scales_are_refused() -> None:
    with pytest.raises(InputError, match="scales must be 'searched' or 'learned', got 'lsq'"):
        QuantizedTraining(nn.Linear(2, 2), scales="lsq")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2])
def test_binary_and_ternary_weights_are_trained_and_exported(bits: int, tmp_path: Path) -> None:
    """BWN and TWN: kernels of so many values a channel that learn, and are the same in every file."""
    model, images, labels = small_model("conv3x3"), torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    found = losses(model, images, labels, 60, QuantizedTraining(model, bits))
    assert found[-1] < 0.3 * found[0]
    expected = quantize(model.eval(), bits)
    rows = expected[1].weight.detach().flatten(1)
    assert all(len(row.abs().unique()) == 1 if bits == 1 else len(row.unique()) <= 3 for row in rows)
    pack(model, tmp_path / "model", weight_bits=bits)
    assert torch.equal(load_packed(tmp_path / "model", model=model)(images), expected(images))
    pytest.importorskip("onnxruntime")
    export_onnx(model, tmp_path / "model.onnx", input_size=(1, 8, 8), compact=True, weight_bits=bits)  # compares itself
