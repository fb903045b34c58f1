"""Functions of an ONNX file that make kernels of codes: plain operators, whose inputs are all constants.

A runtime folds them when it opens the file. A body is written for the layout that a file has, its bases and numbers
of taps in it as constants, so that a call names little more than a shape.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rotateconv.export.digits import Radix

DOMAIN = "rc"
OPSET = 18
DIGITS = "d"  # the function that the others call

_FLOAT, _INT64 = 1, 7  # of onnx.TensorProto


@dataclass(frozen=True)
class Layout:
    """What the bodies of layers differ in; layers of equal layout share one function.

    Attributes:
        kind: "dense", "line" (an angle per slice), "grouped" (angles of groups of output channels), "masked",
            "codebook" or "outer" (a column times a row).
        levels: Number of codes of a weight.
        steps: Number of codes of a scale, a profile's tap or a bias.
        angles: Number of angles; 0 without.
        taps: Weights per slice of a line; 1 where they share one.
        profile: Taps of a profile, 0 without.
        biased: Whether the function gives a bias too.
        patterns: Number of sets of positions that slices of a masked layer keep, or of kernels of a codebook.
        cut: Whether zeros behind the digits of weights must be cut off.
    """

    kind: str
    levels: int
    steps: int = 2**24 - 1
    angles: int = 0
    taps: int = 0
    profile: int = 0
    patterns: int = 0
    biased: bool = True
    cut: bool = False


@dataclass
class Body:
    """The nodes of a function or a graph, one after the other, under names of one or two letters."""

    nodes: list[Any] = field(default_factory=list)
    prefix: str = ""
    _constants: dict[Any, str] = field(default_factory=dict)
    _count: int = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the name of its output, or the list of their names."""
        import onnx

        names = [self.name() for _ in range(outputs)]
        self.nodes.append(onnx.helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{self.prefix}{np.base_repr(self._count - 1, 36).lower()}"

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        return self._constant(("value_ints", values))

    def given(self, attribute: str) -> str:
        """The vector of int64 that the call gives as an attribute."""
        return self._constant(("ref", attribute))

    def step(self, attribute: str) -> str:
        """The number that the call gives as an attribute."""
        return self._constant(("step", attribute))

    def _constant(self, key: tuple[str, Any]) -> str:
        import onnx

        if key not in self._constants:
            kind, value = key
            name = self.name()
            if kind == "value_ints":
                node = onnx.helper.make_node("Constant", [], [name], value_ints=list(value))
            else:
                node = onnx.helper.make_node("Constant", [], [name])
                attribute = node.attribute.add()
                attribute.name = "value_float" if kind == "step" else "value_ints"
                attribute.ref_attr_name = value
                attribute.type = onnx.AttributeProto.FLOAT if kind == "step" else onnx.AttributeProto.INTS
            self.nodes.append(node)
            self._constants[key] = name
        return self._constants[key]

    def digits(self, data: str, bound: int, offset: int = 0) -> str:
        """The numbers below a bound that `Radix.pack` packed, int64, less an offset; behind them what fills a byte."""
        radix = Radix.of(bound)
        return self.op(  # type: ignore[no-any-return]
            DIGITS,
            data,
            domain=DOMAIN,
            d=[radix.base**place for place in range(radix.count)],
            b=[radix.base],
            r=[-1, radix.parts],
            q=[radix.base**place for place in range(radix.parts)],
            o=[offset],
        )

    def codes(self, data: str, levels: int) -> str:
        """Codes around zero: -m..m for 2m + 1 values, -1 and 1 for two."""
        if levels > 2:
            return self.digits(data, levels, levels // 2)
        return self.op("Sub", self.op("Mul", self.digits(data, levels), self.ints(2)), self.ints(1))  # type: ignore[no-any-return]

    def float(self, codes: str) -> str:
        """Whole numbers as float32."""
        return self.op("Cast", codes, to=_FLOAT)  # type: ignore[no-any-return]

    def cut(self, digits: str, attribute: str) -> str:
        """As many of them as the call says."""
        return self.op("Slice", digits, self.ints(0), self.given(attribute))  # type: ignore[no-any-return]


def function(layout: Layout, name: str) -> Any:
    """The function of a layout, an onnx FunctionProto."""
    import onnx

    body = Body()
    inputs = [
        "W",
        "C",
        *{"line": "AS", "grouped": "ASP" if layout.profile else "AS", "masked": "MS", "codebook": "MS"}.get(
            layout.kind, ""
        ),
    ]
    attributes = ["s", "q", *(["p"] if layout.biased else []), *(["n"] if layout.cut else [])]
    codes = body.codes("W", layout.levels)
    if layout.cut and layout.kind != "masked":  # whose weights are gathered: what fills their last group stays
        codes = body.cut(codes, "n")
    scale, bias = _coefficients(body, layout)
    if layout.kind == "grouped":
        attributes += ["a", "u", "w", "k"]
    write = {
        "dense": _dense,
        "line": _line,
        "grouped": _grouped,
        "masked": _masked,
        "codebook": _codebook,
        "outer": _outer,
    }[layout.kind]
    kernel = write(body, layout, codes, scale)
    outputs = [kernel, *([bias] if layout.biased else [])]
    imports = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    return onnx.helper.make_function(DOMAIN, name, inputs, outputs, body.nodes, imports, attributes)


def digits_function() -> Any:
    """Numbers of `Radix.pack`'s bytes, (bytes, 1); attributes d, powers of the base, b, the base, and o, an offset.

    With the digits of all bytes one after the other, `parts` of them a number::

        digit[n · count + j] = ⌊byte[n] / d[j]⌋ mod b,      out[m] = Σ_i digit[m · parts + i] · q[i] - o

    The attributes r, (-1, parts), and q, powers of the base for the parts, are the shape and weights of the sum.
    """
    import onnx

    body = Body()
    digits = body.op("Div", body.op("Cast", "W", to=_INT64), body.given("d"))
    digits = body.op("Reshape", body.op("Mod", digits, body.given("b")), body.given("r"))
    numbers = body.op("Sub", body.op("MatMul", digits, body.given("q")), body.given("o"))
    imports = [onnx.helper.make_opsetid("", OPSET)]
    return onnx.helper.make_function(DOMAIN, DIGITS, ["W"], [numbers], body.nodes, imports, [*"dbrqo"])


def _coefficients(body: Body, layout: Layout) -> tuple[str, str]:
    """Per output channel: scales (with a profile, one per tap) and the bias, each as whole steps."""
    scales = 1 if layout.kind != "line" else max(1, layout.profile)
    codes = body.float(body.codes("C", layout.steps))
    bias = ""
    if layout.biased:
        rows = body.op("Reshape", codes, body.ints(-1, scales + 1))
        codes, last = body.op("Split", rows, body.ints(scales, 1), outputs=2, axis=1)
        bias = body.op("Reshape", body.op("Mul", last, body.step("p")), body.ints(-1))
    scale = body.op("Mul", codes, body.step("q"))
    if layout.kind == "grouped":
        return body.op("Reshape", scale, body.given("w")), bias
    shape = (-1, 1, scales, 1, 1) if layout.kind == "line" else (-1, 1)
    return body.op("Reshape", scale, body.ints(*shape)), bias


def _dense(body: Body, layout: Layout, codes: str, scale: str) -> str:
    shape = body.given("s")
    rows = body.op("Flatten", body.op("Reshape", body.float(codes), shape))  # [out, all others]
    return body.op("Reshape", body.op("Mul", rows, scale), shape)  # type: ignore[no-any-return]


def _masked(body: Body, layout: Layout, codes: str, scale: str) -> str:
    """Each slice keeps the positions of one of the patterns, in order."""
    patterns = body.digits("M", layout.patterns)
    patterns = body.cut(patterns, "n") if layout.cut else patterns
    mask = body.op("Reshape", body.op("Cast", body.op("Gather", "S", patterns), to=_INT64), body.ints(-1))
    weights = body.op("Gather", codes, _index(body, mask))
    return _dense(body, layout, body.op("Mul", weights, mask), scale)


def _codebook(body: Body, layout: Layout, codes: str, scale: str) -> str:
    """Each slice is a multiple of one of the kernels (K, k, k) of the codebook."""
    index = body.digits("M", layout.patterns)
    kernels = body.op("Gather", "S", body.cut(index, "n") if layout.cut else index)  # [slice, row, column]
    factors = body.op("Reshape", body.float(codes), body.ints(-1, 1, 1))
    rows = body.op("Flatten", body.op("Reshape", body.op("Mul", kernels, factors), body.given("s")))
    return body.op("Reshape", body.op("Mul", rows, scale), body.given("s"))  # type: ignore[no-any-return]


def _outer(body: Body, layout: Layout, codes: str, scale: str) -> str:
    """A column of codes times a row of codes for each slice."""
    pairs = body.op("Reshape", codes, body.ints(-1, 2, layout.taps))
    column, row = body.op("Split", pairs, body.ints(1, 1), outputs=2, axis=1)
    column = body.op("Reshape", column, body.ints(-1, layout.taps, 1))
    return _dense(body, layout, body.op("Mul", column, row), scale)


def _line(body: Body, layout: Layout, codes: str, scale: str) -> str:
    """Slices with a direction take the next angle each; what the others take changes no kernel."""
    taps, size = layout.taps, body.ints(1)
    rows = body.op("Reshape", codes, body.ints(-1, taps))
    moving = rows if taps == 1 else body.op("Mul", rows, body.ints(*(int(tap != taps // 2) for tap in range(taps))))
    used = body.op("Sign", body.op("ReduceMax", body.op("Abs", moving), size, keepdims=0))
    angle = body.op("Gather", body.digits("A", layout.angles), _index(body, used))
    weights = body.op("Reshape", body.float(codes), body.ints(-1, taps, 1, 1))
    kernels = body.op("Mul", weights, body.op("Gather", "S", angle))  # [slice, tap, row, column]
    kernels = body.op("Mul", body.op("Reshape", kernels, body.given("s")), scale)  # [out, in, tap, row, column]
    return body.op("ReduceSum", kernels, body.ints(2), keepdims=0)  # type: ignore[no-any-return]


def _grouped(body: Body, layout: Layout, codes: str, scale: str) -> str:
    """[group, out of the group, in, tap, row, column]: angles and profiles are the same for a group's outputs."""
    angle = body.op("Reshape", body.cut(body.digits("A", layout.angles), "a"), body.given("u"))  # [g, 1, in]
    splats = body.op("Gather", "S", angle)
    if layout.profile:
        splats = body.op("Mul", splats, body.float("P"))
    weights = body.op("Mul", body.op("Reshape", body.float(codes), body.given("s")), scale)
    kernels = body.op("ReduceSum", body.op("Mul", weights, splats), body.ints(3), keepdims=0)
    return body.op("Reshape", kernels, body.given("k"))  # type: ignore[no-any-return]


def _index(body: Body, used: str) -> str:
    """The place of each one among the ones: 0 for the first."""
    return body.op("Sub", body.op("CumSum", used, body.op("Squeeze", body.ints(0))), body.ints(1))  # type: ignore[no-any-return]


def splat_table(body: Body, places: str, size: int, together: bool) -> str:
    """The splats of all angles, (angles, taps, k, k), of the places of their tap 1, (angles, 2, 1, 1).

    ::

        S[a, t, r, c] = Λ(t · row[a] - r) · Λ(t · column[a] - c),   Λ(z) = max(0, 1 - |z|)

    With `together`, their sum over the taps, (angles, 1, k, k).
    """
    half = size // 2
    grid = body.float(body.ints(*range(-half, half + 1)))
    taps = body.op("Reshape", grid, body.ints(-1, 1))
    distance = body.op("Abs", body.op("Sub", body.op("Mul", places, taps), grid))
    hat = body.op("Relu", body.op("Sub", body.float(body.ints(1)), distance))  # [angle, 2, tap, row or column]
    rows, columns = body.op("Split", hat, body.ints(1, 1), outputs=2, axis=1)
    rows = body.op("Reshape", rows, body.ints(-1, size, size, 1))
    columns = body.op("Reshape", columns, body.ints(-1, size, 1, size))
    table = body.op("Mul", rows, columns)
    return body.op("ReduceSum", table, body.ints(1), keepdims=1) if together else table  # type: ignore[no-any-return]
