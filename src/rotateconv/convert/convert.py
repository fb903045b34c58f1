"""Convert the convolutions of a model into the RotateConv2d layers nearest to them, in place."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rotateconv.convert.module_swap import has_hooks, replace_modules
from rotateconv.convert.reconstruct import Data, Progress, reconstruct
from rotateconv.convert.report import ConversionEntry, ConversionReport
from rotateconv.errors import InputError
from rotateconv.kernels.line import Path, Taps
from rotateconv.kernels.separable import Form
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.arguments import arguments_of
from rotateconv.nn.config import RotateConfig
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.copying import copy_model

Filter = Callable[[str, nn.Conv2d], bool]
"""Whether to convert a convolution, by its name in the model and itself."""


class NothingToConvertError(InputError):
    """None of a model's convolutions is to be replaced; the message says why, for each kind."""


def convert(
    model: nn.Module,
    taps: Taps = "free",
    *,
    where: Filter | None = None,
    path: Path = "circle",
    angle_groups: int | None = None,
    learn_angle: bool = True,
    form: Form = "auto",
    learn_profile: bool = True,
    data: Data | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Replace convolutions of a model, in place, by `RotateConv2d.from_conv` of each, or better by what data show.

    With `data`, images without labels, each layer is then fitted to the *outputs* that its convolution had, one after
    the other, and the batch norms are recalibrated: `rotateconv.convert.reconstruct.reconstruct` says how. It takes
    a minute or so, and most of the accuracy that a conversion loses is back without any training. Biases change then.

    Eligible is a convolution whose type is exactly nn.Conv2d (a subclass may compute something else), with a
    square odd kernel of at least 3, real floating-point weights that have values (not on the meta device) and
    no hooks, and with output channels divisible by `angle_groups` (and groups=1 for form="separable"). Of these,
    all are replaced but the stem (the first nn.Conv2d of the model, in the order of registration) and the
    depthwise ones; ``where=lambda name, conv: True`` includes those too.

    A module that is registered under several names stays one module, and convolutions that share a weight share
    the parameters of their replacements; where only some of them would be replaced, all stay. Biases remain the
    same parameters; an optimizer made before holds the old weights, so make a new one.

    Args:
        model: Changed in place, unless an error is raised.
        taps, path, angle_groups, learn_angle, form, learn_profile: As in RotateConv2d.
        where: Decides alone which eligible convolutions are replaced, by their first name and the module.
        data: Batches of images on the model's device, or sequences that begin with them, that can be iterated many
            times: a few hundred to a few thousand of the kind that the model will see, normalized, not augmented.
        progress: Called as progress(done, total, name) after each layer that is fitted, with data twice for each.

    Returns:
        An entry for every convolution (of any kind) with the loss of the conversion, or why it was skipped.

    Raises:
        ValueError: If no convolution is to be replaced, or data has no image or can be iterated only once, or the
            model is itself a convolution or has parameters
            without shapes, or a kernel is not finite, or an argument is not one of RotateConv2d's.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
        >>> report = convert(model, taps="shared")
        >>> [entry.name for entry in report.converted], report.parameters_before, report.parameters_after
        (['2'], 5088, 1504)
    """
    config = RotateConfig(taps, path, angle_groups, learn_angle, form, learn_profile)
    return convert_to(model, config, where=where, data=data, progress=progress)


def convert_to(
    model: nn.Module,
    config: RotateConfig,
    *,
    where: Filter | None = None,
    data: Data | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """`convert`, with the options of the layers as one value.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
        >>> len(convert_to(model, RotateConfig("shared")).converted)
        1
    """
    if data is None:
        return _convert(model, config, where, RotateConv2d.nearest, fitted=True, progress=progress)
    changed = copy_model(model)  # an error leaves the model as it was
    report = _convert(changed, config, where, RotateConv2d.nearest, fitted=True, progress=progress, passes=2)
    names = {entry.name for entry in report.converted}
    layers = {name: module for name, module in changed.named_modules() if name in names}
    uses = Counter(layer.weight for layer in layers.values())
    own = [name for name, layer in layers.items() if uses[layer.weight] == 1]  # what shares a kernel stays as fitted
    found = reconstruct(changed, model, own, data, _after(progress, len(layers)))
    new, entries = {}, []
    for entry in report.entries:
        if entry.name in layers:
            conv = model.get_submodule(entry.name)
            assert isinstance(conv, nn.Conv2d)
            residual = _relative_residual(conv, layers[entry.name])
            of_outputs = found[entry.name].after if entry.name in found else None
            entry = dataclasses.replace(entry, residual=residual, output_residual=of_outputs)
        entries.append(entry)
    with torch.no_grad():
        for name, layer in layers.items():
            conv = model.get_submodule(name)
            if isinstance(conv.bias, nn.Parameter) and layer.bias is not None:
                conv.bias.copy_(layer.bias)  # the same parameter, for an optimizer that holds it
                layer.bias = conv.bias
            new[conv] = layer
    for name, module in changed.named_modules():
        for key, buffer in module.named_buffers(recurse=False) if isinstance(module, _BatchNorm) else ():
            model.get_submodule(name).get_buffer(key).copy_(buffer)
    replace_modules(model, new)
    return dataclasses.replace(report, entries=tuple(entries))


def convert_layers(model: nn.Module, make: Callable[..., nn.Module]) -> ConversionReport:
    """Replace convolutions of a model, in place, by the nearest layers of any kind that can be fitted to a kernel.

    They are the convolutions that `convert` replaces.

    Args:
        model: Changed in place, unless an error is raised.
        make: Builds a layer from nn.Conv2d's arguments, such as an entry of `CONVS`; the layer has `fit`.

    Returns:
        An entry for every convolution, as `convert` gives it.

    Raises:
        ValueError: As `convert`; or if a layer cannot be fitted to a dense kernel.

    Example:
        >>> from rotateconv import CONVS
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
        >>> len(convert_layers(model, CONVS["pattern4"]).converted), model[2].weight.shape
        (1, torch.Size([32, 16, 4]))
    """

    def nearest(conv: nn.Conv2d, _: RotateConfig) -> nn.Module:
        layer = make(**arguments_of(conv))
        if not hasattr(layer, "fit"):
            raise InputError(f"a {type(layer).__name__} cannot be fitted to a dense kernel")
        layer.fit(conv.weight)  # type: ignore[operator]
        if conv.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(conv.bias)  # type: ignore[operator]
        return layer.requires_grad_(conv.weight.requires_grad).train(conv.training)

    return _convert(model, RotateConfig(), None, nearest, fitted=True)


def convert_architecture(model: nn.Module, config: RotateConfig, *, where: Filter | None = None) -> None:
    """Replace, in place, what `convert` would replace, by layers with fresh values: the model that its weights fit.

    Nothing is fitted, so the model may be on the meta device.

    Args:
        model: Changed in place, unless an error is raised.
        config: The options of the layers.
        where: As in `convert`.

    Raises:
        ValueError: As `convert`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3))
        >>> convert_architecture(model, RotateConfig("shared"))
        >>> model[1].weight.shape
        torch.Size([32, 16, 1])
    """
    _convert(model, config, where, RotateConv2d.like, fitted=False)


def _convert(
    model: nn.Module,
    config: RotateConfig,
    where: Filter | None,
    make: Callable[[nn.Conv2d, RotateConfig], nn.Module],
    *,
    fitted: bool,
    progress: Progress | None = None,
    passes: int = 1,
) -> ConversionReport:
    if isinstance(model, nn.Conv2d):
        raise InputError(
            "convert replaces convolutions inside a model, and this model is itself one: use RotateConv2d.from_conv"
        )
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise InputError("convert needs a model whose lazy modules have shapes: run a batch through it first")

    reasons = _reasons(model, where, config, needs_values=fitted)
    if None not in reasons.values():
        raise NothingToConvertError(_nothing_matched(reasons))
    parameters_before = _count(model)
    new: dict[nn.Module, nn.Module] = {}
    first: dict[Tensor, nn.Module] = {}
    entries = []
    # All are fitted before the first is replaced: an error leaves the model as it was.
    for (name, conv), reason in reasons.items():
        before = after = _count(conv)
        residual = None
        if reason is None:
            try:
                layer = make(conv, config)
            except ValueError as error:
                raise InputError(f"cannot convert {name}: {error}") from error
            if isinstance(layer, ConvBase):
                layer.bias = conv.bias  # type: ignore[assignment]
            _tie_parameters(first.setdefault(conv.weight, layer), layer)
            new[conv], after = layer, _count(layer)
            residual = _relative_residual(conv, layer) if fitted else None
            if progress is not None:
                progress(len(new), passes * sum(why is None for why in reasons.values()), name)
        entries.append(ConversionEntry(name, tuple(conv.weight.shape), before, after, residual, reason))
    replace_modules(model, new)
    return ConversionReport(tuple(entries), parameters_before, _count(model))


def _after(progress: Progress | None, count: int) -> Progress | None:
    """The same progress, of what comes after `count` of twice as many."""
    if progress is None:
        return None
    return lambda done, total, name: progress(count + done, count + total, name)


_STEM, _DEPTHWISE = "the stem", "depthwise"

_Reasons = dict[tuple[str, nn.Conv2d], str | None]


def _reasons(model: nn.Module, where: Filter | None, config: RotateConfig, needs_values: bool) -> _Reasons:
    """Every convolution of the model, with the reason to leave it, or None to convert it."""
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)

    def reason(name: str, conv: nn.Conv2d) -> str | None:
        if why := _ineligible(conv, config, needs_values):
            return why
        if where is not None:
            return None if where(name, conv) else "filtered out by where"
        if conv is stem:
            return _STEM
        return _DEPTHWISE if 1 < conv.groups == conv.in_channels else None

    named = dict(model.named_modules())
    convs = {name: conv for name, conv in named.items() if isinstance(conv, nn.modules.conv._ConvNd)}
    reasons: _Reasons = {(name, conv): reason(name, conv) for name, conv in convs.items()}  # type: ignore[misc,arg-type]
    chosen = {conv for (_, conv), why in reasons.items() if why is None}
    staying = {
        parameter: name or "the model itself"
        for name, module in named.items()
        if module not in chosen
        for parameter in module._parameters.values()
    }
    for (name, conv), why in reasons.items():
        if why is None and conv.weight in staying:
            reasons[name, conv] = f"shares its weight with {staying[conv.weight]}"
    return reasons


def _ineligible(conv: nn.Module, config: RotateConfig, needs_values: bool) -> str | None:
    """Why a convolution cannot be replaced by a RotateConv2d, if it cannot."""
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__}, not nn.Conv2d"
    height, width = conv.kernel_size
    if height != width or height % 2 == 0 or height < 3:
        return f"{height}x{width} kernel"
    if has_hooks(conv):
        return "has hooks"
    if needs_values and conv.weight.is_meta:
        return "on the meta device"
    if not conv.weight.is_floating_point():
        return f"{conv.weight.dtype} weights"
    if config.angle_groups is not None and conv.out_channels % config.angle_groups:
        return f"{conv.out_channels} output channels, not divisible by angle_groups={config.angle_groups}"
    if config.form == "separable" and conv.groups != 1:
        return f'{conv.groups} groups, where form="separable" needs 1'
    return None


def _nothing_matched(reasons: _Reasons) -> str:
    if not reasons:
        return "nothing to convert: the model has no convolution"
    counts = Counter(reasons.values()).most_common()
    found = ", ".join(f"{why} ({count})" for why, count in counts)
    hint = "; where (--only) can include stem and depthwise ones"
    return f"nothing to convert among the model's convolutions: {found}" + hint * any(
        why in (_STEM, _DEPTHWISE) for why, _ in counts
    )


def _tie_parameters(first: nn.Module, layer: nn.Module) -> None:
    """Make the layer use the kernel's parameters of the first one that has this weight."""
    for own, other in zip(layer.modules(), first.modules(), strict=True):
        for name, tensor in (*other._parameters.items(), *other._buffers.items()):
            if name != "bias":
                setattr(own, name, tensor)


@torch.no_grad()
def _relative_residual(conv: nn.Conv2d, layer: nn.Module) -> float:
    kernel = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32))
    norm, found = kernel.norm(), layer.kernel()  # type: ignore[operator]
    around = (found.shape[-1] - kernel.shape[-1]) // 2  # of a layer that reaches further
    return ((F.pad(kernel, (around,) * 4) - found).norm() / norm).item() if norm > 0 else 0.0


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
