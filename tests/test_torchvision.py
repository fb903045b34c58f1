"""convert and fuse on torchvision's nets: shapes kept, and the same output fused, with and without folded norms."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rotateconv import RotateConv2d, convert, fuse

try:
    from torchvision import models
    from torchvision.models.segmentation import fcn_resnet50
except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
    pytest.skip(f"needs torchvision: {error}", allow_module_level=True)

Where = Callable[[str, nn.Conv2d], bool]

# Fitting takes 9 (shared) to 13 (free) microseconds a slice: of the larger nets, a part of the slices is converted.
NETS: dict[str, tuple[Callable[[], nn.Module], str, Where | None, int]] = {
    "resnet18": (lambda: models.resnet18(weights=None), "free", lambda name, conv: name.startswith(("layer2", "layer3")), 8),
}


def with_statistics(model: nn.Module) -> nn.Module:
    return model
