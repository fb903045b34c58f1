"""The nodes of an ONNX graph that decode its own numbers: plain operators, whose inputs are all constants.

A runtime folds them when it opens the file. All numbers below one bound are decoded together and then split: few nodes
make a small file that opens soon.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rotateconv.export.digits import Radix, Rice

OPSET = 18

_FLOAT, _INT64 = 1, 7  # of onnx.TensorProto

_RICE_NODES = 300  # bytes, nearly: of the nodes that count zeros


@dataclass
class Body:
    """Collects nodes and constants.

    Attributes:
        nodes: In an order in which they can run, after what `numbers` are decoded by.
        initializers: Constants of many bytes.
    """

    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    _constants: dict[tuple[int, ...], str] = field(default_factory=dict)
    _streams: dict[tuple[int, bool], list[tuple[str, NDArray[Any]]]] = field(default_factory=dict)
    _count: int = 0

    def op(self, kind: str, *inputs: str, name: str = "", more: int = 0, **attributes: Any) -> str:
        """Add a node; the name of its output, the first of `more` that nothing takes."""
        import onnx

        name = name or self.name()
        unused = [self.name() for _ in range(more)]
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name, *unused], **attributes))
        return name

    def name(self) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"_{self._count}"

    def ints(self, *values: int) -> str:
        """A constant vector of int64, a byte for a small number; equal ones are one."""
        import onnx

        if values not in self._constants:
            tensor = onnx.helper.make_tensor(self.name(), _INT64, [len(values)], values)
            self._constants[values] = str(tensor.name)
            self.initializers.append(tensor)
        return self._constants[values]

    def given(self, values: NDArray[Any]) -> str:
        """A constant of any type."""
        import onnx

        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), self.name()))
        return str(self.initializers[-1].name)

    def float(self, codes: str) -> str:
        """Whole numbers as float32."""
        return self.op("Cast", codes, to=_FLOAT)

    def whole(self, codes: str) -> str:
        """Numbers as int64, cut off at the point."""
        return self.op("Cast", codes, to=_INT64)

    def shaped(self, value: str, *shape: int, name: str = "") -> str:
        """A value in another shape."""
        return self.op("Reshape", value, self.ints(*shape), name=name)

    def split(self, value: str, sizes: Sequence[int], names: Sequence[str] = ()) -> Sequence[str]:
        """The names of the parts along the first axis."""
        import onnx

        if len(sizes) == 1 and not names:
            return [value]
        names = names or [self.name() for _ in sizes]
        self.nodes.append(onnx.helper.make_node("Split", [value, self.ints(*sizes)], names))
        return names

    def numbers(self, values: NDArray[Any], bound: int, *, centered: bool = False) -> str:
        """The name of a vector of int64 that is stored in few bytes.

        Args:
            values: Whole numbers, of any shape, at least one.
            bound: Above all of them.
            centered: Whether the graph has them as float32 around zero: number - bound // 2; of an even
                bound 2 · number - (bound - 1).
        """
        name = self.name()
        self._streams.setdefault((max(2, bound), centered), []).append((name, values.ravel()))
        return name

    def finish(self) -> list[Any]:
        """All nodes, those that decode the `numbers` first."""
        rest, self.nodes = self.nodes, []
        for (bound, centered), parts in self._streams.items():
            values = np.concatenate([part for _, part in parts])
            decoded, more = self._decoded(values, bound)
            if centered:
                if bound % 2 == 0:
                    decoded = self.op("Mul", decoded, self.ints(2))
                decoded = self.float(self.op("Sub", decoded, self.ints(bound // 2 if bound % 2 else bound - 1)))
            sizes, names = [len(part) for _, part in parts], [name for name, _ in parts]
            self.split(decoded, [*sizes, more] if more else sizes, [*names, self.name()] if more else names)
        self.nodes += rest
        self._streams = {}
        return self.nodes

    def _decoded(self, values: NDArray[Any], bound: int) -> tuple[str, int]:
        """The numbers, and how many more there are: as digits, or by rank where that takes fewer bytes.

        A rank is the number of zeros between two marks, times 2^low, and the rest::

            rank[n] = 2^low · Σ_i [Σ_{j<i} mark[j] = n] (1 - mark[i]) + rest[n],      number[n] = table[rank[n]]
        """
        code = Rice.of(values) if bound <= 256 else None
        if code is None or code.bytes + _RICE_NODES >= len(Radix.of(bound).pack(values)):
            return self._digits(values, bound)
        marks, _ = self._digits(code.marks, 2)
        size = len(code.rest)
        rest, more = self._digits(code.rest, 2**code.low) if code.low else ("", 0)
        place = self.op("CumSum", marks, self.op("Squeeze", self.ints(0)), exclusive=1)
        rank = self.op("Expand", self.ints(0), self.ints(size + more))
        rank = self.op("ScatterElements", rank, place, self.op("Sub", self.ints(1), marks), reduction="add")
        if code.low:
            rank = self.op("Add", self.op("Mul", rank, self.ints(2**code.low)), rest)
        return self.whole(self.op("Gather", self.given(code.table), rank)), size + more - len(values)

    def _digits(self, values: NDArray[Any], bound: int) -> tuple[str, int]:
        """The numbers that `Radix.pack` packed, and how many zeros fill the last byte.

        With the digits of all bytes one after the other, `parts` of them a number::

            digit[n · count + j] = ⌊byte[n] / base^j⌋ mod base,      number[m] = Σ_i digit[m · parts + i] · base^i
        """
        radix = Radix.of(bound)
        numbers = self.whole(self.given(radix.pack(values)))
        if radix.count > 1:
            numbers = self.op("Div", numbers, self.ints(*(radix.base**place for place in range(radix.count))))
            numbers = self.op("Mod", numbers, self.ints(radix.base))
        numbers = self.shaped(numbers, *([-1] if radix.parts == 1 else [-1, radix.parts]))
        if radix.parts > 1:
            numbers = self.op("MatMul", numbers, self.ints(*(radix.base**place for place in range(radix.parts))))
        return numbers, radix.filled(len(values)) - len(values)


def floats(body: Body, tensors: dict[str, NDArray[Any]]) -> None:
    """Write float32 tensors that bfloat16 holds exactly, under their names: a byte and an exponent each.

    With n the byte and c = 2n - 255, which is odd::

        value = (c + 255 · sign(c)) · step[exponent],      |c + 255 · sign(c)| = 256 .. 510, even

    Exponents are places in a table of those that there are, 0 among them.
    """
    if not tensors:
        return
    values = np.concatenate([tensor.ravel() for tensor in tensors.values()]).astype(np.float64)
    mantissa, exponent = np.frexp(values)
    size = np.rint(abs(mantissa) * 256).astype(np.int64)  # 128 .. 255, and 0
    steps, places = np.unique(np.where(values == 0, 0, np.ldexp(1.0, exponent - 9)), return_inverse=True)
    byte = body.numbers(np.where(mantissa < 0, 255 - size, np.maximum(size, 128)), 256)
    odd = body.op("Sub", body.op("Mul", byte, body.ints(2)), body.ints(255))
    even = body.op("Add", odd, body.op("Mul", body.op("Sign", odd), body.ints(255)))
    step = body.op("Gather", body.given(steps.astype(np.float32)), body.numbers(places, len(steps)))
    product = body.op("Mul", body.float(even), step)
    names = [name if tensor.ndim == 1 else body.name() for name, tensor in tensors.items()]
    body.split(product, [tensor.size for tensor in tensors.values()], names)
    for part, (name, tensor) in zip(names, tensors.items(), strict=True):
        if tensor.ndim != 1:
            body.shaped(part, *tensor.shape, name=name)


def splat_table(body: Body, places: NDArray[Any], size: int, together: bool) -> str:
    """The splats of some angles, (angles, taps, k, k), of the places of their tap 1, (angles, 2).

    ::

        S[a, t, r, c] = Λ(t · row[a] - r) · Λ(t · column[a] - c),   Λ(z) = max(0, 1 - |z|)

    With `together`, their sum over the taps, (angles, k, k).
    """
    half = size // 2
    grid = body.float(body.ints(*range(-half, half + 1)))
    taps = body.shaped(grid, size, 1)
    distance = body.op("Abs", body.op("Sub", body.op("Mul", body.given(places.T[..., None, None]), taps), grid))
    hat = body.op("Relu", body.op("Sub", body.float(body.ints(1)), distance))  # [row or column, angle, tap, place]
    rows, columns = (body.op("Gather", hat, body.ints(axis)) for axis in (0, 1))
    shapes = (-1, size, size, 1), (-1, size, 1, size)
    table = body.op("Mul", body.shaped(rows, *shapes[0]), body.shaped(columns, *shapes[1]))
    return body.op("ReduceSum", table, body.ints(1), keepdims=0) if together else table
