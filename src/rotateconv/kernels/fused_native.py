"""line_kernel on a CPU by the compiled library: tensors in, one call each way.

In a training step of a small model the convolutions fill the caches, and whatever runs between them is fetched again:
there a call of torch or a function in Python costs twenty times what it costs in a loop. So what the layers of a kind
have in common is worked out once, and a pass makes few calls, and always the same ones.
"""

from collections.abc import Callable, Sequence
from ctypes import byref
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from rotateconv import native
from rotateconv.kernels.line import Path, line_kernel_gradients
from rotateconv.kernels.watched import CLASSES, function_modes, has_memory, is_watched
from rotateconv.native import node

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Of kernels in memory, by the numbers that line.h has for them."""
LARGEST = 63
"""The k up to which the library has room for a kernel."""
_SLICES_A_THREAD = 1 << 15  # a thread costs some 20 µs to start, these slices about 150


def reference_gradients(
    weight: Tensor, angle: Tensor, profile: Tensor | None, grad: Tensor, size: int, path: Path, scale: float
) -> Sequence[Tensor]:
    """The gradients of weight and angle, and of the profile where there is one, to be differentiated themselves."""
    if profile is None:
        return line_kernel_gradients(weight, angle, grad, size, path, scale)
    to_taps, to_angle = line_kernel_gradients(weight * profile[:, None], angle, grad, size, path, scale)
    return (to_taps * profile[:, None]).sum(-1, keepdim=True), to_angle, (to_taps * weight).sum(1)


def _three_gradients(weight: Tensor, *arguments: Any) -> Sequence[Tensor]:
    found = reference_gradients(weight, *arguments)
    return found if len(found) == 3 else (*found, weight.new_empty(0))


def _register() -> None:
    """Name the reference to PyTorch, for the node in C++, which leaves to it what is differentiated again."""
    names: Any = torch.ops.rotateconv
    if hasattr(names, "line_kernel_gradients"):  # by an earlier import in this process
        return
    operators = torch.library.Library("rotateconv", "FRAGMENT")
    operators.define(
        "line_kernel_gradients(Tensor weight, Tensor angle, Tensor? profile, Tensor grad, int size, str path, "
        "float scale) -> (Tensor, Tensor, Tensor)"
    )
    operators.impl("line_kernel_gradients", _three_gradients, "CompositeImplicitAutograd")
    names.python_operators = operators  # as long as the process lives: C++ has it by name


_register()


class Kind(NamedTuple):
    """Kernels of one kind, and how the library makes them.

    Attributes:
        size, path, scale: k, "circle" or "square", and the factor on the gradient of the angle.
        template: What a tensor of them is like, without memory of its own.
        dtype, layout: Its type and its order in memory.
        source_dtype: That the library computes in: float32, or float64 if the weights or the angles are.
        forward, backward: Functions of the library, which take `call` first, then pointers.
        call: Reference to a `native.Call`.
    """

    size: int
    path: Path
    scale: float
    template: Tensor
    dtype: torch.dtype
    layout: torch.memory_format
    source_dtype: torch.dtype
    forward: Callable[..., None]
    backward: Callable[..., None]
    call: Any

    def __repr__(self) -> str:
        return f"Kind({self.size}, {self.path!r})"  # numbers without memory cannot be printed


class _LineKernel(torch.autograd.Function):
    """The node of the graph, of plain weights and angles.

    Without `setup_context`: `apply` then costs a tenth, and transforms never come here.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, angle: Tensor, profile: Tensor | None, kind: Kind) -> Tensor:
        ctx.save_for_backward(weight, angle, profile)
        ctx.kind = kind
        ctx.shapes = [tensor.shape for tensor in (weight, angle, profile) if tensor is not None]
        return forward(kind, weight, angle, profile)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        weight, angle, profile = saved
        kind: Kind = ctx.kind
        # To be differentiated again, for a batch of gradients at once, or of what hooks on saved tensors gave back in
        # another form: as autograd would have it.
        given = [tensor for tensor in saved if tensor is not None]
        alike = ctx.shapes == [tensor.shape for tensor in given] and all(has_memory(x) and x.is_cpu for x in given)
        if torch.is_grad_enabled() or not has_memory(grad) or is_watched() or not alike:
            found = reference_gradients(weight, angle, profile, grad, kind.size, kind.path, kind.scale)
            return *found, *[None] * (4 - len(found))
        # Hooks on saved tensors may have given them back in another form.
        weight, angle = plain(weight, kind), plain(angle, kind)
        profile = None if profile is None else plain(profile, kind)
        for_weight, for_angle, for_profile, _ = ctx.needs_input_grad
        return *backward(kind, weight, angle, grad, for_weight, for_angle, profile, for_profile), None


def forward(kind: Kind, weight: Tensor, angle: Tensor, profile: Tensor | None = None) -> Tensor:
    """Return the kernels of plain weights and angles of the kind, and profiles where it has them."""
    kernel = torch.empty_like(kind.template)
    own = None if profile is None else profile.data_ptr()
    kind.forward(kind.call, weight.data_ptr(), angle.data_ptr(), own, kernel.data_ptr())
    return kernel


