"""The quantized tensors of a model as streams of codes, one stream per kind of code, and back."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from rotateconv.errors import InputError
from rotateconv.nn.codebook import nearest_multiple
from rotateconv.nn.masked import SEEDS, positions_of_seed, seed_of_positions
from rotateconv.quantization.pack_description import OPTIONAL, STREAMS, Stored
from rotateconv.quantization.primitives import (
    EXPONENT_RANGE,
    decode_angle,
    decode_weight,
    encode_angle,
    encode_weight,
    from_digits,
    to_bf16,
    to_digits,
)
from rotateconv.quantization.quantize import Entry

Streams = dict[str, tuple[Tensor, int]]


def encode(tensors: Sequence[Entry]) -> Streams:
    """The codes of a quantized model's entries.

    Returns:
        By name: the codes, uint8, of all entries one after the other, and their width in bits.

            weight, dense        c + m of every weight, half of it where the number of levels is even
            profile              the same of quantized profiles; only where there are any
            scale                the exponents of all slices as int16: all low bytes, then all high bytes
            angle                of the angles that have an effect
            mantissa             sign and fraction of every bfloat16
            exponent             of every tensor of bfloat16 the largest exponent, then how far each is below it:
                                 few of these distances are common
            integer              as int64: all lowest bytes first, all highest bytes last
            weight3, angle2, ..  of tensors with bits of their own, a stream for each number of bits
            index                of every slice with a kernel of a codebook, or with a pattern of positions; there is
                                 such a stream only where the model has masked layers or codebooks
    """
    codes: dict[str, list[Tensor]] = {"weight": [], "dense": [], "angle": []}
    widths = {"weight": 8, "dense": 8, "angle": 8}
    scales, mantissas, exponents, integers = [], [], [], []
    indices: list[Tensor] = []
    for entry in tensors:
        values = entry.tensor.detach().cpu()
        if entry.codebook is not None or entry.kind in ("weight", "dense", "profile", "angle"):
            widths[entry.stream] = entry.bits
            found = codes.setdefault(entry.stream, [])
        if entry.codebook is not None:
            index, factor = nearest_multiple(values, entry.codebook.detach().cpu())
            digits, scale = encode_weight(factor, entry.levels)
            found.append(to_digits(digits.flatten(), entry.levels))
            scales.append(scale)
            indices.append(index.flatten().to(torch.uint8))
        elif entry.positions is not None:
            numbers, index = _encode_positions(values.flatten(0, -2).long(), entry.positions)
            integers.append(numbers)
            indices.append(index)
        elif entry.kind in ("weight", "dense", "profile"):
            digits, scale = encode_weight(entry.rows.detach().cpu(), entry.levels)
            found.append(to_digits(digits.flatten(), entry.levels))
            scales.append(scale)
        elif entry.kind == "angle":
            found.append(encode_angle(values, entry.bits, entry.period)[~entry.unused().cpu()])
        elif entry.kind == "bf16":
            half = to_bf16(values).flatten().view(torch.int16).int() & 0xFFFF
            mantissas.append(((half >> 15 << 7) | (half & 0x7F)).to(torch.uint8))
            exponent = ((half >> 7) & 0xFF).to(torch.uint8)
            exponents.append(_below_largest(exponent))
        else:
            integers.append(values.flatten().long())
    streams = {name: _joined(parts, torch.uint8) for name, parts in codes.items()}
    streams["scale"] = _planes(_joined(scales, torch.int16))
    streams["mantissa"] = _joined(mantissas, torch.uint8)
    streams["exponent"] = _joined(exponents, torch.uint8)
    streams["integer"] = _planes(_joined(integers, torch.int64))
    if indices:
        streams["index"] = _joined(indices, torch.uint8)
        widths["index"] = max(1, int(streams["index"].amax()).bit_length() if len(streams["index"]) else 1)
    return {name: (digits, widths.get(name, 8)) for name, digits in streams.items()}


def check_counts(tensors: Sequence[Entry], stored: Mapping[str, Stored]) -> None:
    """Raise ValueError unless the streams have as many codes as the tensors need; needs no values of either.

    How many angles have an effect is known from the weights alone, and what positions take from their values: here
    they are not more than there could be.
    """
    needed = Counter(dict.fromkeys((*STREAMS, *stored), 0))
    fewer = {name for name in needed if name.startswith("angle")}
    if "index" in stored:
        fewer |= {"index", "integer"}
    for entry in tensors:
        count = entry.tensor.numel()
        if entry.kind == "codebook":
            slices = count // entry.tensor[0, 0].numel()
            needed["scale"] += 2 * entry.tensor.shape[0]
            needed[entry.stream] += slices
            needed["index"] += slices
        elif entry.positions is not None and "index" in stored:
            kept = entry.tensor.shape[-1]
            needed["integer"] += 8 * (1 + max(count, _MOST_PATTERNS * kept))
            needed["index"] += count // kept
        elif entry.kind in ("weight", "dense", "profile"):
            needed["scale"] += 2 * len(entry.rows)
            needed[entry.stream] += count
        elif entry.kind == "bf16":
            needed["mantissa"] += count
            needed["exponent"] += count + 1
        else:
            needed[entry.stream] += count * (8 if entry.kind == "integer" else 1)
    for name, most in needed.items():
        count = stored[name].count if name in stored else 0
        if count > most or (count < most and name not in fewer):
            raise InputError(f"its stream {name!r} has {count:,} codes where its model has {most:,}")


@torch.no_grad()
def decode(tensors: Sequence[Entry], streams: Callable[[str], Tensor]) -> None:
    """Write the tensors that the codes are of; the opposite of `encode`.

    Args:
        tensors: Of a model.
        streams: Gives the codes of a stream, or raises KeyError where there is none; each is asked for once.

    Raises:
        ValueError: If a stream has more or fewer codes than the entries, or a code that `encode` does not write.
    """
    reader = _Reader(streams)
    for entry in tensors:
        shape, count = entry.tensor.shape, entry.tensor.numel()
        if entry.codebook is not None:
            shape = shape[:2]
            count = shape.numel()
            index = reader.take("index", count).long().view(shape)
            _check(entry, (index < len(entry.codebook)).all())
        if entry.kind in ("weight", "dense", "profile", "codebook"):
            shape = shape if entry.kind == "codebook" else entry.rows.shape
            digits = reader.take(entry.stream, count).view(shape)
            codes = from_digits(digits, entry.levels)
            exponents = reader.take("scale", len(entry.rows))
            _check(entry, (digits < entry.levels).all() & _within(exponents, *EXPONENT_RANGE))
            value = decode_weight(codes, exponents)
            if entry.codebook is not None:
                value = value[..., None, None] * entry.codebook.detach().cpu()[index]
            _check(entry, value.isfinite().all())
        elif entry.kind == "angle":
            unused = entry.unused().cpu()
            value = torch.zeros(shape, dtype=torch.float32)
            codes = reader.take(entry.stream, int((~unused).sum()))
            _check(entry, _within(codes.int(), 0, 2**entry.bits - 1))
            value[~unused] = decode_angle(codes, entry.bits, entry.period)
        elif entry.kind == "bf16":
            largest, below = reader.take("exponent", 1).int(), reader.take("exponent", count).int()
            _check(entry, (largest < 255).all() & (below <= largest).all())  # 255: infinite, or no number
            mantissa = reader.take("mantissa", count).int()
            half = (mantissa >> 7 << 15) | ((largest - below) << 7) | (mantissa & 0x7F)
            value = (half - (half >> 15 << 16)).short().view(torch.bfloat16).view(shape)
        elif entry.positions is not None and reader.has("index"):
            value = _decode_positions(entry, reader).view(shape)
        else:
            value = reader.take("integer", count).view(shape)
            _check(entry, (value.to(entry.tensor.dtype).long() == value).all())
            if entry.positions is not None:
                _check(entry, _within(value, 0, entry.positions - 1))
        entry.tensor.copy_(value.view(entry.tensor.shape))
    reader.finish()


_FROM_SEED, _AS_THEY_ARE = 0, 2**16
_MOST_PATTERNS = 256


def _encode_positions(position: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Positions of slices, (slices, kept), as whole numbers and an index for each slice, whichever is least.

    0 and the seed that they come from; or the number of different patterns, at most 256, and their positions, with
    an index for each slice; or 65536 and all positions.
    """
    none = torch.empty(0, dtype=torch.uint8)
    if (seed := seed_of_positions(position, cells)) is not None:
        return torch.tensor([_FROM_SEED, seed]), none
    patterns, index = position.unique(dim=0, return_inverse=True)
    if len(patterns) > _MOST_PATTERNS:
        return torch.cat([torch.tensor([_AS_THEY_ARE]), position.flatten()]), none
    return torch.cat([torch.tensor([len(patterns)]), patterns.flatten()]), index.to(torch.uint8)


