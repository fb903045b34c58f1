"""The forms of a case as functions to time; ours are first compared with the reference implementation, line_kernel."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.convert.fuse import fuse
from rotateconv.errors import BenchError
from rotateconv.kernels.fused import fused_line_kernel
from rotateconv.kernels.line import line_kernel
from rotateconv.lab.bench.cases import UNBATCHED, Case
from rotateconv.lab.train.captured import WARM_UP, CudaGraph
from rotateconv.models import build_model
from rotateconv.nn.batched import batched_kernels
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.factored import SeparableConv2d
from rotateconv.optim import param_groups

Work = Callable[[], object]

TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2}
"""Of an output or gradient from the reference implementation, as a share of its largest number."""


def build_forms(case: Case, device: str = "cpu") -> dict[str, Work]:
    """Build what a case times, checked and called once.

    Returns:
        Functions without arguments by the name of the form; a peer that is not installed is left out.

    Raises:
        BenchError: If a form of ours differs from the reference implementation.
    """
    torch.manual_seed(0)
    build = {"kernel": _kernels, "layer": _layers, "model": _models, "fused model": _fused_models}[case.kind]
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False  # its 11 bits are not float32
    try:
        works = build(case, device)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    for work in works.values():
        work()
    return works


def _kernels(case: Case, device: str) -> dict[str, Work]:
    weight = torch.randn(case.batch, case.batch, case.kernel_size, device=device, requires_grad=True)
    angle = (3 * torch.randn(case.batch, case.batch, device=device)).requires_grad_()
    functions: dict[str, Callable[..., Tensor]] = {"plain": line_kernel, "fused": fused_line_kernel}
    grad = torch.randn_like(line_kernel(weight, angle, case.kernel_size))

    def forward(function: Callable[..., Tensor]) -> Tensor:
        with torch.no_grad():
            return function(weight, angle, case.kernel_size)

    def backward(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(weight, angle, case.kernel_size), (weight, angle), grad)

    expected, found = ([forward(function), *backward(function)] for function in functions.values())
    _check("line_kernel", found, expected, TOLERANCE["float32"])
    run = forward if case.mode == "forward" else backward
    works: dict[str, Work] = {form: partial(run, function) for form, function in functions.items()}
    # As many bytes read and written as the memory has to move for kernels and gradients.
    passes = 1 if case.mode == "forward" else 3
    moved = passes * (weight.numel() + angle.numel()) + min(passes, 2) * grad.numel()
    works["copy"] = torch.zeros(moved // 2, device=device).clone
    return {form: works[form] for form in case.forms}


def _layers(case: Case, device: str) -> dict[str, Work]:
    images = torch.randn(case.batch, case.channels, case.size, case.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    works = {}
    for form in case.forms:
        layer = _layer(form, case)
        if layer is None:
            continue
        layer = layer.to(device).to(memory_format=torch.channels_last)
        if isinstance(layer, RotateConv2d):
            _check_layer(form, layer, images[:2], case.dtype)
        # The layer is somewhere inside of a model: its input has a gradient too.
        works[form] = _work(layer, case, device, images.detach().requires_grad_(case.mode != "forward"))
    return works


def _layer(form: str, case: Case) -> nn.Module | None:
    shape = (case.channels, case.channels, case.kernel_size, case.stride, case.kernel_size // 2)
    rotate: dict[str, dict[str, Any]] = {
        "rotate4": {"taps": "free"},
        "rotate2": {"taps": "shared"},
        "rotate2p": {"taps": "profile"},
        "rotate2p-g1": {"taps": "profile", "angle_groups": 1, "form": "separable"},
        "rotate2p-g4": {"taps": "profile", "angle_groups": 4, "form": "separable"},
        "rotate2p-g4-auto": {"taps": "profile", "angle_groups": 4},
    }
    if form in rotate:
        return RotateConv2d(*shape, bias=False, **rotate[form])
    if form == "nn.Conv2d":
        return nn.Conv2d(*shape, bias=False)
    if form == "depthwise-separable":
        return SeparableConv2d(*shape, bias=False)
    if form == "1x1":
        return nn.Conv2d(case.channels, case.channels, 1, case.stride, bias=False)
    return {"deform_conv2d": _deformable, "DCLS": _dcls}[form](case)


def _deformable(case: Case) -> nn.Module | None:
    """Deformable convolution with learned offsets, the same for every image and place: positions of the kernel."""
    try:
        from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError):
        return None

    class DeformableConv2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(case.channels, case.channels, case.kernel_size, case.kernel_size))
            self.offset = nn.Parameter(torch.rand(2 * case.kernel_size**2) - 0.5)

        def forward(self, images: Tensor) -> Tensor:
            rows, cols = ((side - 1) // case.stride + 1 for side in images.shape[2:])
            # Its kernels have no bfloat16, and autocast does not know them.
            images, weight, offset = (tensor.float() for tensor in (images, self.weight, self.offset))
            offset = offset[None, :, None, None].expand(len(images), -1, rows, cols).contiguous()
            output: Tensor = deform_conv2d(images, offset, weight, stride=case.stride, padding=case.kernel_size // 2)
            return output

    return DeformableConv2d()


def _dcls(case: Case) -> nn.Module | None:
    """Dilated convolution with learnable spacings, Khalfaoui-Hassani et al. 2023: k taps on a k x k grid."""
    try:
        modules = import_module("DCLS.construct.modules")
    except (ImportError, RuntimeError):
        return None
    layer: nn.Module = modules.Dcls2d(
        case.channels,
        case.channels,
        kernel_count=case.kernel_size,
        dilated_kernel_size=case.kernel_size,
        stride=case.stride,
        padding=case.kernel_size // 2,
        bias=False,
    )
    return layer


def _models(case: Case, device: str) -> dict[str, Work]:
    images = torch.randn(case.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    works = {}
    for form in case.forms:
        model = build_model(case.model, form.removesuffix(UNBATCHED)).to(device).to(memory_format=torch.channels_last)
        for name, layer in model.named_modules():
            if isinstance(layer, RotateConv2d):
                few = torch.randn(2, layer.in_channels, 8, 8, device=device)
                _check_layer(f"{form} {name}", layer, few, case.dtype)
        works[form] = _work(model, case, device, images, batched=not form.endswith(UNBATCHED))
    return works


def _fused_models(case: Case, device: str) -> dict[str, Work]:
    images = torch.randn(case.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    works = {}
    for form in case.forms:
        model = build_model(case.model, form).to(device).eval()
        fused = fuse(model, fold_batchnorm=True).to(memory_format=torch.channels_last)
        with torch.no_grad():
            _check(f"fused {form}", [fused(images[:2])], [model(images[:2])], TOLERANCE["float32"])
        works[form] = _work(fused, case, device, images)
    return works


def _work(module: nn.Module, case: Case, device: str, images: Tensor, *, batched: bool = False) -> Work:
    """One pass or step of a module, which a loss of mean squares drives; in eager mode with `batched_kernels`."""
    forward: Callable[[Tensor], Tensor] = torch.compile(module) if case.compiled else module
    module.train(case.mode != "forward")
    low = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device, low, enabled=case.dtype == "bfloat16")

    def kernels() -> AbstractContextManager[Any]:
        return batched_kernels(module) if batched and not case.compiled else nullcontext()

    def inference() -> None:
        with torch.no_grad(), autocast():
            forward(images)

    # fused, as `schedule.build_optimizer` has it: a small model has many small parameters, and a loop over them would
    # be a part of the time that grows with their number.
    optimizer = torch.optim.SGD(param_groups(module, 1e-9, 1e-4), momentum=0.9, nesterov=True, fused=True)

    def train(update: Callable[[], object] = lambda: None) -> None:
        with autocast(), kernels():
            output = forward(images)
        output.backward(output.detach())  # the gradient of half the sum of squares: no loss to be timed with it
        update()
        module.zero_grad(set_to_none=True)
        images.grad = None

    step = partial(train, optimizer.step)
    if case.mode == "captured step":
        return captured(step)
    works: dict[str, Work] = {"forward": inference, "forward+backward": train, "step": step}
    return works[case.mode]


def captured(step: Work) -> Work:
    """Warm a step up and record it in a CUDA graph; return what runs the graph."""
    graph = CudaGraph()
    for _ in range(WARM_UP):
        graph.warm_up(step)
    graph.capture(step)
    return partial(_replay, graph, step)


def _replay(graph: CudaGraph, step: object) -> None:
    """Run a graph; with its step are kept the tensors that it reads and writes, which it does not keep itself."""
    graph.replay()


def _check_layer(name: str, layer: RotateConv2d, images: Tensor, dtype: str) -> None:
    """Raise BenchError unless output and gradients are those of nn.Conv2d's function with the plain kernel."""
    device = images.device.type
    parameters = dict(layer.named_parameters())
    images = images.detach().requires_grad_()
    plain = _plain_kernel(layer)
    expected = F.conv2d(images, plain, layer.bias, layer.stride, layer.padding_pixels, layer.dilation, layer.groups)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        found = layer(images)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (images, *parameters.values()), grad)
    got = list(torch.autograd.grad(found, (images, *parameters.values()), grad.to(found.dtype)))
    if "angle" in parameters:
        got[1 + list(parameters).index("angle")] /= layer.angle_grad_scale
    _check(name, [found, *got], [expected, *wanted], TOLERANCE[dtype])


def _plain_kernel(layer: RotateConv2d) -> Tensor:
    """The layer's kernels by `line_kernel` alone, slice by slice."""
    weight: Tensor = layer.weight
    angle, profile, size = layer.angle, layer.profile, layer.kernel_size[0]
    if layer.angle_groups is not None:
        angle = angle.repeat_interleave(len(weight) // layer.angle_groups, 0)
    if profile is not None:
        groups = layer.angle_groups
        weight = weight * (profile[:, None] if groups is None else profile.repeat_interleave(len(weight) // groups, 0))
    return line_kernel(weight, angle, size, layer.path)


def _check(name: str, found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for mine, other in zip(found, expected, strict=True):
        error = (mine.float() - other).abs().max() / other.abs().max().clamp(min=1e-12)
        if not error <= tolerance:
            raise BenchError(
                f"{name} is {error:.1e} from the reference implementation, more than {tolerance:.0e}: not timed"
            )
