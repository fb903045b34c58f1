"""The parameters of a model in groups: what weight decay may pull to 0, what it may not, and the angles."""

import math
from typing import Any

from torch import nn

from rotateconv.errors import InputError
from rotateconv.nn.conv import RotateConv2d

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, angle_lr_scale: float = 1.0, *, angle_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Every trainable parameter once, in the groups that an optimizer of torch.optim takes.

    ::

        name       parameters                                       lr                     weight_decay
        weights    all others                                       lr                     weight_decay
        no_decay   biases, parameters of norms, other 1-D ones      lr                     0
        angles     `angle` of every RotateConv2d                    lr · angle_lr_scale    angle_weight_decay

    An angle of 0 is a horizontal line and no smaller a kernel than any other: decay would only turn it. The
    layer scales the gradient of its angles already, so angle_lr_scale = 1 is the natural step of SGD. Adam and
    AdamW divide a gradient by its size, and that scale with it: an angle, of the order of 1, moves no further
    than a weight, of the order of 0.1. There 10 to 30 trains better by points (docs/results-settings.md).

    Args:
        model: Any module; a shared parameter counts once, frozen ones are left out.
        lr: Learning rate.
        weight_decay: Of the group "weights".
        angle_lr_scale: Factor on the learning rate of the angles: 1 with SGD, 10 to 30 with Adam and AdamW.
        angle_weight_decay: Of the group "angles"; anything but 0 is for experiments.

    Returns:
        Dicts with "name", "params", "lr" and "weight_decay"; a group without parameters is left out.

    Raises:
        ValueError: If a number is negative or not finite, or the model has no trainable parameter.

    Example:
        >>> import torch
        >>> model = nn.Sequential(RotateConv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> optimizer = torch.optim.SGD(param_groups(model, lr=0.1, weight_decay=5e-4), momentum=0.9)
        >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        [('weights', 0.0005), ('no_decay', 0.0), ('angles', 0.0)]
    """
    numbers = {
        "lr": lr,
        "weight_decay": weight_decay,
        "angle_lr_scale": angle_lr_scale,
        "angle_weight_decay": angle_weight_decay,
    }
    for what, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise InputError(f"{what} must be a finite number >= 0, got {number}")

    angles: set[nn.Parameter] = set()
    norms: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, RotateConv2d):
            # Also one that torch.nn.utils.parametrize computes, from "parametrizations.angle.original".
            angles.update(p for name, p in module.named_parameters() if "angle" in name.split("."))
        elif isinstance(module, _NORMS):
            norms.update(module.parameters())

    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": [], "lr": lr, "weight_decay": weight_decay},
        {"name": "no_decay", "params": [], "lr": lr, "weight_decay": 0.0},
        {"name": "angles", "params": [], "lr": lr * angle_lr_scale, "weight_decay": angle_weight_decay},
    ]
    weights, no_decay, turned = (group["params"] for group in groups)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter in angles:
            turned.append(parameter)
        elif parameter in norms or parameter.dim() <= 1 or name.rpartition(".")[2] == "bias":
            no_decay.append(parameter)
        else:
            weights.append(parameter)
    if not any(group["params"] for group in groups):
        raise InputError("the model has no trainable parameters: set requires_grad on those to be trained")
    return [group for group in groups if group["params"]]
