"""What the convolutions with a computed kernel share: nn.Conv2d's arguments, checked once, its padding and its repr."""

import math

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.kernels.fused import in_layout
from rotateconv.kernels.separable import is_channels_last
from rotateconv.nn import arguments
from rotateconv.nn.arguments import Size


class ConvBase(nn.Module):
    """nn.Conv2d's attributes for a square odd kernel; the parameters and the kernel are the subclass's.

    Attributes:
        padding: As it was given, "same" and "valid" too.
        padding_cells: (height, width) of the padding on each side.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size | str,
        dilation: Size,
        groups: int,
        padding_mode: str,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        size = arguments.square_kernel_size(kernel_size)
        self.in_channels = arguments.positive("in_channels", in_channels)
        self.out_channels = arguments.positive("out_channels", out_channels)
        self.groups = arguments.positive("groups", groups)
        arguments.divides("groups", groups, in_channels=in_channels, out_channels=out_channels)
        arguments.check_padding_mode(padding_mode)
        arguments.check_dtype(dtype)
        self.kernel_size = (size, size)
        self.stride = arguments.pair("stride", stride, least=1)
        self.dilation = arguments.pair("dilation", dilation, least=1)
        self.padding_cells = arguments.padding_pair(padding, size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) else self.padding_cells
        self.padding_mode = padding_mode

    def kernel(self) -> Tensor:
        """The kernel that the layer convolves with, (out, in/groups, k, k)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments of the call that builds this layer again, defaults left out."""
        shown = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        shown += [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join(shown + ([] if self.bias is not None else ["bias=False"]))

    def _reset_bias(self) -> None:
        """Draw the bias as nn.Conv2d does."""
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_channels // self.groups * self.kernel_size[0] ** 2)
            self.bias.uniform_(-bound, bound)

    def _padded(self, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input with the padding that F.conv2d does not know, and the zeros that are left for it to add."""
        if self.padding_mode == "zeros":
            return input, self.padding_cells
        height, width = self.padding_cells
        padded = F.pad(input, (width, width, height, height), mode=self.padding_mode)
        return in_layout(padded, is_channels_last(input)), (0, 0)  # "circular" loses the layout


# torch.fx traces around what looks at its tensors: the layers stay traceable without being leaves.
torch.fx.wrap("in_layout")
torch.fx.wrap("is_channels_last")
