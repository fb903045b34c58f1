"""RotateConv: convolution kernels that are line segments with a learned angle."""

from rotateconv.batched import batched_kernels
from rotateconv.calibration import recalibrate
from rotateconv.conv import RotateConv2d
from rotateconv.conversion_report import ConversionEntry, ConversionReport
from rotateconv.convert import convert
from rotateconv.cost import ModelCost, cost
from rotateconv.fit import LineFit, fit_line
from rotateconv.fusion import fuse
from rotateconv.kernel import line_kernel
from rotateconv.models import CONVS, MODELS, build_model, equal_size_width
from rotateconv.optim import param_groups
from rotateconv.pack import load_packed, pack
from rotateconv.quantize import quantize

__all__ = [
    "CONVS",
    "MODELS",
    "ConversionEntry",
    "ConversionReport",
    "LineFit",
    "ModelCost",
    "RotateConv2d",
    "batched_kernels",
    "build_model",
    "convert",
    "cost",
    "equal_size_width",
    "fit_line",
    "fuse",
    "line_kernel",
    "load_packed",
    "pack",
    "param_groups",
    "quantize",
    "recalibrate",
]

__version__ = "0.1.0"
