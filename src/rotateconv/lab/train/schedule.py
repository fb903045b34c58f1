"""Learning-rate schedules as one pure function of the step, and the optimizer that they drive."""

import math
from bisect import bisect_right
from collections.abc import Collection

import torch
from torch import nn

from rotateconv.lab.parts import Optimization
from rotateconv.optim import param_groups

_START = 0.04
"""Share of the learning rate at which a warm-up begins: Smith and Topin's 1/25."""


def factor(step: int, total_steps: int, course: Optimization) -> float:
    r"""Return the factor on the learning rate of the given step.

    With t = step / total_steps and w = warmup, t < w rises linearly from 0.04 to 1. Afterwards

        constant    1
        steps       gammaⁿ, n = number of milestones m ≤ t
        cosine      (1 + cos(π (t - w) / (1 - w))) / 2
        one-cycle   (1 - t) / (1 - w)

    Args:
        step: 0 for the first step of the run; total_steps, after the last one, is allowed.
        total_steps: steps of the whole run.
        course: `schedule`, `warmup`, `milestones` and `gamma` are read.

    Example:
        >>> from rotateconv.lab.config import RunConfig
        >>> [round(factor(step, 8, RunConfig(schedule="steps").optimization), 3) for step in range(8)]
        [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    t, w = step / total_steps, course.warmup
    if t < w:
        return _START + (1 - _START) * t / w
    match course.schedule:
        case "constant":
            return 1.0
        case "steps":
            return course.gamma ** bisect_right(course.milestones, t)
        case "cosine":
            return (1 + math.cos(math.pi * (t - w) / (1 - w))) / 2
        case "one-cycle":
            return (1 - t) / (1 - w)


def build_optimizer(
    model: nn.Module, how: Optimization, scales: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the configuration's optimizer over `param_groups` and scales; every group keeps its `initial_lr`."""
    groups = param_groups(
        model, how.lr, how.weight_decay, how.angle_lr_scale, angle_weight_decay=how.angle_weight_decay
    )
    if scales:
        groups.append({"name": "scales", "params": list(scales), "lr": how.lr, "weight_decay": 0.0})
    for group in groups:
        group["initial_lr"] = group["lr"]
    # fused: one kernel for all parameters of a group; small models have many small ones.
    if how.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=how.lr, betas=(how.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum, nesterov=how.nesterov, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set every group's learning rate to `scale` times its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = scale * group["initial_lr"]
