"""Laws of codebooks, factored and masked kernels: gradients, the nearest dense kernel, what a slice can be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rotateconv.errors import ConfigError
from rotateconv.lab.train.weights import load_weights
from rotateconv.models import CONVS
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.codebook import ACROSS, CodebookConv2d, nearest_multiple
from rotateconv.nn.factored import LowRankConv2d, OuterConv2d, SeparableConv2d
from rotateconv.nn.masked import SEEDS, MaskedConv2d, positions_of_seed, seed_of_positions

FITTED = [conv for conv in CONVS if not conv.startswith("conv")]
EXACT: dict[str, Callable[..., nn.Module]] = {
    "codebook": lambda *args, **options: CodebookConv2d(*args, entries=6, **options),
    "low rank": lambda *args, **options: LowRankConv2d(*args, numbers=2, **options),
    "outer": OuterConv2d,
    "separable": SeparableConv2d,
    "masked": MaskedConv2d,
    "patterns": lambda *args, **options: MaskedConv2d(*args, patterns=3, **options),
}


@pytest.mark.parametrize("make", [OuterConv2d, LowRankConv2d])
def test_gradients(make: Callable[..., nn.Module]) -> None:
    layer, images = make(2, 4, 3, padding=1, dtype=torch.float64), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def output(*values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (images,))

    assert torch.autograd.gradcheck(output, parameters)


def test_the_gradient_of_a_kernel_goes_to_the_weight_and_to_its_codebook_kernel() -> None:
    layer = CodebookConv2d(3, 8, 3, entries=4, dtype=torch.float64)
    gradient = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    layer.kernel().backward(gradient)
    index, factor = layer.assign()
    for o in range(8):
        for i in range(3):
            entry = layer.codebook[index[o, i]].detach()
            along = (gradient[o, i] * entry).sum() / entry.square().sum() * entry
            torch.testing.assert_close(layer.weight.grad[o, i], along + ACROSS * (gradient[o, i] - along))
    for n in range(4):
        expected = (factor[..., None, None] * gradient)[index == n].sum(0)
        torch.testing.assert_close(layer.codebook.grad[n], expected)


@pytest.mark.parametrize("entries", [2, 5, 256])
def test_slices_are_the_nearest_multiples_of_the_codebook(entries: int) -> None:
    layer = CodebookConv2d(4, 6, 3, entries=entries, dtype=torch.float64)
    for o in range(6):
        for i in range(4):
            wanted, tried = layer.weight[o, i].detach(), []
            for entry in layer.codebook.detach():
                tried.append((wanted - (wanted * entry).sum() / entry.square().sum() * entry).norm())
            assert (wanted - layer.kernel()[o, i].detach()).norm() == pytest.approx(min(tried))
    index, factor = nearest_multiple(torch.zeros(2, 3, 3), torch.zeros(4, 3, 3))
    assert (index.tolist(), factor.tolist()) == ([0, 0], [0.0, 0.0])


def test_an_index_is_learned() -> None:
    """A slice that its gradient pulls elsewhere takes another kernel of the codebook."""
    layer, target = CodebookConv2d(4, 8, 3, entries=8), CodebookConv2d(4, 8, 3, entries=8)
    before = layer.assign()[0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        loss = (layer.kernel() - target.kernel().detach()).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert (layer.assign()[0] != before).float().mean() > 0.2


@pytest.mark.parametrize("name", EXACT)
def test_fit_finds_a_kernel_of_its_own_kind_again(name: str) -> None:
    """Low rank and separable ones as a product, which does not say how it is divided between the two."""
    source, layer = (EXACT[name](4, 8, 3, bias=False, dtype=torch.float64) for _ in range(2))
    layer.fit(source.kernel())
    images = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(images), source(images))


@pytest.mark.parametrize("conv", FITTED)
def test_every_entry_fits_a_dense_kernel_better_than_chance(conv: str) -> None:
    dense = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    fitted = CONVS[conv](8, 12, 3, padding=1, bias=False)
    images = torch.randn(4, 8, 9, 9)
    fitted.fit(dense.weight)
    expected = dense(images)
    assert (fitted(images) - expected).norm() < 0.97 * expected.norm()


@pytest.mark.parametrize("groups", [1, 2])
def test_the_product_of_low_rank_is_the_convolution_with_its_kernel(groups: int) -> None:
    layer = LowRankConv2d(4, 6, 3, 2, 1, 2, groups, padding_mode="reflect", dtype=torch.float64)
    conv = nn.Conv2d(4, 6, 3, 2, 1, 2, groups, padding_mode="reflect", dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(layer.kernel())
        conv.bias.copy_(layer.bias)
    images = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(images), conv(images))
    layer.fit(layer.kernel())
    torch.testing.assert_close(layer(images), conv(images))


def test_patterns_are_those_that_a_trained_kernel_has_most_often() -> None:
    layer = MaskedConv2d(16, 16, 3, kept=4, patterns=2)
    kernel = torch.randn(16, 16, 3, 3) * 0.01
    kernel[:9, :, 1] += 1  # the middle row and a corner, or the middle column and another
    kernel[9:, :, :, 1] -= 1
    kernel[:9, :, 0, 0] += 1
    kernel[9:, :, 2, 2] += 1
    kernel[0, 0] = torch.randn(3, 3)  # and one slice of its own
    layer.fit(kernel)
    assert len(layer.position.flatten(0, 1).unique(dim=0)) == 2
    cells = kernel.flatten(-2)
    assert all(row == [0, 3, 4, 5] for row in layer.position[1:9].flatten(0, 1).tolist())
    assert all(row == [1, 4, 7, 8] for row in layer.position[9:].flatten(0, 1).tolist())
    assert torch.equal(layer.weight, cells.gather(-1, layer.position.long()))


def test_positions_of_a_seed() -> None:
    for seed in (0, 1, 4711, SEEDS - 1):
        position = positions_of_seed(seed, 50, 25, 6)
        assert (position.diff(dim=-1) > 0).all()
        assert seed_of_positions(position, 25) == seed
        position[49, 5] = position[49, 4]
        assert seed_of_positions(position, 25) is None
    # By hand, in whole numbers without end: what a reader in another language computes.
    keys = []
    for n in range(9):
        x = (n + 9 * 1 + 4711 * 2654435761) % 2**32
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        keys.append(x ^ (x >> 16))
    assert positions_of_seed(4711, 2, 9, 4)[1].tolist() == sorted(sorted(range(9), key=keys.__getitem__)[:4])


def test_what_a_layer_cannot_fit() -> None:
    layer = CodebookConv2d(4, 8, 3)
    with pytest.raises(ValueError, match="expected a kernel of 8 x 4 slices of 3 x 3 or fewer, got 8 x 4 x 5 x 5"):
        layer.fit(torch.zeros(8, 4, 5, 5))
    with pytest.raises(ValueError, match="kernel must be finite, got 288 NaN or infinite values"):
        layer.fit(torch.full((8, 4, 3, 3), torch.nan))
    for entries in (1, 257):
        with pytest.raises(ValueError, match=f"entries must be between 2 and 256, got {entries}"):
            CodebookConv2d(4, 8, 3, entries=entries)
    with pytest.raises(ValueError, match="patterns must be a positive integer, got 0"):
        MaskedConv2d(4, 8, 3, patterns=0)
    with pytest.raises(ValueError, match="numbers must be a positive integer, got 0"):
        LowRankConv2d(4, 8, 3, numbers=0)


@pytest.mark.parametrize("conv", ["codebook16", "outer", "pattern4"])
def test_representations_build_the_layer_again(conv: str) -> None:
    layer = CONVS[conv](4, 6, 5, stride=2, padding=1, bias=False)
    kinds = {kind.__name__: kind for kind in (CodebookConv2d, OuterConv2d, MaskedConv2d)}
    again = eval(repr(layer), kinds)
    assert isinstance(again, ConvBase)
    assert repr(again) == repr(layer)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.kernel(), layer.kernel())


@pytest.mark.parametrize("wrong", [[0, 1, 2, 9], [-1, 1, 2, 3], [1, 0, 2, 3], [1, 1, 2, 3]])
def test_positions_of_a_strangers_file_are_checked(wrong: list[int]) -> None:
    model = nn.Sequential(MaskedConv2d(2, 2, 3))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["0.position"][1, 1] = torch.tensor(wrong)
    with pytest.raises(RuntimeError, match=r"0\.position must be ascending positions of 9"):
        model.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"weights in a file do not fit the model: 0\.position must be ascending"):
        load_weights(model, state, "a file")
