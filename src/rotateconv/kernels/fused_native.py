"""line_kernel on a CPU by the compiled library: tensors in, one call each way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rotateconv import native
from rotateconv.kernels.line import Path, check_path

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Of kernels in memory, by the numbers that line.c has for them."""
LARGEST = 63
"""The k up to which the library has room for a kernel."""
_SLICES_A_THREAD = 1 << 15  # a thread costs some 20 µs to start, these slices about 150

# Modes that look at every operation (counters, fake tensors, tracers) would see none of the library's. Where torch has
# these functions no more, the tensor operations are always right.
_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_is_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", lambda: True)


def can_compute(weight: Tensor, angle: Tensor, size: int, kernel: Tensor) -> bool:
    """Whether the library is there and knows these tensors; they have memory (`needs_reference`)."""
    return (
        kernel.is_cpu
        and weight.is_cpu
        and angle.is_cpu
        and native.library() is not None
        and size <= LARGEST
        and kernel.dtype in _TYPES
        and weight.dtype in _TYPES
        and angle.dtype in _TYPES
        and not _modes()
        and not _is_tracing()
    )


def line_kernel_forward(weight: Tensor, angle: Tensor, size: int, path: Path, kernel: Tensor, last: bool) -> None:
    """Write the kernels.

    Args:
        weight: (..., T) or (..., 1); computed in float32, or in float64 if it or the angle is.
        angle: (...).
        size: k.
        path: "circle" or "square".
        kernel: (..., k, k), written: contiguous, or (out, in, k, k) in channels-last order.
        last: whether it is.

    Raises:
        ValueError: If path is unknown.
    """
    check_path(path)
    library: Any = native.library()
    dtype = _compute_dtype(weight, angle)
    weight, angle = _plain(weight, dtype), _plain(angle, dtype)
    pointers = weight.data_ptr(), angle.data_ptr(), kernel.data_ptr()
    library.rotateconv_line_forward(*pointers, *_options(weight, angle, size, path, kernel, last))


def line_kernel_backward(
    weight: Tensor, angle: Tensor, grad: Tensor, size: int, path: Path, scale: float, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and angle from that of the kernels.

    Args:
        weight, angle, size, path: as in `line_kernel_forward`.
        grad: (..., k, k), of any strides.
        scale: the gradient of the angle is multiplied by it.
        needed: which of the two are asked for.

    Returns:
        Contiguous tensors with the shapes and dtypes of weight and angle; None for one that is not needed.
    """
    library: Any = native.library()
    dtype = _compute_dtype(weight, angle)
    sources = weight, angle
    weight, angle = _plain(weight, dtype), _plain(angle, dtype)
    last = grad.dim() == 4 and grad.is_contiguous(memory_format=torch.channels_last)
    grad = grad.resolve_neg() if last else grad.contiguous().resolve_neg()
    grads = [torch.empty_like(t) if need else None for t, need in zip((weight, angle), needed, strict=True)]
    to_weight, to_angle = (None if t is None else t.data_ptr() for t in grads)
    pointers = weight.data_ptr(), angle.data_ptr(), grad.data_ptr(), to_weight, to_angle
    library.rotateconv_line_backward(*pointers, scale, *_options(weight, angle, size, path, grad, last))
    grad_weight, grad_angle = (
        None if t is None else t.to(source.dtype) for t, source in zip(grads, sources, strict=True)
    )
    return grad_weight, grad_angle


def _compute_dtype(weight: Tensor, angle: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (weight.dtype, angle.dtype) else torch.float32


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of a tensor one after the other in memory, as they are."""
    return tensor.to(dtype).contiguous().resolve_neg()


def _options(weight: Tensor, angle: Tensor, size: int, path: Path, kernel: Tensor, last: bool) -> tuple[int, ...]:
    """What the functions of the library take after pointers and scale."""
    count = angle.numel()
    rows, length = angle.shape if last else (1, count)
    threads = min(torch.get_num_threads(), count // _SLICES_A_THREAD) if count > _SLICES_A_THREAD else 1
    is_double = weight.dtype == torch.float64
    return rows, length, size, weight.shape[-1], path == "square", _TYPES[kernel.dtype], last, is_double, threads
