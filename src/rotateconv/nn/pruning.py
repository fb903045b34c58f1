"""Pruning by size: the smallest weights of a model become zeros, and stay so in training."""

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from rotateconv.errors import InputError
from rotateconv.nn._conv_base import ConvBase


def prune_smallest(model: nn.Module, share: float) -> None:
    """Set the smallest weights of a model's kernels to 0, in place, and keep them there while it is trained.

    The kernels are those that `quantize` gives its weight_bits: of this library's layers, and of dense convolutions
    beyond 1x1 that are neither the first nor grouped. They are ranked together, by their absolute values. The gradient
    of a weight that is 0 is then 0, as are its momentum and decay: nothing but the zeros is in the state dict, and
    `quantize`, with 2 bits or more, and `pack` keep them, where they take less than a bit each.

    Args:
        model: Trained; on its device, before an optimizer is made.
        share: Of these weights that become 0, at least 0 and below 1.

    Raises:
        ValueError: If share is out of range, or the model has no such weight.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        >>> prune_smallest(model, 0.75)
        >>> int((model[1].weight == 0).sum()), int((model[0].weight == 0).sum())
        (432, 0)

    Reference:
        Han, Mao, Dally, "Deep Compression", ICLR 2016, section 2.
    """
    if not 0 <= share < 1:
        raise InputError(f"the share of weights to prune must be at least 0 and below 1, got {share}")
    convs = [module for module in model.modules() if isinstance(module, ConvBase | nn.Conv2d)]
    chosen = [conv for conv in convs if isinstance(conv, ConvBase) or (conv is not convs[0] and _is_spatial(conv))]
    if not chosen:
        raise InputError("the model has no kernels to prune: they are those of convolutions beyond 1x1 and the first")
    # The mask alone is torch's: its pruning registers the weights anew, behind the biases, and files tell the order.
    weights = [conv.weight for conv in chosen]
    sizes = torch.cat([weight.detach().flatten() for weight in weights])
    masks = prune.L1Unstructured(share).compute_mask(sizes, torch.ones_like(sizes))
    with torch.no_grad():
        for weight, mask in zip(weights, masks.split([weight.numel() for weight in weights]), strict=True):
            weight.mul_(mask.view_as(weight))
            weight.register_hook(_Masking(mask.view_as(weight)))


class _Masking:
    """The gradient of the weights that are kept."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self.kept


def _is_spatial(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and max(conv.kernel_size) > 1
