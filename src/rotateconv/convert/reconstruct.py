"""RotateConv2d layers fitted to the outputs of the convolutions that they replaced, on images, layer by layer."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from rotateconv.convert.recalibrate import average_statistics, evaluating, norms_of
from rotateconv.errors import InputError
from rotateconv.kernels.fit_moments import Moments, SegmentFit, fit_moments
from rotateconv.nn.conv import RotateConv2d

Data = Iterable[Tensor | Sequence[Tensor]]
"""Batches of images, or sequences that begin with them, as a DataLoader gives; iterated once for every layer."""

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, name) after every layer."""

_PASSES = 3
"""Over the input channels of a layer. The mean squared error of ResNet-20 on the digits, profile taps: 0.133 after one,
0.101 after three, 0.091 after six."""

_RIDGE = 1e-3
"""Of the mean input energy, with which a slice is held to the kernel that it replaces where the images say nothing."""

_NUMBERS = 2**24  # in the largest temporary
_PRODUCTS = 2**36  # in the second moments of a layer: a few seconds


@dataclass(frozen=True)
class Reconstruction:
    """A layer's output error ‖ŷ - y‖ / ‖y - mean(y)‖ against the convolution that it replaced."""

    before: float
    after: float


def reconstruct(
    model: nn.Module, original: nn.Module, names: Iterable[str], data: Data, progress: Progress | None = None
) -> dict[str, Reconstruction]:
    """Lower, in place, what converted layers of a model do to its outputs, on images without labels.

    In the order in which an image meets them, each layer is fitted by least squares to the output y that its
    convolution has in the original, from the input x̂ that it has in the converted model, where the layers before it
    are converted already and can be made up for::

        minimize E ‖y - K·x̂ - b‖²   over weights, angles, profiles and the bias b

    Only second moments of x̂ and y are kept, (in · k²)² numbers, and `fit_moments` lowers the error on them. The
    batch norms behind the first layer are recalibrated on the way. A layer without a bias is fitted up to the mean
    where there are such norms: the one behind it takes the mean away.

    Args:
        model: With RotateConv2d layers; changed.
        original: The model before its conversion.
        names: Of the layers; one that no image reaches stays as it is.
        data: Batches on the model's device, which can be iterated many times; a few hundred to a few thousand images,
            normalized, not augmented.
        progress: Called after every layer.

    Returns:
        The relative errors by name.

    Raises:
        ValueError: If there is no image, or data can be iterated only once, or a layer sees numbers that are not
            finite.

    Reference:
        Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI
        2016, section 3.3: asymmetric reconstruction, layer by layer. Frantar, Alistarh, "Optimal Brain Compression",
        NeurIPS 2022: the second moments of the input as the layer's error.
    """
    if iter(data) is data:
        raise InputError("data must be batches that can be iterated many times, not an iterator: make a list of them")
    first = next((images for batch in data if len(images := _images(batch))), None)
    if first is None:
        raise InputError("expected at least one image to fit the layers to, not 0")
    batches = sum(1 for batch in data if len(_images(batch)))
    order, norms = _met(model, set(names), first)
    found = {}
    for done, (name, calls) in enumerate(order.items(), 1):
        layer, source = model.get_submodule(name), original.get_submodule(name)
        assert isinstance(layer, RotateConv2d)
        assert isinstance(source, nn.Conv2d)
        if done > 1 and norms:  # those behind the layer before see other numbers now
            average_statistics(model, norms, data, partial(_run_to, model, layer, calls))
        seen = _observe(model, original, layer, source, calls, data, batches)
        found[name] = _fit(layer, source, seen, bool(norms) or layer.bias is not None)
        if progress is not None:
            progress(done, len(order), name)
    if norms:
        average_statistics(model, norms, data, model)
    return found


def _images(batch: Tensor | Sequence[Tensor]) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _met(model: nn.Module, names: set[str], images: Tensor) -> tuple[Counter[str], dict[str, _BatchNorm]]:
    """How often an image meets each layer, in the order in which it first does; and the norms behind the first."""
    met: Counter[str] = Counter()
    norms, behind = norms_of(model), {}

    def meet(name: str) -> None:
        if name in names:
            met[name] += 1
        elif met:
            behind[name] = norms[name]

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: meet(name))
        for name, module in model.named_modules()
        if name in names or name in norms
    ]
    with evaluating(model), _removed(hooks):
        model(images[:1])
    return met, behind


class _ReachedError(Exception):
    """Ends a forward pass that has seen what it was for."""


