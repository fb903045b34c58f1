"""Numbers quantized to few bits, as integer codes and back: weights with scales, angles on a turn, 16-bit floats."""

import math

import torch
from torch import Tensor

from rotateconv.errors import InputError

EXPONENT_RANGE = (-8 * 126, 8 * 127)  # of scales, in eighths of an octave: the normal float32 numbers


def encode_weight(weight: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The nearest codes c and scale exponents e, symmetric, for every slice o of the first dimension.

    ::

        ŵ[o, ...] = c[o, ...] · 2^(e[o] / 8)
        an odd number L of levels:  c = -m .. m,         m = (L - 1) / 2    0 is one of them (mid-tread)
        an even one:                c = ±1, ±3, .. ±m,   m = L - 1          0 is not (mid-rise)

    The scale, one of eight per octave, is the one with the least squared error of the weights Σ (w - ŵ)²: it may
    clip the largest, and is at most max|w| / m, or 1.5 times that with 2 or 2^b - 1 levels. Searching up to there
    makes quantization idempotent: what is on such a grid is found again, exactly.

    Args:
        weight: (out, in, ...), floating point.
        levels: 2 to 128, or 255.

    Returns:
        The codes, int8 in the shape of weight, and the exponents, int16 (out,). A slice of zeros has e = 0; with
        an even number of levels, codes of 1 and the smallest scale, 2^-126.

    Raises:
        ValueError: If a weight is not finite.

    Example:
        >>> codes, exponent = encode_weight(torch.tensor([[0.75, -0.25, 0.5]]), levels=7)
        >>> codes, exponent
        (tensor([[ 3, -1,  2]], dtype=torch.int8), tensor([-16], dtype=torch.int16))

    Reference:
        Banner, Nahshan, Soudry, "Post training 4-bit quantization of convolutional networks", NeurIPS 2019,
        section 2, on clipping.
    """
    rows = _rows(weight)
    codes = torch.zeros(rows.shape, dtype=torch.int8, device=weight.device)
    exponents = torch.zeros(len(rows), dtype=torch.int16, device=weight.device)
    if rows.numel() == 0:
        return codes.view(weight.shape), exponents
    # Every candidate of many rows at once, a few million numbers at a time.
    steps = _candidates(levels)
    chunk = max(1, 2**22 // (rows.shape[1] * len(steps)))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        codes[part], exponents[part] = _encode_rows(rows[part].float(), levels)
    return codes.view(weight.shape), exponents


def encode_weight_at(weight: Tensor, sizes: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The codes at given scales, and the exponents nearest to these, as `encode_weight` returns them.

    A scale that `encode_weight` would not try for these weights becomes the nearest one that it tries. So what is
    decoded from the codes is found again, exactly, by `encode_weight`.

    Args:
        weight: (out, in, ...), floating point.
        sizes: Scales, (out,).
        levels: As in encode_weight.

    Raises:
        ValueError: If a weight is not finite.

    Example:
        >>> encode_weight_at(torch.tensor([[0.75, -0.25, 0.5]]), torch.tensor([0.2]), levels=7)
        (tensor([[ 3, -1,  3]], dtype=torch.int8), tensor([-19], dtype=torch.int16))
    """
    rows = _rows(weight).float()
    top = _largest_exponents(rows, levels)
    # Of a scale of 0 the logarithm is minus infinity, of one below it is no number: both become the smallest.
    exponents = (8 * torch.log2(sizes.detach().double())).round().nan_to_num(nan=-torch.inf)
    exponents = exponents.clamp(top - _candidates(levels)[-1], top).clamp(*EXPONENT_RANGE)
    codes = _nearest_codes(rows / scale(exponents)[:, None], levels)
    return codes.to(torch.int8).view(weight.shape), exponents.to(torch.int16)


def decode_weight(codes: Tensor, exponents: Tensor) -> Tensor:
    """The weights of `encode_weight`'s codes and exponents, float32.

    Example:
        >>> decode_weight(torch.tensor([[3, -1, 2]]), torch.tensor([-16]))
        tensor([[ 0.7500, -0.2500,  0.5000]])
    """
    weight: Tensor = codes.float() * scale(exponents).view(-1, *[1] * (codes.dim() - 1))
    return weight


def scale(exponents: Tensor) -> Tensor:
    """2^(e / 8), rounded once to float32."""
    return torch.exp2(exponents.double() / 8).float()


def largest_code(levels: int) -> int:
    """The largest code m of a weight: (L - 1) / 2, and L - 1 for an even number L of levels."""
    return levels // 2 if levels % 2 else levels - 1


def to_digits(codes: Tensor, levels: int) -> Tensor:
    """Codes of weights as whole numbers from 0, uint8: c + m, and (c + m) / 2 for an even number of levels.

    Example:
        >>> to_digits(torch.tensor([-1, 0, 1]), 3), to_digits(torch.tensor([-1, 1, 3]), 4)
        (tensor([0, 1, 2], dtype=torch.uint8), tensor([1, 2, 3], dtype=torch.uint8))
    """
    digits: Tensor = (codes.short() + largest_code(levels)) // (1 if levels % 2 else 2)
    return digits.to(torch.uint8)


def from_digits(digits: Tensor, levels: int) -> Tensor:
    """The codes, int16, of `to_digits`'s numbers.

    Example:
        >>> from_digits(torch.tensor([0, 1], dtype=torch.uint8), 2)
        tensor([-1,  1], dtype=torch.int16)
    """
    return digits.short() * (1 if levels % 2 else 2) - largest_code(levels)


def encode_angle(angle: Tensor, bits: int, period: float) -> Tensor:
    """The nearest codes q of angles on 2^bits equal steps of the period: θ̂ = q · period / 2^bits.

    Args:
        angle: in radians.
        bits: 2 to 8.
        period: a full turn, or half of one where reversing the taps changes nothing.

    Returns:
        uint8 codes in the shape of angle.

    Raises:
        ValueError: If an angle is not finite.

    Example:
        >>> encode_angle(torch.tensor([0.0, torch.pi / 2, -torch.pi / 4]), 3, 2 * torch.pi)
        tensor([0, 2, 7], dtype=torch.uint8)
    """
    _check_finite("angle", angle)
    steps = 2**bits
    codes: Tensor = (angle.detach().double() * (steps / period)).round().remainder(steps).to(torch.uint8)
    return codes


def decode_angle(codes: Tensor, bits: int, period: float) -> Tensor:
    """The angles of `encode_angle`'s codes, float32, in [-period / 2, period / 2).

    Example:
        >>> decode_angle(torch.tensor([0, 2, 7], dtype=torch.uint8), 3, 8.0)
        tensor([ 0.,  2., -1.])
    """
    steps = 2**bits
    centered = (codes.double() + steps / 2).remainder(steps) - steps / 2
    angle: Tensor = (centered * (period / steps)).float()
    return angle


def to_bf16(values: Tensor) -> Tensor:
    """The nearest bfloat16: float32's range, so nothing overflows to infinity; a relative error up to 2^-9.

    Raises:
        ValueError: If a value is not finite.

    Example:
        >>> to_bf16(torch.tensor([1.0, 1e38, 3.4e38]))
        tensor([1.0000e+00, 9.9692e+37, 3.3895e+38], dtype=torch.bfloat16)
    """
    _check_finite("value", values)
    largest = torch.finfo(torch.bfloat16).max
    # Twice rounded would not be nearest; float16 could not hold the bounds.
    exact = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    return exact.clamp(-largest, largest).to(torch.bfloat16)


def angle_period(taps: str) -> float:
    """The period of an angle in radians: half a turn changes nothing where all taps share one weight."""
    return math.pi if taps == "shared" else 2 * math.pi


def _candidates(levels: int) -> range:
    """Steps below the largest scale that are tried: the fewer the levels, the more is gained by clipping."""
    return range(4 * (10 - (levels - 1).bit_length()))


def _rows(weight: Tensor) -> Tensor:
    _check_finite("weight", weight)
    return weight.detach().flatten(1)


def _largest_exponents(rows: Tensor, levels: int) -> Tensor:
    """Of the scales that are tried: the largest not above 1.5 (or 1) · max|w| / m; -inf for a row of zeros."""
    largest = rows.abs().amax(1).double() if rows.shape[1] else rows.new_zeros(len(rows), dtype=torch.float64)
    # What has this scale must be given a largest code for which the scale is tried again: of 1.5 that is so where
    # there are 2 or 2^b - 1 levels.
    more = 1.5 if levels == 2 or levels & (levels + 1) == 0 else 1.0
    # The sliver makes 1.5 · max|w| / m itself a candidate where it is a scale, whatever the logarithm's rounding.
    return (8 * torch.log2(more * largest / largest_code(levels)) + 1e-3).floor()


def _nearest_codes(ratios: Tensor, levels: int) -> Tensor:
    """The codes nearest to weights over their scale, as floats; the tensor given is overwritten."""
    limit = largest_code(levels)
    codes = ratios.round_() if levels % 2 else ratios.div_(2).floor_().mul_(2).add_(1)
    return codes.clamp_(-limit, limit)


def _encode_rows(rows: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    largest = rows.abs().amax(1)
    steps = torch.arange(len(_candidates(levels)), device=rows.device)
    exponents = (_largest_exponents(rows, levels)[:, None] - steps).clamp(*EXPONENT_RANGE)  # [row, candidate]
    sizes = scale(exponents)[..., None]
    codes = _nearest_codes(rows[:, None] / sizes, levels)  # [row, candidate, column]
    error = (codes * sizes - rows[:, None]).double().square_().sum(-1)
    best = error.argmin(1)  # the first, so the largest scale, of equal ones
    index = torch.arange(len(rows), device=rows.device)
    found = torch.where(largest > 0, exponents[index, best], 0.0 if levels % 2 else float(EXPONENT_RANGE[0]))
    return codes[index, best], found


def _check_finite(what: str, values: Tensor) -> None:
    if not _is_captured(values) and not values.isfinite().all():
        bad = values[~values.isfinite()].flatten()[0].item()
        raise InputError(f"only finite numbers can be quantized to a few bits, got the {what} {bad}")


def _is_captured(values: Tensor) -> bool:
    """Whether what is done with a tensor is being recorded in a CUDA graph, in which nothing can be looked at."""
    return values.is_cuda and torch.cuda.is_current_stream_capturing()
