"""The quantized tensors of a model as streams of codes, one stream per kind of code, and back."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rotateconv.errors import InputError
from rotateconv.quantization.pack_description import STREAMS, Stored
from rotateconv.quantization.primitives import (
    EXPONENT_RANGE,
    decode_angle,
    decode_weight,
    encode_angle,
    encode_weight,
    from_digits,
    levels,
    to_bf16,
    to_digits,
)
from rotateconv.quantization.quantize import Entry

Streams = dict[str, tuple[Tensor, int]]


def encode(tensors: Sequence[Entry]) -> Streams:
    """The codes of a quantized model's entries.

    Returns:
        By name: the codes, uint8, of all entries one after the other, and their width in bits.

            weight, dense        c + m of every weight, with m = 2^(bits-1) - 1; with 1 bit, whether it is positive
            scale                the exponents of all slices as int16: all low bytes, then all high bytes
            angle                of the angles that have an effect
            mantissa             sign and fraction of every bfloat16
            exponent             of every tensor of bfloat16 the largest exponent, then how far each is below it:
                                 few of these distances are common
            integer              as int64: all lowest bytes first, all highest bytes last
    """
    weights: dict[str, list[Tensor]] = {"weight": [], "dense": []}
    scales, angles, mantissas, exponents, integers = [], [], [], [], []
    widths = {"weight": 8, "dense": 8, "angle": 8}
    for entry in tensors:
        values = entry.tensor.detach().cpu()
        widths[entry.kind] = entry.bits
        if entry.kind in weights:
            codes, scale = encode_weight(values, entry.bits)
            weights[entry.kind].append(to_digits(codes.flatten(), entry.bits))
            scales.append(scale)
        elif entry.kind == "angle":
            angles.append(encode_angle(values, entry.bits, entry.period)[~entry.unused().cpu()])
        elif entry.kind == "bf16":
            half = to_bf16(values).flatten().view(torch.int16).int() & 0xFFFF
            mantissas.append(((half >> 15 << 7) | (half & 0x7F)).to(torch.uint8))
            exponent = ((half >> 7) & 0xFF).to(torch.uint8)
            exponents.append(_below_largest(exponent))
        else:
            integers.append(values.flatten().long())
    streams = {name: _joined(codes, torch.uint8) for name, codes in weights.items()}
    streams["scale"] = _planes(_joined(scales, torch.int16))
    streams["angle"] = _joined(angles, torch.uint8)
    streams["mantissa"] = _joined(mantissas, torch.uint8)
    streams["exponent"] = _joined(exponents, torch.uint8)
    streams["integer"] = _planes(_joined(integers, torch.int64))
    return {name: (codes, widths.get(name, 8)) for name, codes in streams.items()}


def check_counts(tensors: Sequence[Entry], stored: Mapping[str, Stored]) -> None:
    """Raise ValueError unless the streams have as many codes as the tensors need; needs no values of either.

    How many angles have an effect is known from the weights alone: here they are not more than there are.
    """
    needed = dict.fromkeys(STREAMS, 0)
    for entry in tensors:
        count = entry.tensor.numel()
        if entry.kind in ("weight", "dense"):
            needed["scale"] += 2 * entry.tensor.shape[0]
            needed[entry.kind] += count
        elif entry.kind == "bf16":
            needed["mantissa"] += count
            needed["exponent"] += count + 1
        else:
            needed[entry.kind] += count * (8 if entry.kind == "integer" else 1)
    for name in STREAMS:
        if stored[name].count > needed[name] or (stored[name].count < needed[name] and name != "angle"):
            raise InputError(
                f"its stream {name!r} has {stored[name].count:,} codes where its model has {needed[name]:,}"
            )


@torch.no_grad()
def decode(tensors: Sequence[Entry], streams: Callable[[str], Tensor]) -> None:
    """Write the tensors that the codes are of; the opposite of `encode`.

    Args:
        tensors: Of a model.
        streams: Gives the codes of a stream; each is asked for once.

    Raises:
        ValueError: If a stream has more or fewer codes than the entries, or a code that `encode` does not write.
    """
    reader = _Reader(streams)
    for entry in tensors:
        shape, count = entry.tensor.shape, entry.tensor.numel()
        if entry.kind in ("weight", "dense"):
            digits = reader.take(entry.kind, count).view(shape)
            codes = from_digits(digits, entry.bits)
            exponents = reader.take("scale", shape[0])
            _check(entry, (digits < levels(entry.bits)).all() & _within(exponents, *EXPONENT_RANGE))
            value = decode_weight(codes, exponents)
            _check(entry, value.isfinite().all())
        elif entry.kind == "angle":
            unused = entry.unused().cpu()
            value = torch.zeros(shape, dtype=torch.float32)
            codes = reader.take("angle", int((~unused).sum()))
            _check(entry, _within(codes.int(), 0, 2**entry.bits - 1))
            value[~unused] = decode_angle(codes, entry.bits, entry.period)
        elif entry.kind == "bf16":
            largest, below = reader.take("exponent", 1).int(), reader.take("exponent", count).int()
            _check(entry, (largest < 255).all() & (below <= largest).all())  # 255: infinite, or no number
            mantissa = reader.take("mantissa", count).int()
            half = (mantissa >> 7 << 15) | ((largest - below) << 7) | (mantissa & 0x7F)
            value = (half - (half >> 15 << 16)).short().view(torch.bfloat16).view(shape)
        else:
            value = reader.take("integer", count).view(shape)
            _check(entry, (value.to(entry.tensor.dtype).long() == value).all())
            if entry.positions is not None:
                _check(entry, _within(value, 0, entry.positions - 1))
        entry.tensor.copy_(value)
    reader.finish()


class _Reader:
    """Takes the codes of each stream in order."""

    def __init__(self, streams: Callable[[str], Tensor]) -> None:
        self.streams = {name: streams(name) for name in STREAMS}
        for name, dtype in (("scale", torch.int16), ("integer", torch.int64)):
            self.streams[name] = _from_planes(self.streams[name], dtype)
        self.taken: dict[str, int] = {}

    def take(self, name: str, count: int) -> Tensor:
        start = self.taken.get(name, 0)
        codes = self.streams[name][start : start + count]
        if len(codes) != count:
            raise InputError(f"its stream {name!r} has {len(self.streams[name])} codes, too few for the model")
        self.taken[name] = start + count
        return codes

    def finish(self) -> None:
        for name, codes in self.streams.items():
            if self.taken.get(name, 0) != len(codes):
                raise InputError(f"its stream {name!r} has {len(codes)} codes, too many for the model")


def _within(values: Tensor, least: int, most: int) -> Tensor:
    return ((values >= least) & (values <= most)).all()


def _check(entry: Entry, right: Tensor) -> None:
    if not right:
        raise InputError(f"its codes of {entry.name} stand for no finite numbers of {entry.bits} bits")


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.flatten() for part in parts]) if parts else torch.empty(0, dtype=dtype)


def _below_largest(exponent: Tensor) -> Tensor:
    largest = exponent.amax(0, keepdim=True) if len(exponent) else exponent.new_zeros(1)
    return torch.cat([largest, largest - exponent])


def _planes(values: Tensor) -> Tensor:
    """Little-endian numbers as bytes, all of the lowest first: the high ones are alike and pack well."""
    count = values.element_size()
    return torch.cat([(values >> (8 * byte)).bitwise_and(0xFF).to(torch.uint8) for byte in range(count)])


def _from_planes(data: Tensor, dtype: torch.dtype) -> Tensor:
    count = torch.empty(0, dtype=dtype).element_size()
    if len(data) % count:
        raise InputError(f"a stream of {len(data)} bytes where {count} a number were expected")
    if len(data) == 0:
        return torch.empty(0, dtype=dtype)
    numbers = torch.empty(len(data) // count, count, dtype=torch.uint8)  # with the strides that `view` asks for
    return numbers.copy_(data.view(count, -1).T).view(dtype).flatten()
