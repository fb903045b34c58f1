"""What a model costs, layer by layer: parameters, bytes, multiply-adds; as trained, fused and separable."""

import copy
import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.nn import arguments
from rotateconv.nn.baselines import MaskedConv2d
from rotateconv.nn.conv import RotateConv2d


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer, for one image.

    Attributes:
        name: In the model.
        kind: Name of the layer's class.
        parameters: Of the layer as trained.
        bytes: Of its parameters and buffers.
        multiply_adds: Of the convolution or matrix product.
        kernel_multiply_adds: Once a training step, whatever the batch: to build the kernels from weights and
            angles by the formula of `line_kernel`.
        fused_parameters: With every kernel written out.
        fused_bytes: Of the fused layer's parameters and buffers.
        separable_multiply_adds: As G line filters at each input channel and a pointwise convolution, of a
            layer with angle_groups=G and taps "shared" or "profile"; None for a layer without that form.
    """

    name: str
    kind: str
    parameters: int
    bytes: int
    multiply_adds: int
    kernel_multiply_adds: int
    fused_parameters: int
    fused_bytes: int
    separable_multiply_adds: int | None

    @property
    def fused_multiply_adds(self) -> int:
        """Fusing saves building the kernels, not the convolution: a slice has k² numbers in either form."""
        return self.multiply_adds


@dataclass(frozen=True)
class ModelCost:
    """The cost of a model for one image: a row for each layer that holds numbers, their totals, and a table.

    Attributes:
        input_size: (channels, height, width) of the image.
        rows: In the order of the model's modules.
    """

    input_size: tuple[int, int, int]
    rows: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)

    @property
    def kernel_multiply_adds(self) -> int:
        """Once a training step, whatever the batch."""
        return sum(row.kernel_multiply_adds for row in self.rows)

    @property
    def fused_parameters(self) -> int:
        return sum(row.fused_parameters for row in self.rows)

    @property
    def fused_bytes(self) -> int:
        return sum(row.fused_bytes for row in self.rows)

    @property
    def fused_multiply_adds(self) -> int:
        return sum(row.fused_multiply_adds for row in self.rows)

    @property
    def separable_multiply_adds(self) -> int:
        """With every layer that has a separable form in that form, the others fused."""
        return sum(
            row.fused_multiply_adds if row.separable_multiply_adds is None else row.separable_multiply_adds
            for row in self.rows
        )

    def __str__(self) -> str:
        lines = [_HEAD, *(_cells(row) for row in (*self.rows, self._total()))]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, table))
        return "\n".join([table[0], rule, *table[1:-1], rule, table[-1]])

    def _total(self) -> LayerCost:
        return LayerCost(
            name="total",
            kind=f"one image of {' x '.join(map(str, self.input_size))}",
            parameters=self.parameters,
            bytes=self.bytes,
            multiply_adds=self.multiply_adds,
            kernel_multiply_adds=self.kernel_multiply_adds,
            fused_parameters=self.fused_parameters,
            fused_bytes=self.fused_bytes,
            separable_multiply_adds=self.separable_multiply_adds,
        )


def cost(model: nn.Module, input_size: tuple[int, int, int]) -> ModelCost:
    """Count parameters, bytes and multiply-adds of every layer, in one forward pass on the meta device.

    One multiply-add is two floating-point operations. Counted are convolutions (transposed ones too) and
    linear layers, as `torch.utils.flop_counter` counts them on the fused model; not norms, activations, pools
    and additions, and not products outside of layers, such as attention. The model itself is not run or
    changed; its forward hooks are not called.

    Args:
        model: Any module that takes a batch of images and runs on the meta device.
        input_size: (channels, height, width) of one image.

    Returns:
        The rows and their totals. Parameters that several layers share count once, in the first of them; the
        multiply-adds of a layer that is called several times add up.

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

    twin = _meta_copy(model).eval()
    multiply_adds: Counter[nn.Module] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        multiply_adds[layer] += _multiply_adds(layer, inputs, output)

    for layer in twin.modules():
        layer.register_forward_hook(count)
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), None)
    with torch.no_grad():
        twin(torch.empty(1, channels, height, width, device="meta", dtype=dtype))

    seen: set[Tensor] = set()
    rows = []
    for name, layer in twin.named_modules():
        own = [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]
        new = [tensor for tensor in own if tensor not in seen]
        seen.update(new)
        if own:
            rows.append(_layer_cost(name, layer, new, multiply_adds[layer]))
    return ModelCost((channels, height, width), tuple(rows))


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy without forward hooks, whose tensors have shapes and no values: no memory is copied."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    twin = copy.deepcopy(model, memo)
    for layer in twin.modules():
        # They serve whoever watches the model. Those before a forward stay: they may compute weights.
        layer._forward_hooks.clear()
    return twin