def _decode_positions(entry: Entry, reader: "_Reader") -> Tensor:
    assert entry.positions is not None
    kept = entry.tensor.shape[-1]
    slices, form = entry.tensor.numel() // kept, int(reader.take("integer", 1))
    if form == _FROM_SEED:
        seed = int(reader.take("integer", 1))
        _check(entry, torch.tensor(0 <= seed < SEEDS))
        return positions_of_seed(seed, slices, entry.positions, kept)
    if form == _AS_THEY_ARE:
        position = reader.take("integer", slices * kept)
    else:
        _check(entry, torch.tensor(0 < form <= _MOST_PATTERNS))
        patterns, index = reader.take("integer", form * kept).view(form, kept), reader.take("index", slices).long()
        _check(entry, (index < form).all())
        position = patterns[index]
    _check(entry, _within(position, 0, entry.positions - 1))
    return position


class _Reader:
    """Takes the codes of each stream in order."""

    def __init__(self, streams: Callable[[str], Tensor]) -> None:
        self.streams = {name: streams(name) for name in STREAMS}
        for name in OPTIONAL:
            with suppress(KeyError):
                self.streams[name] = streams(name)
        for name, dtype in (("scale", torch.int16), ("integer", torch.int64)):
            self.streams[name] = _from_planes(self.streams[name], dtype)
        self.taken: dict[str, int] = {}

    def has(self, name: str) -> bool:
        return name in self.streams

    def take(self, name: str, count: int) -> Tensor:
        if name not in self.streams:
            raise InputError(f"its stream {name!r} is missing")
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
