"""A dense ONNX file made small: every kernel becomes codes, which plain operators decode when the file is opened."""

import math
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rotateconv.export.decoding import Body, floats
from rotateconv.export.kernels import KernelForm, Layer, write
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.codebook import CodebookConv2d, nearest_multiple
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.factored import OuterConv2d
from rotateconv.nn.masked import MaskedConv2d, seed_of_positions
from rotateconv.quantization.primitives import encode_angle, encode_weight, scale, to_bf16, to_digits
from rotateconv.quantization.quantize import Entry

_EXACT = 2e-6
"""Largest error of a kernel that is taken for a multiple of its layer's, in proportion to its largest number."""

_SMALL = 16  # numbers: a tensor of fewer is kept as it is, since decoding it would take more bytes
_FEW_PATTERNS = 16  # a layer with no more has a table of them to itself, and shorter indices

_FLOAT = 1  # of onnx.TensorProto


def compact(dense: Any, model: nn.Module, tensors: Sequence[Entry], coefficient_bits: int) -> Any:
    """The same file with the kernels of a quantized model as codes.

    A kernel of the dense file is that of its layer times a factor per output channel, where a batch norm is folded
    into it. The codes are those of the layer; the factor goes into the scales::

        K[o, i] = (factor[o] · 2^(e[o]/8)) · Σ_t c[o,i,t] · S(angle[o,i])[t]

    Scales (with a profile, one per tap) and biases are whole numbers of `coefficient_bits`, with a power of two per
    output channel. What else is large and has the precision of bfloat16, such as the norms that could not be folded,
    is stored so.

    Args:
        dense: The ModelProto of the fused model; not changed.
        model: The quantized model, not fused; its parameters have the names of the file.
        tensors: Its entries.
        coefficient_bits: 8 to 24.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(dense)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    reader = _Reader({entry.name: entry for entry in tensors}, model)
    biases = _biases(graph, stored)
    left: dict[str, Any] = dict(stored)
    for name, module in model.named_modules():
        key = f"{name}.weight" if name else "weight"
        if key in left and isinstance(module, ConvBase | nn.modules.conv._ConvNd | nn.Linear):
            bias = biases.get(key)
            shift = (bias, onnx.numpy_helper.to_array(left[bias]).astype(np.float64)) if bias in left else None
            if reader.layer(key, module, onnx.numpy_helper.to_array(left[key]), shift):
                del left[key]
                left.pop(str(bias), None)
    for key, tensor in list(left.items()):
        if tensor.data_type == _FLOAT and math.prod(tensor.dims) >= _SMALL:
            values = onnx.numpy_helper.to_array(tensor)
            if _is_bf16(values):
                reader.floats[key] = values
                del left[key]
    nodes = [*reader.write(coefficient_bits), *graph.node]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*left.values(), *reader.body.initializers])
    _shorten(proto)
    return proto


@dataclass
class _Reader:
    """Collects the layers, those of one form together."""

    entries: dict[str, Entry]
    model: nn.Module
    body: Body = field(default_factory=Body)
    forms: dict[KernelForm, list[Layer]] = field(default_factory=dict)
    floats: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        masks: dict[int, list[NDArray[Any]]] = {}
        for module in self.model.modules():
            if isinstance(module, MaskedConv2d):
                masks.setdefault(module.kernel_size[0], []).append(_mask(module))
        self.patterns = {size: np.unique(np.concatenate(rows), axis=0) for size, rows in masks.items()}

    def layer(self, key: str, module: nn.Module, kernel: NDArray[Any], bias: tuple[str, NDArray[Any]] | None) -> bool:
        """Take a layer's kernel (and bias) as codes; False where the kernel of the file is not the layer's."""
        own = _kernel(module)
        factor = _factor(kernel, own) if own.shape == kernel.shape else None
        entry = self.entries.get(key)
        if factor is None or entry is None or entry.kind not in ("weight", "dense", "codebook"):
            return False
        assert isinstance(module.weight, Tensor)
        weight, index = module.weight, None
        if entry.codebook is not None:
            index, weight = nearest_multiple(weight.detach(), entry.codebook.detach())
        digits, sizes = _codes(weight, entry.levels)
        sizes = factor[:, None] * sizes ** (2 if isinstance(module, OuterConv2d) else 1)
        form = KernelForm("dense", entry.levels, kernel.shape[2:])
        layer = Layer(key, kernel.shape, digits, sizes, bias)
        if isinstance(module, MaskedConv2d):
            form, layer = self.mask(form, layer, module)
        elif isinstance(module, RotateConv2d):
            form, layer = self.line(form, layer, module)
        elif isinstance(module, OuterConv2d):
            form = replace(form, kind="outer", taps=module.kernel_size[0])
        elif isinstance(module, CodebookConv2d) and index is not None:
            form = replace(form, kind="codebook", own=key)
            layer = replace(layer, index=index.cpu().numpy(), codebook=self.codebook(key, module))
        self.forms.setdefault(form, []).append(layer)
        return True

    def entry(self, tensor: Tensor) -> Entry:
        """The one of a tensor of the model."""
        return next(entry for entry in self.entries.values() if entry.tensor is tensor)

    def codebook(self, key: str, module: CodebookConv2d) -> str:
        """Take the kernels of a codebook like those of a dense layer."""
        levels = self.entry(module.codebook).levels
        digits, sizes = _codes(module.codebook, levels)
        form = KernelForm("dense", levels, digits.shape[2:])
        layer = Layer(f"{key} codebook", digits.shape, digits, sizes)
        self.forms.setdefault(form, []).append(layer)
        return layer.name

    def mask(self, form: KernelForm, layer: Layer, module: MaskedConv2d) -> tuple[KernelForm, Layer]:
        """The seed of the positions, or which of the sets of them that there are in the model each slice keeps."""
        form, masks = replace(form, kind="masked", taps=layer.digits.shape[-1]), _mask(module)
        seed = seed_of_positions(module.position.flatten(0, 1).long().cpu(), masks.shape[1])
        if seed is not None:
            return form, replace(layer, seed=seed)
        table, own = np.unique(masks, axis=0), layer.name
        if len(table) > _FEW_PATTERNS:
            table, own = self.patterns[module.kernel_size[0]], "patterns"
        found = np.unique(np.concatenate([table, masks]), axis=0, return_inverse=True)[1].ravel()
        return replace(form, own=own), replace(layer, table=table, index=found[len(table) :])

    def line(self, form: KernelForm, layer: Layer, module: RotateConv2d) -> tuple[KernelForm, Layer]:
        """Angles and profiles of a RotateConv2d."""
        angle = self.entry(module.angle)
        taps = layer.digits.shape[-1]
        form = replace(form, kind="line", taps=taps, form=module.taps, angle=(angle.bits, angle.period, module.path))
        layer = replace(
            layer,
            angles=encode_angle(module.angle, angle.bits, angle.period).cpu().numpy(),
            digits=layer.digits.reshape(-1, taps),
        )
        if module.angle_groups is not None:
            form = replace(form, kind="grouped", groups=module.angle_groups)
        if module.profile is None:
            return form, layer
        entry = self.entry(module.profile)
        rows = module.profile.detach().flatten(0, -2)
        if entry.kind == "bf16":
            profile = rows.cpu().double().numpy()
            more = {"profile": profile} if form.groups else {"scales": layer.scales * profile}
            return form, replace(layer, **more)
        digits, sizes = _codes(rows, entry.levels)
        more = {"sizes": sizes} if form.groups else {"scales": layer.scales * sizes}
        return replace(form, profile=entry.levels), replace(layer, profile=digits, **more)

    def write(self, bits: int) -> list[Any]:
        """The nodes that decode all layers, with scales and biases of so many bits."""
        for layers in self.forms.values():
            layers.sort(key=lambda layer: (layer.shape[1:], layer.shape[0]))
        body, every = self.body, [layer for layers in self.forms.values() for layer in layers]
        grouped = {
            layers[0].name: (form, _joined(layers, "profile"))
            for form, layers in self.forms.items()
            if form.groups and layers[0].profile is not None
        }
        stacked = {f"{key} profile": rows[..., None, None] for key, (form, rows) in grouped.items() if not form.profile}
        floats(body, self.floats | stacked)
        rows = [_joined(layers, "scales") for layers in self.forms.values()]
        rows += [_joined(layers, "sizes") for form, layers in self.forms.items() if form.profile and form.groups]
        shifts = [layer.bias for layer in every if layer.bias is not None]
        if shifts:
            rows.append(np.concatenate([values for _, values in shifts])[:, None])
        scales = _multiples(body, rows, bits) if rows else []
        if shifts:
            body.split(scales[-1], [len(values) for _, values in shifts], [name for name, _ in shifts])
        quantized = {key: profile for key, profile in grouped.items() if profile[0].profile}
        for (key, (form, digits)), sizes in zip(quantized.items(), scales[len(self.forms) :], strict=False):
            codes = body.shaped(body.numbers(digits, form.profile, centered=True), -1, form.tail[0], 1, 1)
            body.op("Mul", codes, body.shaped(sizes, -1, 1, 1, 1), name=f"{key} profile")
        # Codebooks first: others take kernels from them.
        order = sorted(zip(self.forms.items(), scales, strict=False), key=lambda one: one[0][0].kind == "codebook")
        for (form, layers), scale_name in order:
            write(body, form, layers, scale_name)
        return body.finish()


def _multiples(body: Body, rows: Sequence[NDArray[Any]], bits: int) -> list[str]:
    """Write matrices as whole numbers of so many bits, times a power of two per row, times one step for all.

    Those of one column are flat in the graph.
    """
    limit = 2 ** (bits - 1) - 1
    largest = [abs(row).max(1) for row in rows]
    top = max(float(one.max()) for one in largest) or 1.0
    with np.errstate(divide="ignore"):
        powers = [np.log2(top / one) for one in largest]
    below = [np.where(np.isfinite(power), np.floor(power), 0).clip(0, 60).astype(np.int64) for power in powers]
    there = np.unique(np.concatenate(below))
    steps = (top / limit * 2.0**-there).astype(np.float32)
    table = body.given(steps)
    names = []
    for row, power in zip(rows, below, strict=True):
        place = np.searchsorted(there, power)
        codes = np.rint(row / steps[place].astype(np.float64)[:, None]).clip(-limit, limit).astype(np.int64) + limit
        step = body.op("Gather", table, body.numbers(place, len(there)))
        numbers = body.numbers(codes, 2 * limit + 1, centered=True)
        if row.shape[1] > 1:
            step, numbers = body.shaped(step, -1, 1), body.shaped(numbers, -1, row.shape[1])
        names.append(body.op("Mul", numbers, step))
    return names


def _codes(weight: Tensor, levels: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers on their grid as digits from 0, in their shape, and the scales of their rows, (out, 1)."""
    codes, exponents = encode_weight(weight, levels)
    return to_digits(codes, levels).cpu().numpy(), scale(exponents).cpu().double().numpy()[:, None]


