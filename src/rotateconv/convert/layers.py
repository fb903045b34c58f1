"""The RotateConv2d layers of a model by name, as plain values: what a file says of them, and put back from it."""

from collections.abc import Mapping

import torch
from torch import nn

from rotateconv.convert.module_swap import replace_modules
from rotateconv.errors import InputError
from rotateconv.nn.config import RotateConfig
from rotateconv.nn.conv import RotateConv2d


def rotate_configs(model: nn.Module) -> dict[str, RotateConfig]:
    """The options of every RotateConv2d of a model, by its name; a tied one has its first name.

    Example:
        >>> rotate_configs(nn.Sequential(nn.ReLU(), RotateConv2d(2, 4, taps="shared")))["1"].taps
        'shared'
    """
    return {name: layer.config for name, layer in model.named_modules() if isinstance(layer, RotateConv2d)}


def added_layers(model: nn.Module, built: nn.Module) -> dict[str, RotateConfig]:
    """The layers of a model that another one lacks, or has with other options: what `put_layers` is to add to it.

    Example:
        >>> plain, converted = nn.Sequential(nn.Conv2d(2, 4, 3)), nn.Sequential(RotateConv2d(2, 4))
        >>> list(added_layers(converted, plain)), list(added_layers(converted, converted))
        (['0'], [])
    """
    own = rotate_configs(built)
    return {name: config for name, config in rotate_configs(model).items() if own.get(name) != config}


def put_layers(model: nn.Module, configs: Mapping[str, RotateConfig]) -> None:
    """Make the named convolutions RotateConv2d layers with these options, in place, with values of their own.

    The random numbers of the caller stay as they are. A layer that has the options already is left as it is.

    Raises:
        AttributeError: If the model has no module of a name.
        ValueError: If the module is no convolution, or one that cannot have the options.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(2, 4, 3))
        >>> put_layers(model, {"0": RotateConfig("shared")})
        >>> model
        Sequential(
          (0): RotateConv2d(2, 4, kernel_size=(3, 3), taps='shared', path='circle')
        )
    """
    new: dict[nn.Module, nn.Module] = {}
    for name, config in configs.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Conv2d | RotateConv2d):
            raise InputError(f"{name} should be a convolution to make a RotateConv2d of, not a {type(layer).__name__}")
        if isinstance(layer, RotateConv2d) and layer.config == config:
            continue
        gpus = [layer.weight.device] if layer.weight.is_cuda else []
        with torch.random.fork_rng(devices=gpus):
            new[layer] = RotateConv2d.like(layer, config)
    replace_modules(model, new)
