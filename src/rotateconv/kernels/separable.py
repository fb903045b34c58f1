"""A layer with angle groups as depthwise line filters and a pointwise convolution, and the choice of that form."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rotateconv.errors import InputError
from rotateconv.kernels.fused import in_layout

Form = Literal["auto", "dense", "separable"]


class _Costs(NamedTuple):
    """Costs on a CPU in multiply-adds of the dense convolution.

    Attributes:
        add: A multiply-add of a line filter.
        larger: A number of a map that a filter larger than 3 x 3 makes; there are faster ways for those.
        map: A number of a filtered map, written and read again.
        point: A multiply-add of the pointwise convolution.
        call: One more call of a convolution.
        make: What a number of the dense kernels costs to make and to lay out, whatever the number of positions.
        read: A number of the input that the dense convolution reads.
        odd: What a multiply-add of the dense convolution costs more where channels do not fill the vectors of 16.
    """

    add: float
    larger: float
    map: float
    point: float
    call: float
    make: float
    read: float
    odd: float

    def of_forms(
        self, inputs: float, outputs: float, kernel_size: float, groups: float, share: float
    ) -> tuple[float, float]:
        """The costs of both forms for a position, `share` of what is done once; also of arrays of layers."""
        size = kernel_size**2
        filters = groups * (size * self.add + (kernel_size > 3) * self.larger + self.map)
        separable = inputs * (filters + outputs * self.point) + 2 * groups * self.call * share
        add = 1 + self.odd * (inputs % 16 + outputs % 16 > 0)
        return inputs * (outputs * size * (add + self.make * share) + self.read), separable


# By whether it trains, the type, and whether the input lies channels-last. Fitted on layers of 16 to 256 channels with
# kernels of 3 to 7, on one core of a Xeon with AVX-512 and AMX, which the line filters do not use;
# `benchmarks/separable.py` fits them anew. Only their proportions mean something: a cost may stand for another.
_COSTS = {
    ("inference", torch.float32, True): _Costs(5.59, 0.001, 61.5, 0.3, 1.42e6, 0.001, 67.7, 0.599),
    ("inference", torch.float32, False): _Costs(6.81, 9.23, 11.5, 5.37, 429000, 0.00104, 14, 0.729),
    ("inference", torch.bfloat16, True): _Costs(28.6, 150, 510, 6, 2.86e7, 1490, 678, 0.00102),
    ("inference", torch.bfloat16, False): _Costs(8.82, 0.001, 913, 3.14, 3e7, 1080, 0.001, 0.0585),
    ("training", torch.float32, True): _Costs(21, 35.2, 26.4, 0.3, 5.33e6, 602, 183, 0.852),
    ("training", torch.float32, False): _Costs(17.4, 30, 79.8, 0.3, 4.88e6, 383, 245, 1.67),
    ("training", torch.bfloat16, True): _Costs(85.4, 4000, 1, 6, 2.69e7, 1410, 645, 0.001),
    ("training", torch.bfloat16, False): _Costs(71.9, 4000, 1, 6, 1.62e7, 860, 411, 0.0122),
}

# Much cheaper to ask than for one device; where torch has it no more, the device is asked.
_autocasts_anywhere: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)

_PART = 1 << 20  # numbers of a filtered map at a time, where they need not be kept: 4 MB of float32


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    lines: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    form: Form = "auto",
) -> Tensor:
    """Convolve with the kernels weight[o,i] · lines[g,i], g the group of o, in the form that is asked for.

    Args:
        input: (N, in, H, W) or (in, H, W).
        weight: (out, in).
        lines: (G, in, k, k), one line filter for each group of out/G output channels and input channel.
        bias: (out) or None.
        stride, padding, dilation: (height, width).
        form: "dense", "separable", or "auto" for what `prefers_separable` says.

    Returns:
        (N, out, H', W') or (out, H', W'); the same numbers in every form, to rounding.

    Example:
        >>> x, weight, lines = torch.randn(2, 8, 9, 9), torch.randn(4, 8), torch.randn(2, 8, 3, 3)
        >>> dense, separable = (
        ...     grouped_conv2d(x, weight, lines, None, (1, 1), (1, 1), (1, 1), form) for form in ("dense", "separable")
        ... )
        >>> torch.allclose(dense, separable, atol=1e-4)
        True
    """
    if form == "auto":
        form = "separable" if _is_cheaper(input, weight, lines, stride) else "dense"
    if form == "separable":
        return separable_conv2d(input, weight, lines, bias, stride, padding, dilation)
    kernel = in_layout(dense_kernel(weight, lines).to(compute_dtype(input, weight)), is_channels_last(input))
    return F.conv2d(input, kernel, bias, stride, padding, dilation)


def separable_conv2d(
    input: Tensor,
    weight: Tensor,
    lines: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Every input channel through its line filter, then a pointwise convolution.

    For each group g of outputs::

        output[o] = bias[o] + Σ_i weight[o,i] · (lines[g,i] ∗ input[i])

    k² + out/G multiply-adds for each group, input channel and position, where the dense form takes k² · out/G.

    Args:
        input, weight, lines, bias, stride, padding, dilation: as in `grouped_conv2d`.

    Returns:
        As `grouped_conv2d`.
    """
    groups, channels = lines.shape[:2]
    batch = _batch_of_a_part(input, weight, lines)
    if batch is not None:
        parts = [separable_conv2d(part, weight, lines, bias, stride, padding, dilation) for part in input.split(batch)]
        return torch.cat(parts)
    # oneDNN filters so much faster in channels-last order that changing to it and back pays from two groups on.
    reorder = groups > 1 and input.dim() == 4 and input.device.type == "cpu" and not is_channels_last(input)
    input = in_layout(input, reorder)
    weights = weight.unflatten(0, (groups, -1))[..., None, None]
    biases = [None] * groups if bias is None else list(bias.unflatten(0, (groups, -1)))
    # One call per group: oneDNN is slow at a depthwise convolution with several outputs per channel.
    maps = (F.conv2d(input, line[:, None], None, stride, padding, dilation, channels) for line in lines)
    outputs = [F.conv2d(*arguments) for arguments in zip(maps, weights, biases, strict=True)]
    output = outputs[0] if groups == 1 else torch.cat(outputs, -3)
    return output.contiguous() if reorder else output