def _joined(layers: Sequence[Layer], key: str) -> NDArray[Any]:
    """The rows of all layers."""
    return np.concatenate([getattr(layer, key) for layer in layers])


def _is_bf16(values: NDArray[Any]) -> bool:
    tensor = torch.from_numpy(values.copy())
    return bool(tensor.isfinite().all() and torch.equal(to_bf16(tensor).float(), tensor))


def _mask(module: MaskedConv2d) -> NDArray[Any]:
    """The positions that slices keep, as ones, (slices, k²)."""
    positions = module.position.flatten(0, 1).cpu().numpy().astype(np.int64)
    mask = np.zeros((len(positions), module.kernel_size[0] ** 2), dtype=np.uint8)
    np.put_along_axis(mask, positions, 1, 1)
    return mask


@torch.no_grad()
def _kernel(module: nn.Module) -> NDArray[Any]:
    values = module.kernel() if isinstance(module, ConvBase) else module.weight
    assert isinstance(values, Tensor)
    return values.detach().cpu().double().numpy()


def _factor(found: NDArray[Any], own: NDArray[Any]) -> NDArray[Any] | None:
    """By how much each output channel of a kernel is larger than the layer's; None if it is no multiple."""
    rows, other = found.reshape(len(found), -1).astype(np.float64), own.reshape(len(own), -1)
    squares = (other**2).sum(1)
    factor = np.divide((rows * other).sum(1), squares, out=np.zeros_like(squares), where=squares > 0)
    error = abs(rows - factor[:, None] * other).max(initial=0)
    return factor if error <= _EXACT * max(abs(rows).max(initial=0), 1e-30) else None


