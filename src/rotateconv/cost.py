"""What a model costs, layer by layer: parameters, bytes, multiply-adds; as trained, fused and separable."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rotateconv._text_table import text_table
from rotateconv.errors import InputError, first_line
from rotateconv.nn import arguments
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.codebook import CodebookConv2d
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.copying import copy_model
from rotateconv.nn.factored import OuterConv2d


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The cost of a layer or a model, for one image.

    Attributes:
        parameters: As trained; those that several layers share count once, in the first of them.
        bytes: Of the parameters and buffers.
        multiply_adds: Of convolutions and matrix products, in any form but the separable one; None where the
            model cannot be run without values.
        kernel_multiply_adds: Once per training step, whatever the batch: to build the kernels from weights and
            angles by the formula of `line_kernel`.
        fused_parameters: With every kernel written out.
        fused_bytes: Of the fused parameters and buffers.
        separable_multiply_adds: As G line filters at each input channel and a pointwise convolution, of layers
            with angle_groups=G and taps "shared" or "profile". None for a layer without that form; in a model,
            such a layer counts as it is.
    """

    parameters: int
    bytes: int
    multiply_adds: int | None
    kernel_multiply_adds: int
    fused_parameters: int
    fused_bytes: int
    separable_multiply_adds: int | None

    @property
    def fused_multiply_adds(self) -> int | None:
        """Fusing saves building the kernels, not the convolution: a slice has k² numbers in either form."""
        return self.multiply_adds


@dataclass(frozen=True, kw_only=True)
class LayerCost(Counts):
    """The cost of one layer.

    Attributes:
        name: In the model.
        kind: Name of the layer's class.
    """

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class ModelCost(Counts):
    """The cost of a model for one image: the totals, a row for each layer that holds numbers, and a table.

    Attributes:
        parameters, bytes, multiply_adds, kernel_multiply_adds, fused_parameters, fused_bytes,
            separable_multiply_adds: The totals of the rows.
        input_size: (channels, height, width) of the image.
        rows: In the order of the model's modules.
        unknown: Why there are no multiply-adds, where there are none.
    """

    input_size: tuple[int, int, int]
    rows: tuple[LayerCost, ...]
    unknown: str | None = None

    def __str__(self) -> str:
        size = " x ".join(map(str, self.input_size))
        total = ("total", f"one image of {size}", *_cells(self))
        rows = [(row.name, row.kind, *_cells(row)) for row in self.rows]
        table = text_table([("layer", "kind", *_COLUMNS.values()), *rows, total], right=range(2, 2 + len(_COLUMNS)))
        return table if self.unknown is None else f"{table}\nmultiply-adds are unknown: {self.unknown}"


_COLUMNS = {
    "parameters": "parameters",
    "bytes": "bytes",
    "multiply_adds": "multiply-adds",
    "kernel_multiply_adds": "kernels per step",
    "fused_parameters": "fused parameters",
    "fused_bytes": "fused bytes",
    "separable_multiply_adds": "separable multiply-adds",
}


def cost(model: nn.Module, input_size: tuple[int, int, int]) -> ModelCost:
    """Count parameters, bytes and multiply-adds of every layer, in one forward pass on the meta device.

    One multiply-add is two floating-point operations of `torch.utils.flop_counter`, which counts convolutions and
    matrix products; not norms, activations, pools and additions. The model itself is not run or changed; its
    forward hooks are not called.

    Args:
        model: Any module that takes a batch of images. One that cannot run on the meta device, because it looks at
            values or makes a tensor elsewhere, has its parameters counted alone.
        input_size: (channels, height, width) of one image.

    Returns:
        The rows and their totals. The multiply-adds of a layer that is called several times add up.

    Raises:
        ValueError: If input_size is not three positive integers.

    Example:
        >>> from rotateconv.models import build_model
        >>> found = cost(build_model("resnet20", conv="rotate4"), (3, 32, 32))
        >>> found.parameters, found.fused_parameters, found.multiply_adds
        (121242, 269722, 40551040)
    """
    if len(input_size) != 3:
        raise InputError(f"input_size must be (channels, height, width), got {tuple(input_size)}")
    channels, height, width = (arguments.positive("every number of input_size", size) for size in input_size)

    meta = _meta_copy(model).eval()
    dtype = next((p.dtype for p in meta.parameters() if p.is_floating_point()), None)
    multiply_adds: Counter[nn.Module] | None
    try:
        multiply_adds = _count(meta, torch.empty(1, channels, height, width, device="meta", dtype=dtype))
        unknown = None
    except Exception as error:  # whatever a forward pass raises that needs values
        multiply_adds, unknown = None, f"the model does not run on the meta device ({first_line(error)})"

    seen: set[Tensor] = set()
    rows = []
    for name, layer in meta.named_modules():
        own = [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]
        new = [tensor for tensor in own if tensor not in seen]
        seen.update(new)
        if own or (multiply_adds is not None and multiply_adds[layer] > 0):
            rows.append(_layer_cost(name, layer, new, None if multiply_adds is None else multiply_adds[layer]))
    totals = {name: _total(rows, name) for name in _COLUMNS}
    return ModelCost(input_size=(channels, height, width), rows=tuple(rows), unknown=unknown, **totals)