def backward(
    kind: Kind,
    weight: Tensor,
    angle: Tensor,
    grad: Tensor,
    for_weight: bool,
    for_angle: bool,
    profile: Tensor | None = None,
    for_profile: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of weight, angle and profile from that of the kernels, each None where it is not needed."""
    if not (grad.is_contiguous(memory_format=kind.layout) and grad.dtype is kind.dtype) or grad.is_neg():
        grad = grad.to(kind.dtype).contiguous(memory_format=kind.layout).resolve_neg()
    to_weight = torch.empty_like(weight) if for_weight else None
    to_angle = torch.empty_like(angle) if for_angle else None
    to_profile = torch.empty_like(profile) if profile is not None and for_profile else None
    kind.backward(
        kind.call,
        weight.data_ptr(),
        angle.data_ptr(),
        None if profile is None else profile.data_ptr(),
        grad.data_ptr(),
        None if to_weight is None else to_weight.data_ptr(),
        None if to_angle is None else to_angle.data_ptr(),
        None if to_profile is None else to_profile.data_ptr(),
    )
    return to_weight, to_angle, to_profile


def line_kernel(
    weight: Tensor,
    angle: Tensor,
    profile: Tensor | None,
    size: int,
    path: Path,
    scale: float,
    dtype: torch.dtype | None,
    last: bool,
) -> Tensor | None:
    """The kernels as one node; the arguments are those of `find`, and so is None."""
    in_cpp = node.line_kernel
    if in_cpp and type(size) is int and type(weight) in CLASSES and type(angle) in CLASSES:
        watched = is_watched() or function_modes()
        found = None if watched else in_cpp(weight, angle, profile, size, path, scale, dtype, last)
        if found is not None:
            return found
    kind = find(weight, angle, size, path, scale, dtype, last, profile)
    if kind is None:
        return None
    own = None if profile is None else plain(profile, kind)
    made: Tensor = _LineKernel.apply(plain(weight, kind), plain(angle, kind), own, kind)
    if made.requires_grad:
        node.ask()
    return made


def how_kernels_are_made() -> str:
    """On a CPU, in this process from now on: what a time of theirs depends on."""
    if node.line_kernel is not None:
        return "in C, called from C++"
    return "in C, called from Python" if native.available() else "by tensor operations"


def line_conv2d(
    input: Tensor,
    weight: Tensor,
    angle: Tensor,
    profile: Tensor | None,
    bias: Tensor | None,
    size: int,
    path: Path,
    scale: float,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor | None:
    """F.conv2d with the kernels of weight and angle, by one call; None where that cannot be.

    Args:
        input: (N, in, H, W) or (in, H, W).
        weight, angle, size, path, scale: As in `find`, of kernels (out, in/groups, k, k).
        profile: (out, k), which the weights (out, in/groups, 1) are multiplied with, or None.
        bias, stride, padding, dilation, groups: As in F.conv2d.
    """
    if torch.compiler.is_compiling() or (in_cpp := node.line_conv2d) is None or is_watched() or function_modes():
        return None
    if type(input) not in CLASSES or type(weight) not in CLASSES or type(angle) not in CLASSES:
        return None
    return in_cpp(input, weight, angle, profile, bias, size, path, scale, stride, padding, dilation, groups)


def find(
    weight: Tensor,
    angle: Tensor,
    size: int,
    path: Path,
    scale: float,
    dtype: torch.dtype | None,
    last: bool,
    profile: Tensor | None = None,
) -> Kind | None:
    """How the library makes the kernels of these tensors; None where the tensor operations have to.

    Args:
        weight: (..., T) or (..., 1).
        angle: (...).
        size: k.
        path: "circle" or "square".
        scale: The gradient of the angle is multiplied by it.
        dtype: Of the kernels, or None for that of weight and angle.
        last: Whether kernels (out, in, k, k) are wanted in channels-last order.
        profile: (out, k), which weights (out, in, 1) are multiplied with.
    """
    if is_watched() or type(size) is not int or not has_memory(weight) or not has_memory(angle):
        return None
    if not (weight.is_cpu and angle.is_cpu):
        return None
    if profile is not None and not (
        has_memory(profile)
        and profile.is_cpu
        and profile.dtype is weight.dtype
        and weight.dim() == 3
        and weight.shape[-1] == 1
        and profile.shape == (len(weight), size)
    ):
        return None
    threads = torch.get_num_threads() if angle.numel() > _SLICES_A_THREAD else 1
    return _kind(weight.shape, angle.shape, size, path, scale, weight.dtype, angle.dtype, dtype, last, threads)


def plain(tensor: Tensor, kind: Kind) -> Tensor:
    """The numbers of weights or angles as the library reads them: the tensor itself where it is like that."""
    if tensor.dtype is kind.source_dtype and tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.to(kind.source_dtype).contiguous().resolve_neg()


@lru_cache(maxsize=4096)
def _kind(
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
) -> Kind | None:
    """How the library makes kernels of this kind; None where it cannot."""
    fits = bool(weight_shape) and weight_shape[:-1] == shape and weight_shape[-1] in (1, size)
    fits = fits and size % 2 == 1 and 3 <= size <= LARGEST and path in get_args(Path)
    dtype = torch.promote_types(weight_dtype, angle_dtype) if dtype is None else dtype
    library: Any = native.library()
    if library is None or not (fits and {weight_dtype, angle_dtype, dtype} <= _TYPES.keys()):
        return None
    last = last and len(shape) == 2
    layout = torch.channels_last if last else torch.contiguous_format
    template = torch.empty((*shape, size, size), dtype=dtype, device="cpu", memory_format=layout)
    template.untyped_storage().resize_(0)
    source_dtype = torch.float64 if torch.float64 in (weight_dtype, angle_dtype) else torch.float32
    count = shape.numel()
    threads = min(threads, count // _SLICES_A_THREAD) if count > _SLICES_A_THREAD else 1
    is_double = source_dtype == torch.float64
    rows, length = shape if len(shape) == 2 else (1, count)
    call = native.Call(
        scale, rows, length, size, weight_shape[-1], path == "square", _TYPES[dtype], last, is_double, threads
    )
    functions = library.rotateconv_line_forward, library.rotateconv_line_backward
    return Kind(size, path, scale, template, dtype, layout, source_dtype, *functions, byref(call))
