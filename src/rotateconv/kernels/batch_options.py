"""What `fused_batch` and the kernels of Triton agree on."""

from typing import NamedTuple

import torch

from rotateconv.kernels.line import Path


class BatchOptions(NamedTuple):
    """What the layers of a batch have in common, and the factors on the gradients of their angles.

    Attributes:
        size: k.
        path: "circle" or "square".
        dtype: Of the kernels.
        channels_last: Whether they are wanted in that order; where they are made in one piece by torch, they are
            contiguous.
        scales: One for each layer.
    """

    size: int
    path: Path
    dtype: torch.dtype
    channels_last: bool
    scales: tuple[float, ...]
