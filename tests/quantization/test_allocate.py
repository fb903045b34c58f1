"""Bits by part of a model, under a budget."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from rotateconv import RotateConv2d, build_model, pack, quantize
from rotateconv.quantization.allocate import STEPS, allocate_bits
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.quantize import entries

IMAGES = [torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(number)) for number in range(2)]


def divergence(model: nn.Module, quantized: nn.Module) -> float:
    """Of the predictions, as torch has it."""
    images = torch.cat(IMAGES)
    exact, found = model(images).log_softmax(1), quantized(images).log_softmax(1)
    return float(nn.functional.kl_div(found, exact, reduction="batchmean", log_target=True))


def small(conv: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet20", conv, width=0.5).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("conv", ["rotate2p", "rotate4", "conv3x3"])
def test_no_other_bits_that_fit_cost_less(conv: str, tmp_path: Path) -> None:
    model = small(conv)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    largest = allocate_bits(model, IMAGES, 10**6)
    budget = int(0.6 * largest.bytes)
    found = allocate_bits(model, IMAGES, budget)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    pack(model, tmp_path / "model", fold_norms=True, **found.bits.arguments)
    # Fresh weights are not as evenly spread as trained ones.
    assert 0.85 * found.bytes < (tmp_path / "model").stat().st_size <= found.bytes <= budget
    base = (found.bits.weight, found.bits.angle)
    chosen = {f"stages.{stage}.*": dict(found.bits.layers).get(f"stages.{stage}.*", base) for stage in range(3)}
    assert len(found.bits.layers) < 3

    def alone(part: str, step: tuple[int, int]) -> float:
        """The cost of a part by another way: all others have as many bits as there can be, and are put back."""
        bits = {**found.bits.arguments, "layer_bits": {part: step}}
        quantized = quantize(model, **bits).state_dict()
        only = build_model("resnet20", conv, width=0.5).eval()
        start = part.removesuffix("*")
        mine = {n: quantized[n] if n.startswith(start) and before[n].dim() > 1 else t for n, t in before.items()}
        mine |= {n: before[n] for n in before if n.endswith("profile")}
        only.load_state_dict(mine)
        return divergence(model, only)

    costs = {(part, step): alone(part, step) for part in chosen for step in STEPS}
    assert found.divergence == pytest.approx(sum(costs[part, chosen[part]] for part in chosen), rel=1e-3, abs=1e-5)
    for steps in itertools.product(STEPS, repeat=3):
        if sum(costs[pair] for pair in zip(chosen, steps, strict=True)) < 0.99 * found.divergence:
            own = Bits.of(*base, 8, found.bits.levels, None, dict(zip(chosen, steps, strict=True)))
            more = sum(
                (ours.bits - theirs.bits) * ours.tensor.numel()
                for ours, theirs in zip(entries(model, own), entries(model, found.bits), strict=True)
            )
            assert found.bytes + more / 8 > budget - 300  # other bits in each part need more of the header


def test_a_chain_has_parts_too_and_weights_of_lines_no_zero() -> None:
    torch.manual_seed(0)
    lines = [RotateConv2d(8, 8, 3, padding=1, taps="shared") for _ in range(7)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *lines, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = allocate_bits(model, IMAGES, 10**5).bits
    own = dict(found.layers)
    bits = [own.get(str(number), (found.weight, found.angle)) for number in range(1, 8)]
    assert bits[0:6:2] == bits[1:7:2]  # neighbors are one part
    assert found.levels == 2**found.weight


def test_what_cannot_be_allocated() -> None:
    with pytest.raises(ValueError, match=r"nothing fits in 100 bytes: with the fewest bits the file has [0-9,]+$"):
        allocate_bits(small("rotate2p"), IMAGES, 100)
    with pytest.raises(ValueError, match="needs images"):
        allocate_bits(small("rotate2p"), [], 10**6)
    with pytest.raises(ValueError, match="needs convolutions that weight_bits are for"):
        allocate_bits(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), IMAGES, 10**6)
