"""Pruning by position: layers whose kernel slices keep a few of their k x k positions, drawn once or chosen."""

import math
from typing import Any

import torch
from torch import Tensor

from rotateconv.errors import InputError
from rotateconv.nn._conv_base import ConvBase
from rotateconv.nn.arguments import Size, positive

SEEDS = 2**16
"""Positions are drawn from one of so many seeds: few enough that a file finds the seed from the positions."""


class MaskedConv2d(ConvBase):
    """Convolution whose kernel slices keep a few of their k x k positions.

    ::

        K[o, i, position[o, i, j]] = weight[o, i, j] for j = 0 .. kept - 1, and 0 elsewhere

    With kept=4 a slice has as many learned numbers as the three taps and the angle of a rotated line, but no
    order in where they lie. The positions are random, drawn once, or with `patterns` those of one of a few patterns:
    `fit` then chooses the patterns that the slices of a trained kernel have most often, and for each slice the one
    that keeps most of it, as PatDNN prunes (there with patterns for a whole model, here for each layer).

    Args:
        in_channels, out_channels, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in nn.Conv2d.
        kernel_size: k, one odd number >= 3 or an equal pair.
        kept: positions that each slice keeps.
        patterns: number of different sets of positions in the layer; None for as many as there are.

    Attributes:
        weight: (out, in/groups, kept), drawn with the expected kernel norm of Kaiming-normal.
        position: (out, in/groups, kept), int16 buffer: ascending positions of the kernel, counted row by row.
        bias: (out) or None.

    Raises:
        ValueError: If nn.Conv2d could not be built so, or the kernel is not square and odd or has fewer than
            `kept` positions.

    Example:
        >>> MaskedConv2d(16, 32, 3, padding=1)(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 8, 8])

    Reference:
        Niu et al., "PatDNN: Achieving Real-Time DNN Execution on Mobile Devices with Pattern-based Weight Pruning",
        ASPLOS 2020, section 4.
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
        patterns: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, dtype)
        size = self.kernel_size[0]
        if not 1 <= kept <= size**2:
            raise InputError(f"kept must be between 1 and the {size**2} positions of the kernel, got {kept}")
        self.patterns = None if patterns is None else positive("patterns", patterns)
        slices = (out_channels, in_channels // groups)
        self._add_parameters(bias, weight=torch.empty(*slices, kept, device=device, dtype=dtype))
        self.register_buffer("position", torch.empty(*slices, kept, device=device, dtype=torch.int16))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new positions and weights; the bias as nn.Conv2d does."""
        if self.weight.is_meta:
            return
        out_channels, fan, kept = self.weight.shape
        seed, positions = int(torch.randint(SEEDS, (), device="cpu")), self.kernel_size[0] ** 2
        with torch.no_grad():
            if self.patterns is None:
                self.position.copy_(positions_of_seed(seed, out_channels * fan, positions, kept).view_as(self.position))
            else:
                drawn = positions_of_seed(seed, self.patterns, positions, kept)
                self.position.copy_(drawn[torch.randint(self.patterns, (out_channels, fan), device="cpu")])
            self.weight.normal_(0, math.sqrt(2 / (fan * kept)))
            self._reset_bias()

    def kernel(self) -> Tensor:
        """The kernel that the layer convolves with, (out, in/groups, k, k)."""
        size, fan = self.kernel_size[0], self.in_channels // self.groups
        zeros = self.weight.new_zeros(self.out_channels, fan, size**2)
        return zeros.scatter(-1, self.position.long(), self.weight).view(self.out_channels, fan, size, size)

    @torch.no_grad()
    def fit(self, kernel: Tensor) -> None:
        """Keep the largest numbers of each slice of a dense kernel, or those of the best pattern; see ConvBase."""
        numbers = self._checked(kernel).flatten(-2)
        position = numbers.abs().topk(self.weight.shape[-1], -1).indices.sort(-1).values
        if self.patterns is not None:
            natural, counts = position.flatten(0, -2).unique(dim=0, return_counts=True)
            library = natural[counts.argsort(stable=True, descending=True)[: self.patterns]]  # [pattern, kept]
            # The pattern that keeps the most of a slice leaves the least of it out.
            mass = torch.stack([numbers[..., pattern].square().sum(-1) for pattern in library], -1)
            position = library[mass.argmax(-1)]
        self.position.copy_(position)
        self.weight.copy_(numbers.gather(-1, position))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        position, positions = state_dict.get(f"{prefix}position"), self.kernel_size[0] ** 2
        # A file may come from anybody, and an index outside the kernel ends a process on a GPU.
        if position is not None and not position.is_meta and not _ascending(position, positions):
            lists[-1].append(f"{prefix}position must be ascending positions of {positions}")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)

    def extra_repr(self) -> str:
        """The arguments of the call that builds this layer again, defaults left out."""
        patterns = "" if self.patterns is None else f", patterns={self.patterns}"
        return f"{super().extra_repr()}, kept={self.weight.shape[-1]}{patterns}"


def _ascending(position: Tensor, positions: int) -> bool:
    """Whether each slice's positions ascend and lie in the kernel."""
    inside = (position >= 0) & (position < positions)
    return bool(inside.all() and (position.long().diff(dim=-1) > 0).all())


def positions_of_seed(seed: int, slices: int, positions: int, kept: int) -> Tensor:
    """Random positions, the same for a seed on every machine and in every language: docs/packed-format.md.

    ::

        n = slice · positions + position,   x = mix(n + seed · 2654435761 mod 2^32),   mix of MurmurHash3
        a slice keeps the positions with the smallest x

    Args:
        seed: From 0 to `SEEDS` - 1.
        slices, positions, kept: Numbers of slices, of positions of a kernel, and of those that a slice keeps.

    Returns:
        int64, (slices, kept), ascending.

    Example:
        >>> positions_of_seed(7, 2, 9, 4).tolist()
        [[1, 4, 6, 8], [4, 5, 6, 8]]
    """
    return _positions(torch.tensor([seed], device="cpu"), slices, positions, kept)[0]


def seed_of_positions(position: Tensor, positions: int) -> int | None:
    """The seed whose positions these are, or None.

    Args:
        position: (slices, kept), ascending.
        positions: Positions of a kernel.

    Example:
        >>> seed_of_positions(positions_of_seed(7, 30, 9, 4), 9), seed_of_positions(torch.arange(4).expand(30, 4), 9)
        (7, None)
    """
    slices, kept = position.shape
    seeds = torch.arange(SEEDS)
    for count in (1, 4, slices):  # one slice leaves a few hundred seeds, four leave one
        count = min(count, slices)
        seeds = seeds[(_positions(seeds, count, positions, kept) == position[:count]).flatten(1).all(1)]
    return int(seeds[0]) if len(seeds) else None


def _positions(seeds: Tensor, slices: int, positions: int, kept: int) -> Tensor:
    """(seed, slices, kept)."""
    keys = _mixed(torch.arange(slices * positions, device="cpu") + seeds[:, None] * 2654435761)
    return keys.view(len(seeds), slices, positions).argsort(stable=True, dim=-1)[..., :kept].sort(-1).values


def _mixed(x: Tensor) -> Tensor:
    """The finalizer of MurmurHash3, of whole numbers modulo 2^32; a product that overflows has the right low bits."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
