"""The description in a packed file, as one typed value: checked whole, before anything is built or inflated."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rotateconv._files import parse_json
from rotateconv.errors import InputError
from rotateconv.models.described import check_build
from rotateconv.models.registry import BuildArguments
from rotateconv.nn.config import RotateConfig
from rotateconv.quantization.bits import Bits

STREAMS = ("weight", "dense", "scale", "angle", "mantissa", "exponent", "integer")
"""The streams of a packed file, all of them there."""

OPTIONAL = (
    "index",
    "profile",
    *(f"{kind}{bits}" for kind in ("weight", "angle") for bits in range(1, 9)),
)
"""Streams of models with kernels of a codebook or masked ones (older files hold the positions of these themselves),
with quantized profiles, and with layers that have bits of their own: a stream for each number of bits."""

_LARGEST_INPUT = 2**24
"""Numbers of an image above which an input size is refused: 3 x 2,364 x 2,364."""


@dataclass(frozen=True)
class Stored:
    """How a stream is stored.

    Attributes:
        count: Number of its codes.
        width: Bits of a code in the file, 1 to 8.
        deflated: Whether its bytes are a DEFLATE stream.
    """

    count: int
    width: int
    deflated: bool

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 0 or type(self.width) is not int or not 1 <= self.width <= 8:
            raise InputError(f"a stream of {self.count} codes of {self.width} bits")
        if type(self.deflated) is not bool:
            raise InputError("whether a stream is deflated must be true or false")


@dataclass(frozen=True)
class PackedDescription:
    """The description of a model in its packed file.

    Attributes:
        architecture: Name of the model's class.
        layers: Options of the RotateConv2d layers that the model does not have by itself, by name.
        bits: Of weights, angles and dense layers, as in quantize.
        levels: Of weights, as weight_levels in quantize.
        profile_bits, layer_bits: As in quantize.
        layout: Hash of the names, kinds and shapes of its tensors.
        build: Arguments of build_model; None for a model that it did not build.
        classes: Names of the classes, in the order of the outputs; None where pack was given none.
        mean, std: Per channel, of images between 0 and 1; or None.
        input_size: (channels, height, width), or None.

    Raises:
        ValueError: If a value has another type, or is not one that it can have.
    """

    architecture: str
    layers: dict[str, RotateConfig]
    bits: list[int]
    layout: str
    levels: int | None = None
    profile_bits: int | None = None
    layer_bits: dict[str, list[int]] | None = None
    build: BuildArguments | None = None
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    input_size: list[int] | None = None

    def __post_init__(self) -> None:
        for key in ("architecture", "layout"):
            if not isinstance(getattr(self, key), str):
                raise InputError(f"{key} must be a text")
        for key in ("bits", "classes", "mean", "std", "input_size"):
            if (value := getattr(self, key)) is not None or key == "bits":
                check_list(key, value)
        for key in ("levels", "profile_bits"):
            if (value := getattr(self, key)) is not None and not _is_size(value):
                raise InputError(f"{key} must be a whole number above 0")
        if self.layer_bits is not None:
            if not isinstance(self.layer_bits, dict):
                raise InputError("layer_bits must be an object")
            for value in self.layer_bits.values():
                check_list("layer_bits", value)
        if self.input_size is not None and math.prod(self.input_size) > _LARGEST_INPUT:
            size = " x ".join(map(str, self.input_size))
            raise InputError(f"input_size {size} is larger than {_LARGEST_INPUT:,} numbers")
        if self.build is not None:
            check_build(self.build)

    @property
    def widths(self) -> Bits:
        """Its bits as one value."""
        weight, angle, dense = self.bits
        own = {name: (bits[0], bits[1]) for name, bits in (self.layer_bits or {}).items()}
        return Bits.of(weight, angle, dense, self.levels, self.profile_bits, own)

    def to_dict(self) -> dict[str, Any]:
        """What the file holds: plain values without what is None; layers of the same options together, as "lines"."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        together: dict[RotateConfig, list[str]] = {}
        for name, config in values.pop("layers").items():
            together.setdefault(config, []).append(name)
        values["lines"] = [[config.to_dict(), names] for config, names in together.items()]
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PackedDescription":
        """The description of `to_dict`.

        Raises:
            ValueError: If a key is missing or unknown, or a value is not one that it can have.
        """
        rest = dict(values)
        layers = _layers(rest.pop("lines", []))
        names = [field.name for field in fields(cls) if field.name != "layers"]
        if unknown := sorted(set(rest) - set(names)):
            raise InputError(f"unknown key {unknown[0]!r}")
        if missing := [name for name in ("architecture", "bits", "layout") if name not in rest]:
            raise InputError(f"its key {missing[0]!r} is missing")
        return cls(layers=layers, **rest)


def _layers(lines: object) -> dict[str, RotateConfig]:
    """The options of layers by name, from pairs of options and names, or as older files have them, by name."""
    if isinstance(lines, Mapping):
        lines = [[options, [name]] for name, options in lines.items()]
    if not isinstance(lines, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in lines):
        raise InputError("lines must be pairs of options and the names of layers that have them")
    layers: dict[str, RotateConfig] = {}
    for options, names in lines:
        config = RotateConfig.from_dict(options)
        if not isinstance(names, list) or not all(map(_is_text, names)) or set(names) & set(layers):
            raise InputError("lines must name each layer once")
        layers.update(dict.fromkeys(names, config))
    return layers


def parse_description(text: object) -> tuple[PackedDescription, dict[str, Stored]]:
    """Return the description in the JSON of a packed file, and how each of its streams is stored.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> parse_description('{"streams": {}}')
        Traceback (most recent call last):
        rotateconv.errors.InputError: its stream 'weight' is missing
    """
    if not isinstance(text, str):
        raise InputError("it has no description")
    values = parse_json(text)
    if not isinstance(values, dict):
        raise InputError(f"its description must be an object, not {type(values).__name__}")
    streams = values.pop("streams", None)
    if not isinstance(streams, dict):
        raise InputError("its description has no streams")
    if unknown := sorted(set(streams) - {*STREAMS, *OPTIONAL}):
        raise InputError(f"unknown stream {unknown[0]!r}: they are {', '.join(STREAMS)}")
    for name in STREAMS:
        if name not in streams:
            raise InputError(f"its stream {name!r} is missing")
    for name in streams:
        if not isinstance(streams[name], list) or len(streams[name]) != 3:
            raise InputError(f"its stream {name!r} must have a count, a width and whether it is deflated")
    return PackedDescription.from_dict(values), {name: Stored(*place) for name, place in streams.items()}


def check_list(key: str, value: object) -> None:
    """Raise ValueError if a value of the description is no list of what it should hold.

    Example:
        >>> check_list("classes", "cat")
        Traceback (most recent call last):
        rotateconv.errors.InputError: classes must be a list of texts
    """
    right, what, count = _LISTS[key]
    if not isinstance(value, list) or not all(map(right, value)) or count not in (None, len(value)):
        raise InputError(f"{key} must be a list of {what}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_above_0(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


_LISTS: dict[str, tuple[Callable[[object], bool], str, int | None]] = {
    "bits": (_is_size, "three whole numbers", 3),
    "layer_bits": (_is_size, "two whole numbers for each name", 2),
    "classes": (_is_text, "texts", None),
    "mean": (_is_number, "finite numbers", None),
    "std": (_is_above_0, "finite numbers above 0", None),
    "input_size": (_is_size, "three whole numbers above 0", 3),
}
