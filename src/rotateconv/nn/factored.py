"""Factored kernels: depthwise and pointwise, a column and a row of low rank, an outer product a slice."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rotateconv.nn import arguments
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.arguments import Size


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
        arguments.positive("in_channels", in_channels)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        spatial: dict[str, Any] = {**options, "padding_mode": padding_mode, "groups": in_channels, "bias": False}
        self.depthwise = nn.Conv2d(in_channels, in_channels, kernel_size, stride, padding, dilation, **spatial)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=bias, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; the bias as nn.Conv2d does."""
        self.pointwise.reset_parameters()
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.pointwise.weight, nonlinearity="relu")

    def kernel(self) -> Tensor:
        """The kernel of the two convolutions together, (out, in/groups, k, k)."""
        groups = self.pointwise.groups
        depthwise = self.depthwise.weight[:, 0].unflatten(0, (groups, 1, -1))  # [group, 1, i, r, c]
        kernel: Tensor = self.pointwise.weight.unflatten(0, (groups, -1)) * depthwise
        return kernel.flatten(0, 1)

    @torch.no_grad()
    def fit(self, kernel: Tensor) -> None:
        """Take the two convolutions nearest to a dense kernel, (out, in/groups, k, k): a singular value per channel."""
        groups = self.pointwise.groups
        kernel = kernel.detach().unflatten(0, (groups, -1))  # [group, o, i, r, c]
        u, s, v = torch.linalg.svd(kernel.transpose(1, 2).flatten(3).double(), full_matrices=False)  # of [o, position]
        root = s[..., :1].sqrt()
        self.pointwise.weight.copy_((u[..., 0] * root).transpose(1, 2).flatten(0, 1)[..., None, None])
        self.depthwise.weight.copy_((v[..., 0, :] * root).view_as(self.depthwise.weight))

    @property
    def bias(self) -> Tensor | None:
        """Of the pointwise convolution."""
        return self.pointwise.bias

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, in, H, W) or (in, H, W), as nn.Conv2d does."""
        output: Tensor = self.pointwise(self.depthwise(input))
        return output


class LowRankConv2d(nn.Module):
    """A k x 1 convolution into a few channels, then a 1 x k one, with nothing in between.

    ::

        K[o, i] = Σ_n column[n, i] · row[o, n]ᵀ        n = 1 .. rank, in each group

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as in nn.Conv2d.
        numbers: Parameters per slice that the layer comes nearest to: it chooses the rank,
            numbers · in/groups · out/groups / (k · (in/groups + out/groups)), at least 1.

    Attributes:
        rank: Channels of a group between the two convolutions.
        column, row: The two convolutions, nn.Conv2d.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd, or numbers is no
            positive integer.

    Example:
        >>> LowRankConv2d(64, 64, 3, padding=1, numbers=4).rank
        43

    Reference:
        Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014,
        scheme 2.
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
        *,
        numbers: int = 4,
    ) -> None:
        super().__init__()
        base = ConvBase(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, dtype)
        size, (rows, columns) = base.kernel_size[0], base.padding_pixels
        self.groups, self.kernel_size = groups, base.kernel_size
        fan, outputs = in_channels // groups, out_channels // groups
        self.rank = max(1, round(arguments.positive("numbers", numbers) * fan * outputs / (size * (fan + outputs))))
        rank, step, gap = groups * self.rank, base.stride, base.dilation
        options: dict[str, Any] = {"groups": groups, "padding_mode": padding_mode, "device": device, "dtype": dtype}
        self.column = nn.Conv2d(
            in_channels, rank, (size, 1), (step[0], 1), (rows, 0), (gap[0], 1), bias=False, **options
        )
        self.row = nn.Conv2d(
            rank, out_channels, (1, size), (1, step[1]), (0, columns), (1, gap[1]), bias=bias, **options
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; the bias as nn.Conv2d does."""
        self.row.reset_parameters()
        nn.init.kaiming_normal_(self.column.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.row.weight, nonlinearity="relu")

    def kernel(self) -> Tensor:
        """The kernel of the two convolutions together, (out, in/groups, k, k)."""
        column = self.column.weight[..., 0].unflatten(0, (self.groups, -1))  # [group, n, i, r]
        row = self.row.weight[..., 0, :].unflatten(0, (self.groups, -1))  # [group, o, n, c]
        return torch.einsum("gnir,gonc->goirc", column, row).flatten(0, 1)

    @torch.no_grad()
    def fit(self, kernel: Tensor) -> None:
        """Take the two convolutions nearest to a dense kernel, (out, in/groups, k, k): its largest singular values."""
        kernel = kernel.detach().unflatten(0, (self.groups, -1))  # [group, o, i, r, c]
        _, outputs, fan, size, _ = kernel.shape
        u, s, v = torch.linalg.svd(kernel.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2).double(), full_matrices=False)
        kept = min(self.rank, s.shape[-1])
        root = s[:, :kept].sqrt()
        column = (u[..., :kept] * root[:, None]).mT.unflatten(-1, (fan, size))
        row = (v[:, :kept] * root[..., None]).unflatten(-1, (outputs, size)).transpose(1, 2)
        more = self.rank - kept  # a rank that no kernel of this size has
        self.column.weight.copy_(F.pad(column, (0, 0, 0, 0, 0, more)).flatten(0, 1)[..., None])
        self.row.weight.copy_(F.pad(row, (0, 0, 0, more)).flatten(0, 1)[..., None, :])

    @property
    def bias(self) -> Tensor | None:
        """Of the second convolution."""
        return self.row.bias

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, in, H, W) or (in, H, W), as nn.Conv2d does."""
        output: Tensor = self.row(self.column(input))
        return output


class OuterConv2d(ConvBase):
    """Convolution whose kernel slices are each the outer product of a column and a row: 2k - 1 free numbers.

    ::

        K[o, i] = weight[o, i, 0] · weight[o, i, 1]ᵀ

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as in nn.Conv2d; the kernel is square and odd.

    Attributes:
        weight: (out, in/groups, 2, k), the column and the row.
        bias: (out) or None.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd.

    Example:
        >>> OuterConv2d(16, 32, 3, padding=1).weight.shape
        torch.Size([32, 16, 2, 3])

    Reference:
        Rigamonti, Sironi, Lepetit, Fua, "Learning Separable Filters", CVPR 2013.
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
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, dtype)
        slices = (out_channels, in_channels // groups)
        self._add_parameters(bias, weight=torch.empty(*slices, 2, self.kernel_size[0], device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: two factors of variance σ each make a kernel of Kaiming-normal's variance σ²."""
        with torch.no_grad():
            fan = self.weight.shape[1] * self.kernel_size[0] ** 2
            self.weight.normal_(0, (2 / fan) ** 0.25)
            self._reset_bias()

    def kernel(self) -> Tensor:
        """The kernel that the layer convolves with, (out, in/groups, k, k)."""
        column, row = self.weight.unbind(2)
        return column[..., None] * row[..., None, :]

    @torch.no_grad()
    def fit(self, kernel: Tensor) -> None:
        """Take the largest singular value of every slice of a dense kernel, shared evenly; see ConvBase."""
        u, s, v = torch.linalg.svd(self._checked(kernel).double())
        root = s[..., :1].sqrt()
        self.weight.copy_(torch.stack([u[..., 0] * root, v[..., 0, :] * root], 2))
