"""The line filters of the separable form on a GPU: one Triton launch reads the input and writes every filtered map."""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.grad import conv2d_weight

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 7
"""The k up to which a kernel is worth unrolling over its cells."""

Pair = tuple[int, int]
_NUMBERS_A_PROGRAM = 1024  # over all groups


def line_filters(input: Tensor, lines: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Every input channel through the line filter of each group.

    ::

        output[g, n, i] = lines[g, i] ∗ input[n, i]

    Differentiable as often as is asked; the first derivative by the input is one launch too.

    Args:
        input: (N, in, H, W) of one of `DTYPES`; computed in float32.
        lines: (G, in, k, k), k at most `LARGEST`, in the dtype of input.
        stride, padding, dilation: (height, width).

    Returns:
        (G, N, in, H', W'); each map in channels-last order if the input is, else contiguous.
    """
    result: Tensor = _LineFilters.apply(input, lines, stride, padding, dilation)
    return result


class _LineFilters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, lines: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        ctx.save_for_backward(input, lines)
        ctx.places = stride, padding, dilation
        return filter_forward(input, lines, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, lines = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            _, pull_back, *_ = torch.func.vjp(lambda i, w: plain_filters(i, w, *ctx.places), input, lines)
            return *pull_back(grad), None, None, None
        to_input = filter_backward(input, lines, grad, *ctx.places) if ctx.needs_input_grad[0] else None
        to_lines = _to_lines(input, lines, grad, *ctx.places) if ctx.needs_input_grad[1] else None
        return to_input, to_lines, None, None, None


def plain_filters(input: Tensor, lines: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """`line_filters` by PyTorch's depthwise convolutions, one for each group."""
    channels = input.shape[1]
    maps = [F.conv2d(input, line[:, None], None, stride, padding, dilation, channels) for line in lines]
    return torch.stack(maps)


def filter_forward(input: Tensor, lines: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """The maps in one launch."""
    groups, channels, size = lines.shape[:3]
    rows, cols = (
        (side + 2 * pad - step * (size - 1) - 1) // stride_ + 1
        for side, pad, step, stride_ in zip(input.shape[2:], padding, dilation, stride, strict=True)
    )
    shape = (groups, len(input), channels, rows, cols)
    last = _is_channels_last(input)
    if last:
        out = input.new_empty(groups, len(input), rows, cols, channels).permute(0, 1, 4, 2, 3)
    else:
        out = input.new_empty(shape)
    sizes = (out[0].numel(), channels, rows, cols, *input.shape[2:])
    _launch(_filter, (input, lines.contiguous(), out), sizes, (input, out), (stride, padding, dilation), lines, last)
    return out


def filter_backward(input: Tensor, lines: Tensor, grad: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """The gradient of the input, in its layout, from that of the maps, (G, N, in, H', W') in any: one launch."""
    to_input, last = torch.empty_like(input), _is_channels_last(input)
    sizes = (input.numel(), lines.shape[1], *input.shape[2:], *grad.shape[3:])
    pointers = (grad, lines.contiguous(), to_input)
    _launch(_filter_back, pointers, sizes, (to_input, grad), (stride, padding, dilation), lines, last)
    return to_input


def _to_lines(input: Tensor, lines: Tensor, grad: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """The gradient of the lines: a sum over all images and places, which PyTorch does well enough."""
    channels, size = lines.shape[1:3]
    shape = (channels, 1, size, size)
    parts = [conv2d_weight(input, shape, part, stride, padding, dilation, channels) for part in grad]
    return torch.stack(parts)[:, :, 0]


def _is_channels_last(input: Tensor) -> bool:
    return input.shape[1] > 1 and input.stride(1) == 1


def compile_options(groups: int, size: int, channels_last: bool) -> dict[str, object]:
    """The constants that a kernel is compiled for, by the names they have in it."""
    lanes = triton.next_power_of_2(groups)
    block = max(32, _NUMBERS_A_PROGRAM // lanes)
    return {"GROUPS": groups, "LANES": lanes, "SIZE": size, "LAST": channels_last, "BLOCK": block}


def _launch(
    kernel: "triton.JITFunction[None]",
    pointers: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    strided: tuple[Tensor, Tensor],
    places: tuple[Pair, ...],
    lines: Tensor,
    channels_last: bool,
) -> None:
    if sizes[0] == 0:
        return
    options: dict[str, Any] = compile_options(len(lines), lines.shape[-1], channels_last)
    steps = [step for tensor in strided for step in tensor.stride()]
    numbers = [number for pair in places for number in pair]
    with torch.cuda.device_of(lines):
        kernel[(triton.cdiv(sizes[0], options["BLOCK"]),)](*pointers, *sizes, *steps, *numbers, **options)


# A program has BLOCK places of one map or of the input; [LANES, BLOCK] holds a number for each of them and every
# group, GROUPS of the LANES used.


@triton.jit
def _place(count, channels, rows, cols, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Image, channel, row and column of the program's places, neighbors in memory beside each other."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    if LAST:
        channel = index % channels
        place = index // channels
        col = place % cols
        row = place // cols % rows
        image = place // cols // rows
    else:
        col = index % cols
        row = index // cols % rows
        channel = index // cols // rows % channels
        image = index // cols // rows // channels
    return inside, image, channel, row, col


@triton.jit
def _filter(
    input, lines, out,
    count, channels, rows, cols, input_rows, input_cols,
    step_image, step_channel, step_row, step_col,
    out_group, out_image, out_channel, out_row, out_col,
    stride_row, stride_col, padding_row, padding_col, dilation_row, dilation_col,
    GROUPS: tl.constexpr, LANES: tl.constexpr, SIZE: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    inside, image, channel, row, col = _place(count, channels, rows, cols, LAST, BLOCK)
    group = tl.arange(0, LANES).to(tl.int64)[:, None]
    used = inside[None, :] & (group < GROUPS)
    line_at = lines + (group * channels + channel[None, :]) * (SIZE * SIZE)
    total = tl.zeros((LANES, BLOCK), dtype=tl.float32)
    for cell in tl.static_range(SIZE * SIZE):
        from_row = row * stride_row - padding_row + (cell // SIZE) * dilation_row
        from_col = col * stride_col - padding_col + (cell % SIZE) * dilation_col
        there = inside & (from_row >= 0) & (from_row < input_rows) & (from_col >= 0) & (from_col < input_cols)
        at = input + image * step_image + channel * step_channel + from_row * step_row + from_col * step_col
        value = tl.load(at, mask=there, other=0.0).to(tl.float32)
        total += value[None, :] * tl.load(line_at + cell, mask=used, other=0.0).to(tl.float32)
    at = image * out_image + channel * out_channel + row * out_row + col * out_col
    tl.store(out + group * out_group + at[None, :], total.to(out.dtype.element_ty), mask=used)


@triton.jit
def _filter_back(
    grad, lines, to_input,
    count, channels, rows, cols, grad_rows, grad_cols,
    step_image, step_channel, step_row, step_col,
    grad_group, grad_image, grad_channel, grad_row, grad_col,
    stride_row, stride_col, padding_row, padding_col, dilation_row, dilation_col,
    GROUPS: tl.constexpr, LANES: tl.constexpr, SIZE: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    inside, image, channel, row, col = _place(count, channels, rows, cols, LAST, BLOCK)
    group = tl.arange(0, LANES).to(tl.int64)[:, None]
    used = inside[None, :] & (group < GROUPS)
    line_at = lines + (group * channels + channel[None, :]) * (SIZE * SIZE)
    total = tl.zeros((LANES, BLOCK), dtype=tl.float32)
    for cell in tl.static_range(SIZE * SIZE):
        # The place whose filter had its cell here, if there is one: rows and columns that a stride left out have none.
        far_row = row + padding_row - (cell // SIZE) * dilation_row
        far_col = col + padding_col - (cell % SIZE) * dilation_col
        to_row = far_row // stride_row
        to_col = far_col // stride_col
        hit = (far_row >= 0) & (far_col >= 0) & (to_row < grad_rows) & (to_col < grad_cols)
        hit = hit & (to_row * stride_row == far_row) & (to_col * stride_col == far_col)
        at = image * grad_image + channel * grad_channel + to_row * grad_row + to_col * grad_col
        there = used & hit[None, :]
        value = tl.load(grad + group * grad_group + at[None, :], mask=there, other=0.0).to(tl.float32)
        total += value * tl.load(line_at + cell, mask=used, other=0.0).to(tl.float32)
    at = to_input + image * step_image + channel * step_channel + row * step_row + col * step_col
    tl.store(at, tl.sum(total, axis=0).to(to_input.dtype.element_ty), mask=inside)
