"""Whether somebody has to see the operations on tensors, and whether tensors are numbers in memory at all.

Modes that look at every operation (counters, fake tensors, tracers) would see none of the compiled library's, and
transforms look into them. Where torch has the functions that tell it no more, the tensor operations are always right.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_is_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", lambda: True)
_transforms: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)

function_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", lambda: 1)
"""How many modes look at the functions that are called, F.conv2d among them."""
CLASSES = nn.Parameter, Tensor
"""What may stand for others, or have no memory, is of another class."""


def has_memory(tensor: Tensor) -> bool:
    """Whether this is no fake tensor or another class that only stands for one, nor one of a batch of gradients."""
    if type(tensor) not in CLASSES:
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def in_transform() -> bool:
    """Whether one of torch.func's transforms, or forward-mode differentiation, goes through the operations."""
    return _transforms() or getattr(forward_ad, "_current_level", 0) >= 0


def is_watched() -> bool:
    """Whether somebody has to see the operations."""
    return bool(_modes()) or in_transform() or _is_tracing()
