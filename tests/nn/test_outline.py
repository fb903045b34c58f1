"""Models without values: the modules and sizes of those with them, and no draw."""

import pytest
import torch
from torch import nn

from registries import each_conv
from rotateconv import build_model
from rotateconv.nn.outline import outlined


@each_conv
def test_an_outline_has_the_tensors_of_the_model_and_none_of_its_values(conv: str) -> None:
    state = torch.get_rng_state()
    with outlined():
        outline = build_model("resnet20", conv, width=0.25)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    model = build_model("resnet20", conv, width=0.25)
    for (name, found), (expected, tensor) in zip(outline.state_dict().items(), model.state_dict().items(), strict=True):
        assert (name, found.shape, found.dtype) == (expected, tensor.shape, tensor.dtype)
        assert found.is_meta, name
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in outline.named_parameters() if parameter.requires_grad] == learned


def test_methods_that_write_are_left_out_for_tensors_without_values_alone() -> None:
    real = torch.zeros(3)
    with outlined():
        empty = torch.empty(3)
        assert empty.normal_() is empty
        assert real.fill_(2.0) is real
        assert empty.requires_grad_().requires_grad
        assert not empty.detach_().requires_grad
        frozen = nn.Linear(2, 2).requires_grad_(False)
    assert real.tolist() == [2.0, 2.0, 2.0]
    assert not frozen.weight.requires_grad


def test_the_mode_ends_with_the_block() -> None:
    with pytest.raises(KeyError), outlined():
        raise KeyError
    assert torch.empty(2).device.type == "cpu"
    assert torch.zeros(2).fill_(1.0).tolist() == [1.0, 1.0]
