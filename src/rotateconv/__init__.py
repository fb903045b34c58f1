"""RotateConv: convolution kernels that are line segments with a learned angle."""

from rotateconv.conv import RotateConv2d
from rotateconv.fit import LineFit, fit_line
from rotateconv.kernel import line_kernel

__all__ = [
    "LineFit",
    "RotateConv2d",
    "fit_line",
    "line_kernel",
]

__version__ = "0.1.0"