def _biases(graph: Any, stored: dict[str, Any]) -> dict[str, str]:
    """The bias that goes with each weight, where nothing else takes either."""
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "ConvTranspose") and len(node.input) == 3:
            _, weight, bias = node.input
            alone = weight in stored and bias in stored and uses[weight] == uses[bias] == 1
            if alone and list(stored[bias].dims) == list(stored[weight].dims[:1]):
                found[weight] = bias
    return found


_DEFAULTS: dict[str, Any] = {
    "group": 1, "auto_pad": b"NOTSET", "alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, "noop_with_empty_axes": 0,
    "ceil_mode": 0, "count_include_pad": 0, "storage_order": 0,
}  # fmt: skip
"""Values that an operator has where nothing is said."""


def _shorten(proto: Any) -> None:
    """Give every value a short name, and leave out the names of nodes and the attributes that say the default."""
    import onnx

    graph = proto.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    uses = Counter(name for node in graph.node for name in (*node.input, *node.output) if name not in kept)
    letters = string.ascii_letters
    shortest = (first + more for more in ("", *letters, *map("".join, product(letters, letters))) for first in letters)
    names = {name: name for name in kept} | {name: next(shortest) for name, _ in uses.most_common()}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        said = [a for a in node.attribute if not _is_default(node.op_type, a.name, given[a.name])]
        if len(said) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(said)
    graph.name = "g"
    proto.ClearField("producer_name")
    proto.ClearField("producer_version")


def _is_default(operator: str, name: str, value: Any) -> bool:
    if name in _DEFAULTS:
        return bool(value == _DEFAULTS[name])
    if operator not in ("Conv", "MaxPool", "AveragePool"):
        return False
    if operator == "Conv" and name == "kernel_shape":
        return True  # the kernel's
    ones, zeros = name in ("strides", "dilations"), name == "pads"
    return (ones and set(value) == {1}) or (zeros and set(value) == {0})
