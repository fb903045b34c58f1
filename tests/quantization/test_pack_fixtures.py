"""Packed files that the first version of the format wrote: they load, and give the outputs that they gave then."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from rotateconv import load_packed
from rotateconv.quantization.pack import describe_packed

FOLDER = Path(__file__).parents[1] / "fixtures" / "packed"
OUTPUTS = json.loads((FOLDER / "outputs.json").read_text())
FILES = sorted(path.stem for path in FOLDER.glob("*.rcp"))


def own_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4))


def test_every_kind_of_file_is_there() -> None:
    assert set(FILES) == set(OUTPUTS)
    assert set(FILES) >= {"rotate4", "rotate2p", "rotate2p-fixed", "rotate2b", "mask4", "converted", "own-model"}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_it_gives_the_outputs_that_it_gave(name: str, fused: bool) -> None:
    model = load_packed(FOLDER / f"{name}.rcp", fused=fused, model=own_model() if name == "own-model" else None)
    images = torch.linspace(-2, 2, 2 * 1 * 8 * 8).sin().view(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), torch.tensor(OUTPUTS[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_it_says_what_it_said(name: str) -> None:
    description = describe_packed(FOLDER / f"{name}.rcp")
    assert description.classes == list("abcd")
    assert (description.mean, description.std, description.input_size) == ([0.5], [0.25], [1, 8, 8])
    assert description.bits == ([3, 4, 8] if name == "converted" else [4, 5, 8])
    assert (description.build is None) == (name == "own-model")