def _multiply_adds(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    """A convolution sums over the cells of a kernel for every output number, a linear layer over a row."""
    if isinstance(layer, RotateConv2d | MaskedConv2d):
        return output.numel() * layer.weight.shape[1] * math.prod(layer.kernel_size)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # every input number goes into the cells of a kernel
        return inputs[0].numel() * layer.weight[0].numel()
    if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        return output.numel() * layer.weight[0].numel()
    return 0


def _layer_cost(name: str, layer: nn.Module, tensors: list[Tensor], multiply_adds: int) -> LayerCost:
    parameters = fused_parameters = sum(t.numel() for t in tensors if isinstance(t, nn.Parameter))
    size = fused_size = sum(t.numel() * t.element_size() for t in tensors)
    kernels = 0
    separable = None
    if isinstance(layer, RotateConv2d | MaskedConv2d):
        bias = 0 if layer.bias is None else layer.bias.numel()
        fused_parameters = math.prod(layer.weight.shape[:2]) * math.prod(layer.kernel_size) + bias
        fused_size = fused_parameters * layer.weight.element_size()
    if isinstance(layer, RotateConv2d):
        kernels = _kernel_multiply_adds(layer)
        separable = _separable_multiply_adds(layer, multiply_adds)
    return LayerCost(
        name,
        type(layer).__name__,
        parameters,
        size,
        multiply_adds,
        kernels,
        fused_parameters,
        fused_size,
        separable,
    )


def _kernel_multiply_adds(layer: RotateConv2d) -> int:
    """k³ products for the footprints of k taps on k² cells, k³ multiply-adds to weigh them: 2k³ a line."""
    k, slices = layer.kernel_size[0], math.prod(layer.weight.shape[:2])
    if layer.angle_groups is None or layer.taps == "free":
        times_profile = 0 if layer.profile is None else slices * k
        return slices * 2 * k**3 + times_profile
    return layer.angle.numel() * 2 * k**3 + slices * k**2  # the line of a group, times the weight of each slice


def _separable_multiply_adds(layer: RotateConv2d, multiply_adds: int) -> int | None:
    """k² for every line filter and 1 for every slice, at each of the output's positions."""
    if layer.angle_groups is None or layer.taps == "free":
        return None
    k, (slices, fan) = layer.kernel_size[0], (math.prod(layer.weight.shape[:2]), layer.weight.shape[1])
    positions = multiply_adds // (slices * k**2)
    # Two partitions of the output channels into equal runs, by angle and by groups, meet in this many runs.
    runs = layer.angle_groups + layer.groups - math.gcd(layer.angle_groups, layer.groups)
    return positions * (runs * fan * k**2 + slices)


_HEAD = (
    "layer",
    "kind",
    "parameters",
    "bytes",
    "multiply-adds",
    "kernels a step",
    "fused parameters",
    "fused bytes",
    "separable multiply-adds",
)


def _cells(row: LayerCost) -> tuple[str, ...]:
    numbers = (row.parameters, row.bytes, row.multiply_adds, row.kernel_multiply_adds)
    fused = (row.fused_parameters, row.fused_bytes)
    separable = "-" if row.separable_multiply_adds is None else f"{row.separable_multiply_adds:,}"
    return (row.name, row.kind, *(f"{number:,}" for number in numbers + fused), separable)
