"""The model that a configuration names, with fresh weights: one of ours, or what a user's own function builds."""

import fnmatch
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from rotateconv.convert.convert import convert_architecture
from rotateconv.cost import ModelCost, cost
from rotateconv.errors import ConfigError, first_line, nearest
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.parts import Architecture
from rotateconv.models import build_model
from rotateconv.models.convs import deal_profiles
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.outline import outlined


def build_configured(architecture: Architecture, data: DataDescription) -> nn.Module:
    """Return a configuration's model for these data, with fresh weights."""
    if architecture.factory is not None:
        model = build_from(architecture.factory)
    else:
        model = build_model(
            architecture.model,
            conv=architecture.conv,
            num_classes=len(data.classes),
            in_channels=data.input_shape[0],
            width=architecture.width,
            growth=architecture.growth,
            dropout=architecture.dropout,
        )
    if architecture.rotate is not None:
        where = conversion_filter(model, architecture.convert_only)
        convert_architecture(model, architecture.rotate, where=where)
    set_angle_grad_scale(model, architecture.angle_grad_scale)
    for layer in rotate_layers(model).values():
        _start(layer, architecture)
    return model


def rotate_layers(model: nn.Module) -> dict[str, RotateConv2d]:
    """Return the layers that have angles, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RotateConv2d)}


def outline_configured(architecture: Architecture, data: DataDescription) -> nn.Module:
    """Return a configuration's model, which is not a user's own, for the price of neither memory nor time."""
    try:
        with outlined():
            return build_configured(architecture, data)
    except (RuntimeError, OverflowError, TypeError):  # sizes that no integer of torch holds
        raise ConfigError("the configuration asks for a model larger than any memory") from None


def set_angle_grad_scale(model: nn.Module, scale: float | None) -> None:
    """Give the RotateConv layers of a model a scale in place of their own, which they keep with None."""
    if scale is not None:
        for layer in rotate_layers(model).values():
            layer.angle_grad_scale = scale


@torch.no_grad()
def _start(layer: RotateConv2d, architecture: Architecture) -> None:
    """Give a RotateConv layer the starting values that a configuration has instead of its own."""
    if architecture.angle_init == "axes" and layer.learn_angle:
        layer.angle.copy_(torch.randint(4, layer.angle.shape, device=layer.angle.device) * (math.pi / 2))
    if architecture.profile_init == "bank" and layer.profile is not None:
        deal_profiles(layer)


def configured_cost(architecture: Architecture, data: DataDescription) -> ModelCost:
    """Return what a configuration's model costs for one of these images."""
    # A user's own function may compute while it builds, which nothing can on the meta device.
    if architecture.factory is None:
        return cost(outline_configured(architecture, data), data.input_shape)
    with torch.random.fork_rng(devices=[]):
        return cost(build_configured(architecture, data), data.input_shape)


def conversion_filter(model: nn.Module, only: str | None) -> Callable[[str, nn.Conv2d], bool] | None:
    """Return the filter that `convert` takes for the names in `convert_only`; ConfigError where no layer has one."""
    if only is None:
        return None
    patterns = [pattern.strip() for pattern in only.split(",") if pattern.strip()]
    # A model that is partly converted already has RotateConv layers under some of the names.
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | RotateConv2d)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"convert_only: the model has no convolution {pattern!r}: {nearest(pattern, names[:40])}")
    return lambda name, conv: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def build_from(factory: str) -> nn.Module:
    """Return the model that the function "package.module:function" builds without arguments; else ConfigError.

    The module is looked for where Python looks, and in the current folder.

    Example:
        >>> type(build_from("torchvision.models:resnet18")).__name__  # doctest: +SKIP
        'ResNet'
    """
    module_name, colon, path = factory.partition(":")
    if not (colon and module_name and path):
        raise ConfigError(f"expected package.module:function, not {factory!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
        model = found()  # type: ignore[operator]
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and leave
        raise ConfigError(
            f"cannot build a model with {factory}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{factory} must return an nn.Module, not {type(model).__name__}")
    return model