def number_text(count: int | None) -> str:
    """A count with its thousands set apart, or "unknown".

    Example:
        >>> number_text(269722), number_text(None)
        ('269,722', 'unknown')
    """
    return "unknown" if count is None else f"{count:,}"


def _count(model: nn.Module, images: Tensor) -> "Counter[nn.Module]":
    """The multiply-adds of every module without those of the modules that it calls, of one forward pass."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, where it is: a tenth of a second

    found: Counter[nn.Module] = Counter()
    calls: list[tuple[int, int]] = []  # of the modules that are running: flops at the start, flops of inner calls

    def enter(layer: nn.Module, inputs: Any) -> None:
        calls.append((counter.get_total_flops(), 0))

    def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
        start, inner = calls.pop()
        spent = counter.get_total_flops() - start
        found[layer] += (spent - inner) // 2
        if calls:
            outer_start, outer_inner = calls.pop()
            calls.append((outer_start, outer_inner + spent))

    for layer in model.modules():
        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return found


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy without forward hooks, whose tensors have shapes and no values: no memory is copied."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    meta = copy_model(model, memo)
    for layer in meta.modules():
        if isinstance(layer, RotateConv2d):  # what the other form takes is a column of its own
            layer.config = replace(layer.config, form="dense")
        # They serve whoever watches the model. Those before a forward stay: they may compute weights.
        layer._forward_hooks.clear()
    return meta


def _layer_cost(name: str, layer: nn.Module, tensors: list[Tensor], multiply_adds: int | None) -> LayerCost:
    parameters = fused_parameters = sum(t.numel() for t in tensors if isinstance(t, nn.Parameter))
    size = fused_size = sum(t.numel() * t.element_size() for t in tensors)
    if isinstance(layer, ConvBase):
        bias = 0 if layer.bias is None else layer.bias.numel()
        fused_parameters = math.prod(layer.weight.shape[:2]) * math.prod(layer.kernel_size) + bias
        fused_size = fused_parameters * layer.weight.element_size()
    separable = _separable_multiply_adds(layer, multiply_adds) if isinstance(layer, RotateConv2d) else None
    return LayerCost(
        name=name,
        kind=type(layer).__name__,
        parameters=parameters,
        bytes=size,
        multiply_adds=multiply_adds,
        kernel_multiply_adds=_kernel_multiply_adds(layer),
        fused_parameters=fused_parameters,
        fused_bytes=fused_size,
        separable_multiply_adds=separable,
    )


def _total(rows: list[LayerCost], name: str) -> Any:
    """The sum of a column; None if a number is unknown."""
    counts = [getattr(row, name) for row in rows]
    if name == "separable_multiply_adds":
        counts = [row.multiply_adds if own is None else own for row, own in zip(rows, counts, strict=True)]
    return None if None in counts else sum(counts)


def _cells(counts: Counts) -> list[str]:
    cells = {name: number_text(getattr(counts, name)) for name in _COLUMNS}
    if counts.separable_multiply_adds is None and counts.multiply_adds is not None:
        cells["separable_multiply_adds"] = "-"
    return list(cells.values())


def _kernel_multiply_adds(layer: nn.Module) -> int:
    """k³ products for the splats of k taps on k² positions, k³ multiply-adds to weigh them: 2k³ a line.

    k² for an outer product; k² for each entry of a codebook to find the nearest, and as many for its multiple.
    """
    if not isinstance(layer, ConvBase):
        return 0
    k, slices = layer.kernel_size[0], math.prod(layer.weight.shape[:2])
    if not isinstance(layer, RotateConv2d):
        products = len(layer.codebook) + 1 if isinstance(layer, CodebookConv2d) else isinstance(layer, OuterConv2d)
        return slices * k**2 * products
    if layer.angle_groups is None or layer.taps == "free":
        times_profile = 0 if layer.profile is None else slices * k
        return slices * 2 * k**3 + times_profile
    return layer.angle.numel() * 2 * k**3 + slices * k**2  # the line of a group, times the weight of each slice


def _separable_multiply_adds(layer: RotateConv2d, multiply_adds: int | None) -> int | None:
    """k² for every line filter and 1 for every slice, at each of the output's positions."""
    if layer.angle_groups is None or layer.taps == "free" or multiply_adds is None:
        return None
    k, (slices, fan) = layer.kernel_size[0], (math.prod(layer.weight.shape[:2]), layer.weight.shape[1])
    positions = multiply_adds // (slices * k**2)
    # Two partitions of the output channels into equal runs, by angle and by groups, meet in this many runs.
    runs = layer.angle_groups + layer.groups - math.gcd(layer.angle_groups, layer.groups)
    return positions * (runs * fan * k**2 + slices)
