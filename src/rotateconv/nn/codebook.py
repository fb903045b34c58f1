"""A kernel codebook: every slice is a multiple of one of a few kernels that the layer shares."""

import math

import torch
from torch import Tensor, nn

from rotateconv.errors import InputError
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.arguments import Size

ACROSS = 0.3
"""Factor on the gradient of a slice across its codebook kernel, where it sees no effect: with 1, it overshoots."""

_NEAR = 1e-6
"""Proportion by which a later codebook kernel must be better: ties are broken the same way every time."""


class CodebookConv2d(ConvBase):
    """Convolution whose kernel slices are multiples of a few shared kernels: the general case of a line.

    ::

        K[o, i] = s[o, i] · codebook[n],     n = index[o, i] = argmax_n |<weight[o, i], codebook[n]>| / ‖codebook[n]‖
        s[o, i] = <weight[o, i], codebook[n]> / ‖codebook[n]‖²

    A slice is deployed as its index, log2(K) bits, and the number s. To learn the index, the layer trains a dense
    kernel `weight`, of which the forward pass sees the nearest multiple of a codebook kernel: the gradient of K moves
    weight (straight-through), along the codebook kernel as it is and across it by `ACROSS`, so that a slice which
    drifts away changes its index; and it moves the codebook by Σ s[o, i] · ∂K[o, i] over its slices. The derivative of
    the projection itself would leave every slice on its ray.
    In training the layer therefore has as many parameters as a dense one and the codebook; `quantize` puts weight on
    the multiples, and `pack` writes indices.

    Args:
        in_channels, out_channels, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in nn.Conv2d.
        kernel_size: k, one odd number >= 3 or an equal pair.
        entries: K, kernels of the codebook, 2 to 256.

    Attributes:
        codebook: (K, k, k).
        weight: (out, in/groups, k, k), of which only the nearest multiples are used.
        bias: (out) or None.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd, or entries out of range.

    Example:
        >>> layer = CodebookConv2d(16, 32, 3, entries=8)
        >>> layer.assign()[0].shape, int(layer.assign()[0].max()) < 8
        (torch.Size([32, 16]), True)

    Reference:
        Son, Nah, Lee, "Clustering Convolutional Kernels to Compress Deep Neural Networks", ECCV 2018, who cluster the
        kernels of a trained model, as `fit` does. Van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation
        Learning", NeurIPS 2017, for the gradient past the nearest entry.
    """

    codebook: nn.Parameter

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
        entries: int = 16,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, dtype)
        if not 2 <= entries <= 256:
            raise InputError(f"entries must be between 2 and 256, got {entries}")
        k = self.kernel_size
        # The codebook first: it is quantized, written and read before the weights that are multiples of it.
        self._add_parameters(
            bias,
            codebook=torch.empty(entries, *k, device=device, dtype=dtype),
            weight=torch.empty(out_channels, in_channels // groups, *k, device=device, dtype=dtype),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a random codebook of kernels of norm 1, and weights whose multiples have Kaiming-normal's norm."""
        if self.weight.is_meta:
            return
        with torch.no_grad():
            self.codebook.normal_()
            self.codebook.div_(self.codebook.flatten(1).norm(dim=1)[:, None, None])
            self.weight.normal_()
            wanted = math.sqrt(2 / (self.weight.shape[1] * self.kernel_size[0] ** 2))
            self.weight.mul_(wanted / self.kernel().square().mean().sqrt())
            self._reset_bias()

    def assign(self) -> tuple[Tensor, Tensor]:
        """The index of every slice, int64, and the factor of its codebook kernel, (out, in/groups)."""
        return nearest_multiple(self.weight.detach(), self.codebook.detach())

    def kernel(self) -> Tensor:
        """The kernel that the layer convolves with, (out, in/groups, k, k); its gradient passes on to the weight."""
        if self.weight.is_meta:  # without values, only the shape is to be known
            return self.weight
        index, size = self.assign()
        ray = self.codebook[index]
        moved = self.weight - self.weight.detach()  # zeros that carry the gradient
        along = _along(moved, ray.detach())
        return size[..., None, None] * ray + along + ACROSS * (moved - along)

    @torch.no_grad()
    def fit(self, kernel: Tensor, rounds: int = 20) -> None:
        """Cluster the slices of a dense kernel into the lines of a codebook; see ConvBase.

        k-means up to sign and scale: each entry in turn becomes the direction that keeps most of its slices, their
        largest singular vector. The start is spread as by k-means++, without chance: the slice of which the least is
        kept becomes the next entry.
        """
        self.weight.copy_(self._checked(kernel))
        slices = self.weight.flatten(0, 1).flatten(1).double()  # [slice, position]
        lines = slices[slices.square().sum(1).argmax()][None]
        for _ in range(len(self.codebook) - 1):
            kept = (slices @ _unit(lines).T).square().amax(1)
            lines = torch.cat([lines, slices[(slices.square().sum(1) - kept).argmax()][None]])
        lines = _unit(lines)
        for _ in range(rounds):
            nearest = (slices @ lines.T).abs().argmax(1)
            for n in nearest.unique().tolist():
                members = slices[nearest == n]
                lines[n] = torch.linalg.eigh(members.T @ members)[1][:, -1]
        self.codebook.copy_(lines.view_as(self.codebook))

    def extra_repr(self) -> str:
        """The arguments of the call that builds this layer again, defaults left out."""
        return f"{super().extra_repr()}, entries={len(self.codebook)}"


def nearest_multiple(weight: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Which kernel of a codebook has the multiple nearest to each slice, and the factor of it.

    Args:
        weight: (..., k, k).
        codebook: (K, k, k).

    Returns:
        The index, int64 (...), of equally near ones the first; and the factor in the dtype of weight, (...).
    """
    slices, entries = weight.flatten(-2).double(), codebook.flatten(-2).double()
    products = slices @ entries.T  # [..., entry]
    squares = entries.square().sum(-1)
    kept = products.square() / squares.clamp_min(torch.finfo(torch.float64).tiny)
    index = (kept >= kept.amax(-1, keepdim=True) * (1 - _NEAR)).int().argmax(-1)
    factor = products.gather(-1, index[..., None])[..., 0] / squares.clamp_min(torch.finfo(torch.float64).tiny)[index]
    return index, factor.to(weight.dtype)


def _along(slices: Tensor, rays: Tensor) -> Tensor:
    """The parts of slices that are multiples of these rays, all (..., k, k)."""
    squares = rays.square().sum((-2, -1), keepdim=True).clamp_min(torch.finfo(rays.dtype).tiny)
    return (slices * rays).sum((-2, -1), keepdim=True) / squares * rays


def _unit(lines: Tensor) -> Tensor:
    return nn.functional.normalize(lines, dim=1)
