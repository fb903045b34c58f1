"""Controls: layers with few parameters and no angle, which a rotated line has to beat."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.nn import arguments
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.arguments import Size


class MaskedConv2d(ConvBase):
    """Convolution whose kernel slices keep a random few of their k x k positions, drawn once.

    ::

        K[o, i, position[o, i, j]] = weight[o, i, j] for j = 0 .. kept - 1, and 0 elsewhere

    With kept=4 a slice has as many learned numbers as the three taps and the angle of a rotated line, but no
    order in where they lie.

    Args:
        in_channels, out_channels, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in nn.Conv2d.
        kernel_size: k, one odd number >= 3 or an equal pair.
        kept: positions that each slice keeps.

    Attributes:
        weight: (out, in/groups, kept), drawn with the expected kernel norm of Kaiming-normal.
        position: (out, in/groups, kept), int16 buffer: ascending cells of the kernel, counted row by row.
        bias: (out) or None.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd or has fewer than
            `kept` positions.

    Example:
        >>> MaskedConv2d(16, 32, 3, padding=1)(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 8, 8])
    """

    position: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        kept: int = 4,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, dtype)
        size = self.kernel_size[0]
        if not 1 <= kept <= size**2:
            raise InputError(f"kept must be between 1 and the {size**2} positions of the kernel, got {kept}")

        slices = (out_channels, in_channels // groups)
        self.weight = nn.Parameter(torch.empty(*slices, kept, device=device, dtype=dtype))
        self.register_buffer("position", torch.empty(*slices, kept, device=device, dtype=torch.int16))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new positions and weights; the bias as nn.Conv2d does."""
        out_channels, fan, kept = self.weight.shape
        with torch.no_grad():
            order = torch.rand(out_channels, fan, self.kernel_size[0] ** 2, device=self.weight.device).argsort(-1)
            self.position.copy_(order[..., :kept].sort(-1).values)
            self.weight.normal_(0, math.sqrt(2 / (fan * kept)))
            self._reset_bias()

    def kernel(self) -> Tensor:
        """The kernel that the layer convolves with, (out, in/groups, k, k)."""
        size, fan = self.kernel_size[0], self.in_channels // self.groups
        zeros = self.weight.new_zeros(self.out_channels, fan, size**2)
        return zeros.scatter(-1, self.position.long(), self.weight).view(self.out_channels, fan, size, size)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, in, H, W) or (in, H, W), as nn.Conv2d does."""
        input, padding = self._padded(input)
        return F.conv2d(input, self.kernel(), self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """The arguments of the call that builds this layer again, defaults left out."""
        return f"{super().extra_repr()}, kept={self.weight.shape[-1]}"


class SeparableConv2d(nn.Module):
    """A depthwise k x k convolution, then a pointwise one, with nothing in between.

    ::

        y[o] = bias[o] + Σ_i pointwise[o, i] · (depthwise[i] * x[i])

    The depthwise part keeps the variance of white noise, the pointwise part is Kaiming-normal: together the
    output has the variance that it has behind a Kaiming-normal k x k convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as in nn.Conv2d; groups and bias are the pointwise part's, the others the depthwise one's.

    Raises:
        ValueError: If nn.Conv2d could not be built so.

    Example:
        >>> SeparableConv2d(16, 32, 3, padding=1)(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 8, 8])

    Reference:
        Howard et al., "MobileNets", 2017, section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            arguments.positive("in_channels", in_channels),
            in_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups=in_channels,
            bias=False,
            padding_mode=padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; the bias as nn.Conv2d does."""
        self.pointwise.reset_parameters()
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.pointwise.weight, nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, in, H, W) or (in, H, W), as nn.Conv2d does."""
        output: Tensor = self.pointwise(self.depthwise(input))
        return output
