"""A dense ONNX file made small: every kernel becomes codes, and a call that decodes them when the file is opened."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rotateconv.export import decoding
from rotateconv.export.decoding import Body, Layout
from rotateconv.export.digits import Radix
from rotateconv.kernels.line import on_axis, tap_direction
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.codebook import CodebookConv2d, nearest_multiple
from rotateconv.nn.conv import RotateConv2d
from rotateconv.nn.factored import OuterConv2d
from rotateconv.nn.masked import MaskedConv2d
from rotateconv.quantization.primitives import (
    decode_angle,
    encode_angle,
    encode_weight,
    levels,
    scale,
    to_bf16,
    to_digits,
)
from rotateconv.quantization.quantize import Entry

_EXACT = 2e-6
"""Largest error of a kernel that is taken for a multiple of its layer's, in proportion to its largest number."""

_SMALL = 16  # numbers: a tensor of fewer is kept as it is, since decoding it would take more bytes
_FEW_PATTERNS = 16  # a layer with no more has a table of them to itself, and shorter indices

_FLOAT, _INT64, _BFLOAT16 = 1, 7, 16  # of onnx.TensorProto


def compact(dense: Any, model: nn.Module, tensors: Sequence[Entry], coefficient_bits: int) -> Any:
    """The same file with the kernels of a quantized model as codes.

    A kernel of the dense file is that of its layer times a factor per output channel, where a batch norm is folded
    into it. The codes are those of the layer; the factor goes into the scales::

        K[o, i] = (factor[o] · 2^(e[o]/8)) · Σ_t c[o,i,t] · S(angle[o,i])[t]

    Scales (with a profile, one per tap) and biases are whole numbers of `coefficient_bits` times one step per layer.
    What else is large and has the precision of bfloat16, such as the norms that could not be folded, is stored so.

    Args:
        dense: The ModelProto of the fused model; not changed.
        model: The quantized model, not fused; its parameters have the names of the file.
        tensors: Its entries.
        coefficient_bits: 16 or 24.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(dense)
    graph = proto.graph
    writer = _Writer(coefficient_bits, {entry.name: entry for entry in tensors}, model)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    biases = _biases(graph, stored)
    left: dict[str, Any] = dict(stored)
    for name, module in model.named_modules():
        key = f"{name}.weight" if name else "weight"
        if key in left and isinstance(module, ConvBase | nn.modules.conv._ConvNd | nn.Linear):
            bias = biases.get(key)
            values = onnx.numpy_helper.to_array(left[key])
            shift = onnx.numpy_helper.to_array(left[bias]) if bias in left else None
            if writer.layer(key, module, values, None if shift is None else (str(bias), shift)):
                del left[key]
                left.pop(str(bias), None)
    for key, tensor in list(left.items()):
        large = tensor.data_type == _FLOAT and math.prod(tensor.dims) >= _SMALL
        if large and writer.bf16(key, onnx.numpy_helper.to_array(tensor)):
            del left[key]
    nodes = [*writer.body.nodes, *graph.node]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*left.values(), *writer.initializers])
    if writer.functions:
        proto.functions.extend([decoding.digits_function(), *writer.functions.values()])
        proto.opset_import.append(onnx.helper.make_opsetid(decoding.DOMAIN, 1))
    _shorten(proto)
    return proto


@dataclass
class _Writer:
    """Collects initializers, calls and functions."""

    coefficient_bits: int
    entries: dict[str, Entry]
    model: nn.Module

    def __post_init__(self) -> None:
        self.body = Body(prefix="_")
        self.initializers: list[Any] = []
        self.functions: dict[Layout, Any] = {}
        self.tables: dict[tuple[Any, ...], str] = {}
        masks: dict[int, list[NDArray[Any]]] = {}
        for module in self.model.modules():
            if isinstance(module, MaskedConv2d):
                masks.setdefault(module.kernel_size[0] ** 2, []).append(_mask(module))
        self.patterns = {size: (np.unique(np.concatenate(rows), axis=0), "") for size, rows in masks.items()}

    def layer(self, key: str, module: nn.Module, kernel: NDArray[Any], bias: tuple[str, NDArray[Any]] | None) -> bool:
        """Write a layer's kernel (and bias) as codes; False where the kernel of the file is not the layer's."""
        own = _kernel(module)
        if own.shape != kernel.shape:
            return False
        factor = _factor(kernel, own)
        if factor is None:
            return False
        entry = self.entries.get(key)
        assert isinstance(module.weight, Tensor)
        if entry is None or entry.kind not in ("weight", "dense", "codebook"):
            return False
        index, weight = None, module.weight
        if entry.codebook is not None:
            index, weight = nearest_multiple(weight.detach(), entry.codebook.detach())
        codes, exponents = encode_weight(weight, entry.bits)
        sizes = factor * scale(exponents).cpu().double().numpy() ** (2 if isinstance(module, OuterConv2d) else 1)
        layout = Layout("dense", levels(entry.bits), biased=bias is not None)
        inputs: list[str] = []
        shapes: dict[str, Sequence[int]] = {"s": kernel.shape}
        profile: NDArray[Any] | None = None
        if isinstance(module, MaskedConv2d):
            layout, inputs = self.mask(module, dataclasses.replace(layout, kind="masked"))
        elif isinstance(module, RotateConv2d):
            layout, inputs, shapes, profile = self.line(key, module, layout, codes)
        elif isinstance(module, OuterConv2d):
            layout = dataclasses.replace(layout, kind="outer", taps=module.kernel_size[0])
        elif isinstance(module, CodebookConv2d) and index is not None:
            layout = dataclasses.replace(layout, kind="codebook", patterns=len(module.codebook))
            inputs = [self.bytes(index.cpu().numpy(), layout.patterns), self.codebook(module)]
        scales = sizes if profile is None else sizes[:, None] * profile
        self.decoded(layout, to_digits(codes, entry.bits), scales, bias, inputs, shapes, key)
        return True

    def decoded(
        self,
        layout: Layout,
        digits: Tensor,
        scales: NDArray[Any],
        bias: tuple[str, NDArray[Any]] | None,
        inputs: list[str],
        shapes: dict[str, Sequence[int]],
        name: str,
    ) -> None:
        """Write the call that makes a kernel, under a name, of the digits of its weights and its scales."""
        kept = math.prod(shapes["s"][:2]) if layout.kind == "masked" else digits.numel()
        bounds = {"masked": [layout.patterns], "codebook": [layout.patterns, layout.levels]}
        if not all(Radix.of(bound).fills(kept) for bound in bounds.get(layout.kind, [layout.levels])):
            layout, shapes = dataclasses.replace(layout, cut=True), {**shapes, "n": (kept,)}
        bits = self.coefficient_bits
        if not Radix.of(2**bits - 1).fills(scales.size + (bias is not None) * len(scales)):
            bits = 24  # three whole bytes
        layout = dataclasses.replace(layout, steps=2**bits - 1)
        steps, coefficients = self.coefficients(bits, scales, bias)
        weights = self.bytes(digits.cpu().numpy(), layout.levels)
        if layout not in self.functions:
            self.functions[layout] = decoding.function(layout, f"k{len(self.functions)}")
        attributes = {name: list(shape) for name, shape in shapes.items()} | steps
        outputs = [name, *([bias[0]] if bias else [])]
        self.call(self.functions[layout].name, [weights, coefficients, *inputs], outputs, attributes)

    def codebook(self, module: CodebookConv2d) -> str:
        """The name of the kernels of a codebook, which are decoded like those of a dense layer."""
        entry = next(entry for entry in self.entries.values() if entry.tensor is module.codebook)
        codes, exponents = encode_weight(module.codebook, entry.bits)
        layout = Layout("dense", levels(entry.bits), biased=False)
        name, sizes = self.body.name(), scale(exponents).cpu().double().numpy()
        self.decoded(layout, to_digits(codes, entry.bits), sizes, None, [], {"s": codes.shape}, name)
        return name

    def mask(self, module: MaskedConv2d, layout: Layout) -> tuple[Layout, list[str]]:
        """Which of the sets of positions that there are in the model each slice keeps."""
        size, masks = module.kernel_size[0] ** 2, _mask(module)
        patterns, name = np.unique(masks, axis=0), ""
        if shared := len(patterns) > _FEW_PATTERNS:
            patterns, name = self.patterns[size]
        if not name:
            name = self.given(patterns)
            if shared:
                self.patterns[size] = patterns, name
        layout = dataclasses.replace(layout, patterns=max(2, len(patterns)))
        found = np.unique(np.concatenate([patterns, masks]), axis=0, return_inverse=True)[1].ravel()
        return layout, [self.bytes(found[len(patterns) :], layout.patterns), name]

    def line(
        self, key: str, module: RotateConv2d, layout: Layout, codes: Tensor
    ) -> tuple[Layout, list[str], dict[str, Sequence[int]], NDArray[Any] | None]:
        """Angles and profiles of a RotateConv2d."""
        angle = next(entry for entry in self.entries.values() if entry.kind == "angle" and entry.tensor is module.angle)
        digits = encode_angle(module.angle, angle.bits, angle.period).cpu()
        size, taps = module.kernel_size[0], codes.shape[-1]
        table = self.table(angle, module)
        splats = 1 if module.taps == "shared" else size
        out, fan = codes.shape[:2]
        profile = None if module.profile is None else module.profile.detach().cpu().double().numpy()
        layout = dataclasses.replace(layout, angles=2**angle.bits, taps=taps)
        if module.angle_groups is None:
            used = (codes.index_fill(-1, torch.tensor(taps // 2), 0) if taps > 1 else codes).ne(0).any(-1)
            layout = dataclasses.replace(layout, kind="line", profile=0 if profile is None else size)
            angles = self.bytes(digits[used].numpy(), layout.angles)
            return layout, [angles, table], {"s": (out, fan, splats, size, size)}, profile
        groups = module.angle_groups
        inputs = [self.bytes(digits.numpy(), layout.angles), table]
        if profile is not None:
            layout = dataclasses.replace(layout, profile=size)
            inputs.append(self.floats16(profile.reshape(groups, 1, fan, size, 1, 1)))
        shapes: dict[str, Sequence[int]] = {
            "s": (groups, out // groups, fan, taps, 1, 1),
            "a": (digits.numel(),),
            "u": (groups, 1, fan),
            "w": (groups, out // groups, 1, 1, 1, 1),
            "k": (out, fan, size, size),
        }
        return dataclasses.replace(layout, kind="grouped"), inputs, shapes, None

    def table(self, angle: Entry, module: RotateConv2d) -> str:
        """The name of the splats of all angles."""
        size, together = module.kernel_size[0], module.taps == "shared"
        key = (angle.bits, angle.period, module.path, size, together)
        if key not in self.tables:
            angles = decode_angle(torch.arange(2**angle.bits, dtype=torch.uint8), angle.bits, angle.period)
            places = torch.stack([on_axis(place) for place in tap_direction(angles, module.path)], 1)
            given = self.given(places[..., None, None].numpy())
            self.tables[key] = decoding.splat_table(self.body, given, size, together)
        return self.tables[key]

    def coefficients(
        self, bits: int, scales: NDArray[Any], bias: tuple[str, NDArray[Any]] | None
    ) -> tuple[dict[str, float], str]:
        """The steps of scales and biases, and the name of the bytes of their codes."""
        limit = 2 ** (bits - 1) - 1
        rows, steps = [scales.reshape(len(scales), -1)], {}
        if bias is not None:
            rows.append(bias[1].astype(np.float64)[:, None])
        for name, row in zip("qp", rows, strict=False):
            steps[name] = float(np.float32(abs(row).max(initial=0) / limit)) or 1.0
        codes = [np.rint(row / step).clip(-limit, limit) for row, step in zip(rows, steps.values(), strict=True)]
        return steps, self.bytes(np.concatenate(codes, 1).astype(np.int64) + limit, 2 * limit + 1)

    def bf16(self, key: str, values: NDArray[Any]) -> bool:
        """Write a tensor as bfloat16, if that is exact."""
        tensor = torch.from_numpy(values.copy())
        if not (tensor.isfinite().all() and torch.equal(to_bf16(tensor).float(), tensor)):
            return False
        import onnx

        self.body.nodes.append(onnx.helper.make_node("Cast", [self.floats16(values)], [key], to=_FLOAT))
        return True

    def floats16(self, values: NDArray[Any]) -> str:
        import onnx

        bits = to_bf16(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))).view(torch.int16).numpy()
        tensor = onnx.TensorProto(name=self.body.name(), data_type=_BFLOAT16, dims=values.shape)
        tensor.raw_data = bits.astype("<i2").tobytes()
        self.initializers.append(tensor)
        return str(tensor.name)

    def bytes(self, digits: NDArray[Any], base: int) -> str:
        packed = Radix.of(base).pack(digits)
        return self.given(packed)

    def given(self, values: NDArray[Any]) -> str:
        import onnx

        name = self.body.name()
        self.initializers.append(onnx.numpy_helper.from_array(values, name))
        return name

    def call(self, name: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> None:
        import onnx

        self.body.nodes.append(onnx.helper.make_node(name, inputs, outputs, domain=decoding.DOMAIN, **attributes))


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
    names: dict[str, str] = {}

    def short(name: str) -> str:
        if name in kept:
            return name
        return names.setdefault(name, np.base_repr(len(names), 36).lower())

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
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