def dense_kernel(weight: Tensor, lines: Tensor) -> Tensor:
    """The kernels weight[o,i] · lines[g,i], (out, in, k, k), of (out, in) weights and (G, in, k, k) lines."""
    kernel: Tensor = weight.unflatten(0, (len(lines), -1))[..., None, None] * lines[:, None]
    return kernel.flatten(0, 1)


def prefers_separable(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    groups: int,
    positions: int | None = None,
    *,
    training: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> bool:
    """Whether the separable form is the faster one on a CPU, by a model of its cost.

    For each position of the output, in multiply-adds of the dense convolution::

        dense      in · (out · k² · (1 + make / positions) + read)           1 + odd where 16 divides not in and out
        separable  in · (G · (k² · add + map) + out · point) + 2G · call / positions       map + larger where k > 3

    Args:
        in_channels, out_channels: of the layer.
        kernel_size: k.
        groups: G, the number of angle groups.
        positions: of the output, over the whole batch; None where it is not known, as in a compiled graph.
        training: with the backward pass.
        dtype: that the convolution computes in.
        channels_last: whether the input lies in memory so.

    Example:
        >>> prefers_separable(128, 128, 3, groups=4, positions=28 * 28), prefers_separable(128, 128, 3, groups=128)
        (True, False)
    """
    mode = "training" if training else "inference"
    costs = _COSTS[mode, torch.bfloat16 if dtype == torch.bfloat16 else torch.float32, channels_last]
    share = 0.0 if positions is None else 1 / max(1, positions)  # of what is done once
    dense, separable = costs.of_forms(in_channels, out_channels, kernel_size, groups, share)
    return separable < dense


def check_form(form: str) -> None:
    """Raise ValueError unless `form` is the name of a form."""
    if form not in get_args(Form):
        raise InputError(f"form must be one of {', '.join(map(repr, get_args(Form)))}, got {form!r}")


def compute_dtype(input: Tensor, weight: Tensor) -> torch.dtype:
    """The type that the convolution will compute in: autocast's, where it is on."""
    if _autocasts_anywhere():
        device = input.device.type
        if device != "meta" and torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
            return torch.get_autocast_dtype(device)
    return weight.dtype


def is_channels_last(input: Tensor) -> bool:
    """Whether a kernel for this input should lie in memory with its input channels innermost."""
    # By the strides: is_contiguous(memory_format=...) cannot be asked inside torch.func.vmap.
    return input.dim() == 4 and input.shape[1] > 1 and input.stride(1) == 1


def _is_cheaper(input: Tensor, weight: Tensor, lines: Tensor, stride: tuple[int, int]) -> bool:
    # Only a CPU has been measured.
    if input.device.type != "cpu":
        return False
    # In a graph sizes and strides may be symbols, and asking for them would tie the graph to them.
    compiles = torch.compiler.is_compiling()
    positions = None if compiles else _positions(input, stride)
    training = _needs_grad(input, weight, lines)
    out_channels, in_channels = weight.shape
    return prefers_separable(
        in_channels,
        out_channels,
        lines.shape[-1],
        len(lines),
        positions,
        training=training,
        dtype=compute_dtype(input, weight),
        channels_last=not compiles and is_channels_last(input),
    )


def _batch_of_a_part(input: Tensor, weight: Tensor, lines: Tensor) -> int | None:
    """How many images to filter at a time so that several filtered maps stay in the cache; None for all."""
    if torch.compiler.is_compiling() or input.device.type != "cpu" or input.dim() != 4 or len(lines) == 1:
        return None
    if input.numel() <= 2 * _PART or _needs_grad(input, weight, lines):
        return None
    batch = max(1, _PART * input.shape[0] // input.numel())
    return batch if batch < input.shape[0] else None


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _positions(input: Tensor, stride: tuple[int, int]) -> int:
    batch = input.shape[0] if input.dim() == 4 else 1
    return batch * input.shape[-2] * input.shape[-1] // (stride[0] * stride[1])
