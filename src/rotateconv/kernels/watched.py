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
    """Whether this is no fake tensor or another class that only stands for one, nor one of a batch of gradients.

    Nor one whose memory was freed, as shards of parameters are between their uses.
    """
    if type(tensor) not in CLASSES:
        return False
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:
        return False


def in_transform() -> bool:
    """Whether one of torch.func's transforms, or forward-mode differentiation, goes through the operations."""
    return _transforms() or getattr(forward_ad, "_current_level", 0) >= 0


def is_watched() -> bool:
    """Whether somebody has to see the operations."""
    return bool(_modes()) or in_transform() or _is_tracing()


def refuse_freed(*tensors: Tensor | None) -> None:
    """Raise RuntimeError for a tensor of a CPU whose memory was freed, which not all of torch's operations notice."""
    if in_transform():
        return
    for tensor in tensors:
        if type(tensor) in CLASSES and tensor is not None and tensor.is_cpu and not has_memory(tensor):
            raise RuntimeError(
                f"expected weights, angles and profiles with memory, found numbers {tuple(tensor.shape)} whose storage "
                "is not allocated: gather them before the forward pass"
            )
