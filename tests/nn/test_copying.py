"""Copies of models that keep tensors of a living computation."""

import torch
from torch import nn

from rotateconv.nn.copying import copy_model


class Keeping(nn.Module):
    """A layer that keeps what it computed, under two names, and a weight that another module has too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.same = self.linear

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = self.linear(images)
        self.again = self.seen
        return self.seen


def test_what_was_computed_is_copied_and_cut_from_its_graph() -> None:
    model = Keeping()
    images = torch.randn(4, 3)
    scores = model(images)
    copied = copy_model(model)
    assert torch.equal(copied.seen, scores)
    assert copied.again is copied.seen
    assert not copied.seen.requires_grad
    assert copied.seen.data_ptr() != model.seen.data_ptr()
    assert copied.same is copied.linear
    assert copied.linear.weight is not model.linear.weight
    assert copied.linear.weight.requires_grad
    scores.sum().backward()  # the model's own graph is whole
    assert copied.linear.weight.grad is None


def test_a_place_may_be_given_something_else() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    other = nn.Linear(2, 3)
    copied = copy_model(model, {id(model[0]): other})
    assert copied[0] is other
    assert isinstance(copied[1], nn.ReLU)
