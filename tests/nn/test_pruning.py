"""Pruning by size: which weights become zeros, and that training and quantization leave them so."""

import pytest
import torch
from torch import nn

from rotateconv import RotateConv2d, quantize
from rotateconv.nn.pruning import prune_smallest


def test_the_smallest_of_all_kernels_become_zeros_and_stay_so() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 8, (1, 2)),
        RotateConv2d(8, 8),
        nn.Conv2d(8, 8, 1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    prune_smallest(model, 0.5)
    kernels = torch.cat([before[name].flatten() for name in ("1.weight", "2.weight")])
    bound = kernels.abs().median()
    masks = {name: before[name].abs() > bound for name in ("1.weight", "2.weight")}
    assert list(model.state_dict()) == list(before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * masks[name] if name in masks else before[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 1, 5, 6)).square().sum().backward()
        optimizer.step()
    after, quantized = dict(model.named_parameters()), quantize(model, 2).state_dict()
    for name, mask in masks.items():
        assert torch.equal(after[name] != 0, mask)
        assert (quantized[name][~mask] == 0).all()


def test_what_cannot_be_pruned() -> None:
    with pytest.raises(ValueError, match="share of weights to prune must be at least 0 and below 1, got 1"):
        prune_smallest(nn.Conv2d(1, 1, 3), 1)
    with pytest.raises(ValueError, match="the model has no kernels to prune"):
        prune_smallest(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)), 0.5)
