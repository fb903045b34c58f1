"""A model in which masked convolutions are ordinary ones, so that norms can be folded into them."""

import torch
from torch import nn

from rotateconv.nn.baselines import MaskedConv2d


def written_out(model: nn.Module) -> nn.Module:
    """Put an nn.Conv2d in the place of every MaskedConv2d of a model, so that norms can be folded into it."""
    new: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MaskedConv2d):
                if id(child) not in new:
                    new[id(child)] = _dense_conv(child)
                setattr(module, name, new[id(child)])
    return _dense_conv(model) if isinstance(model, MaskedConv2d) else model


@torch.no_grad()
def _dense_conv(layer: MaskedConv2d) -> nn.Conv2d:
    conv = nn.utils.skip_init(
        nn.Conv2d,
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    conv.weight.copy_(layer.kernel())
    if layer.bias is not None:
        conv.bias.copy_(layer.bias)
    return conv.train(layer.training)  # type: ignore[no-any-return]
