"""line_kernel on a CPU by the compiled library: tensors in, one call each way.

In a training step of a small model the convolutions fill the caches, and whatever runs between them is fetched again:
there a call of torch or a function in Python costs twenty times what it costs in a loop. So what the layers of a kind
have in common is worked out once, and a pass makes few calls, and always the same ones.
"""

from collections.abc import Callable
from ctypes import byref
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rotateconv import native
from rotateconv.kernels.line import Path

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Of kernels in memory, by the numbers that line.c has for them."""
LARGEST = 63
"""The k up to which the library has room for a kernel."""
_SLICES_A_THREAD = 1 << 15  # a thread costs some 20 µs to start, these slices about 150

# Modes that look at every operation (counters, fake tensors, tracers) would see none of the library's. Where torch has
# these functions no more, the tensor operations are always right.
_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_is_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", lambda: True)


class Kernels(NamedTuple):
    """Kernels of one kind, and how the library makes them.

    Attributes:
        size, path, scale: k, "circle" or "square", and the factor on the gradient of the angle.
        template: What a tensor of them is like, without memory of its own.
        layout: Its order in memory.
        source_dtype: That the library computes in: float32, or float64 if the weights or the angles are.
        forward, backward: Functions of the library, which take `call` first, then pointers.
        call: Reference to a `native.Call`.
    """

    size: int
    path: Path
    scale: float
    template: Tensor
    layout: torch.memory_format
    source_dtype: torch.dtype
    forward: Callable[..., None]
    backward: Callable[..., None]
    call: Any


def find_kernels(
    weight: Tensor, angle: Tensor, size: int, path: Path, scale: float, dtype: torch.dtype | None, last: bool
) -> Kernels | None:
    """How the library makes the kernels of these tensors; None where the tensor operations have to.

    Args:
        weight: (..., T) or (..., 1).
        angle: (...).
        size: k.
        path: "circle" or "square".
        scale: The gradient of the angle is multiplied by it.
        dtype: Of the kernels, or None for that of weight and angle.
        last: Whether kernels (out, in, k, k) are wanted in channels-last order.
    """
    kinds = nn.Parameter, Tensor  # what may stand for others, or have no memory, is of another class
    if type(weight) not in kinds or type(angle) not in kinds or not (weight.is_cpu and angle.is_cpu) or is_watched():
        return None
    threads = torch.get_num_threads() if angle.numel() > _SLICES_A_THREAD else 1
    return _kernels(weight.shape, angle.shape, size, path, scale, weight.dtype, angle.dtype, dtype, last, threads)


def is_watched() -> bool:
    """Whether somebody has to see the operations, or there is no library."""
    return bool(_modes()) or _is_tracing() or native.library() is None


def line_kernel_forward(kernels: Kernels, weight: Tensor, angle: Tensor) -> Tensor:
    """Return the kernels of weights and angles of the kind."""
    kernel = torch.empty_like(kernels.template)
    weight, angle = _plain(weight, kernels.source_dtype), _plain(angle, kernels.source_dtype)
    kernels.forward(kernels.call, weight.data_ptr(), angle.data_ptr(), kernel.data_ptr())
    return kernel


def line_kernel_backward(
    kernels: Kernels, weight: Tensor, angle: Tensor, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and angle from that of the kernels, each None where it is not needed."""
    own_weight, own_angle = _plain(weight, kernels.source_dtype), _plain(angle, kernels.source_dtype)
    grad = _plain(grad, kernels.template.dtype, kernels.layout)
    to_weight = torch.empty_like(own_weight) if needed[0] else None
    to_angle = torch.empty_like(own_angle) if needed[1] else None
    kernels.backward(
        kernels.call,
        own_weight.data_ptr(),
        own_angle.data_ptr(),
        grad.data_ptr(),
        None if to_weight is None else to_weight.data_ptr(),
        None if to_angle is None else to_angle.data_ptr(),
    )
    if own_weight is not weight and to_weight is not None:
        to_weight = to_weight.to(weight.dtype)
    if own_angle is not angle and to_angle is not None:
        to_angle = to_angle.to(angle.dtype)
    return to_weight, to_angle


def _plain(tensor: Tensor, dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The numbers of a tensor as the library reads them: the tensor itself where it is like that."""
    if tensor.dtype is dtype and tensor.is_contiguous(memory_format=layout) and not tensor.is_neg():
        return tensor
    return tensor.to(dtype).contiguous(memory_format=layout).resolve_neg()


@lru_cache(maxsize=4096, typed=True)
def _kernels(
    weight_shape: torch.Size,
    shape: torch.Size,
    size: int,
    path: Path,
    scale: float,
    weight_dtype: torch.dtype,
    angle_dtype: torch.dtype,
    dtype: torch.dtype | None,
    last: bool,
    threads: int,
) -> Kernels | None:
    fits = bool(weight_shape) and weight_shape[:-1] == shape and weight_shape[-1] in (1, size)
    fits = fits and type(size) is int and size % 2 == 1 and 3 <= size <= LARGEST and path in get_args(Path)
    dtype = torch.promote_types(weight_dtype, angle_dtype) if dtype is None else dtype
    if not (fits and {weight_dtype, angle_dtype, dtype} <= _TYPES.keys()):
        return None
    last = last and len(shape) == 2
    layout = torch.channels_last if last else torch.contiguous_format
    template = torch.empty((*shape, size, size), dtype=dtype, device="cpu", memory_format=layout)
    template.untyped_storage().resize_(0)
    source_dtype = torch.float64 if torch.float64 in (weight_dtype, angle_dtype) else torch.float32
    count = shape.numel()
    threads = min(threads, count // _SLICES_A_THREAD) if count > _SLICES_A_THREAD else 1
    is_double = source_dtype == torch.float64
    rows, length = shape if last else (1, count)
    call = native.Call(
        scale, rows, length, size, weight_shape[-1], path == "square", _TYPES[dtype], last, is_double, threads
    )
    library: Any = native.library()
    functions = library.rotateconv_line_forward, library.rotateconv_line_backward
    return Kernels(size, path, scale, template, layout, source_dtype, *functions, byref(call))