def _run_to(model: nn.Module, layer: nn.Module, calls: int, images: Tensor) -> list[Tensor]:
    """Run a model up to the last call of a layer, and return what came in at each."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        if len(seen) == calls:
            raise _ReachedError

    with _removed([layer.register_forward_pre_hook(keep)]), suppress(_ReachedError):
        model(images)
    return seen


@contextmanager
def _removed(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks afterwards."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _positions(layer: RotateConv2d) -> int:
    """How many positions of a layer's output are looked at, spread over all images: enough for its second moments."""
    size = layer.in_channels // layer.groups * layer.kernel_size[0] ** 2
    return min(2**17, max(4 * size, _PRODUCTS // size**2))


class _Sums:
    """Sums over positions of the input's patches x and the wanted outputs y, by convolution group, float64."""

    def __init__(self, layer: RotateConv2d) -> None:
        groups, size = layer.groups, layer.in_channels // layer.groups * layer.kernel_size[0] ** 2
        out = layer.out_channels // groups
        self.layer, self.count = layer, 0
        self.generator = torch.Generator().manual_seed(0)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=layer.weight.device)

        self.xx, self.yx = zeros(size, size), zeros(out, size)
        self.x, self.y, self.yy = zeros(size), zeros(out), zeros(out)

    def add(self, x: Tensor, y: Tensor, share: float) -> None:
        """Add a layer's input and the outputs that are wanted, at a random share of the positions."""
        layer, groups = self.layer, self.layer.groups
        x, padding = layer._padded(x)
        assert not isinstance(padding, str)
        rows = max(1, _NUMBERS // (x[0].numel() * layer.kernel_size[0] ** 2))
        for part, wanted in zip(x.split(rows), y.split(rows), strict=True):
            patches = F.unfold(part.float(), layer.kernel_size, layer.dilation, padding, layer.stride)
            kept = (torch.rand(patches[:, 0].shape, generator=self.generator) < share).to(part.device)
            xs = patches.transpose(1, 2)[kept].unflatten(1, (groups, -1)).transpose(0, 1)  # [group, position, number]
            ys = wanted.float().flatten(2).transpose(1, 2)[kept].unflatten(1, (groups, -1)).transpose(0, 1)
            self.count += xs.shape[1]
            self.xx += xs.mT @ xs
            self.yx += ys.mT @ xs
            self.x, self.y = self.x + xs.sum(1), self.y + ys.sum(1)
            self.yy += ys.square().sum(1)


def _observe(
    model: nn.Module, original: nn.Module, layer: RotateConv2d, source: nn.Conv2d, calls: int, data: Data, batches: int
) -> _Sums:
    """Run images through both models up to a layer and its convolution, and sum up what the fit needs."""
    sums = _Sums(layer)
    with evaluating(model), evaluating(original):
        for batch in data:
            if not len(images := _images(batch)):
                continue
            inputs, wanted = _run_to(model, layer, calls, images), _run_to(original, source, calls, images)
            for x, origin in zip(inputs, wanted, strict=True):
                y = source(origin)
                sums.add(x, y, min(1.0, _positions(layer) / batches / calls / max(1, y[:, 0].numel())))
    return sums


@torch.no_grad()
def _fit(layer: RotateConv2d, source: nn.Conv2d, sums: _Sums, centered: bool) -> Reconstruction:
    """Fit a layer to what was seen, group by group, and return its error before and after."""
    count = max(1, sums.count)
    x, y = sums.x / count, sums.y / count
    inputs = sums.xx / count - centered * x[:, :, None] * x[:, None, :]
    outputs = sums.yx / count - centered * y[:, :, None] * x[:, None, :]
    wanted = (sums.yy / count - centered * y.square()).sum()
    size, config = layer.kernel_size[0], layer.config

    def kernels(module: RotateConv2d | nn.Conv2d) -> Tensor:
        kernel: Tensor = module.kernel() if isinstance(module, RotateConv2d) else module.weight
        # [group, out, in · position]
        return kernel.double().reshape(layer.groups, layer.out_channels // layer.groups, -1)

    def error() -> float:
        kernel = kernels(layer)
        left = wanted - 2 * (kernel * outputs).sum() + ((kernel @ inputs) * kernel).sum()
        return math.sqrt(max(0.0, left.item()) / max(wanted.item(), 1e-300))

    if not all(bool(tensor.isfinite().all()) for tensor in (inputs, outputs)):
        raise InputError("the images give a layer inputs or outputs that are not finite: look for NaN")
    before = error()
    held = _RIDGE * inputs.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp(min=1e-30)
    moments = inputs + held * torch.eye(inputs.shape[-1], dtype=inputs.dtype, device=inputs.device)
    targets = outputs + held * kernels(source)
    shares = [None if tensor is None else tensor.chunk(layer.groups) for tensor in _parameters(layer)]
    fits = [
        fit_moments(
            Moments(moments[group], targets[group]),
            SegmentFit(*(None if parts is None else parts[group] for parts in shares)),  # type: ignore[arg-type]
            config.taps,
            size,
            config.path,
            groups=config.angle_groups,
            passes=_PASSES,
        )
        for group in range(layer.groups)
    ]
    for own, *parts in zip(_parameters(layer), *fits, strict=True):
        if own is not None:
            own.copy_(torch.cat(parts))
    if layer.bias is not None:
        layer.bias.copy_((y - (kernels(layer) @ x[..., None])[..., 0]).flatten())
    return Reconstruction(before, error())


def _parameters(layer: RotateConv2d) -> tuple[Tensor, Tensor, Tensor | None]:
    return layer.weight, layer.angle, layer.profile
