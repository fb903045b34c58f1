"""RotateConv: convolution kernels that are line segments with a learned angle."""

from rotateconv.convert.convert import convert
from rotateconv.convert.fuse import fuse
from rotateconv.convert.recalibrate import recalibrate
from rotateconv.convert.report import ConversionEntry, ConversionReport
from rotateconv.cost import ModelCost, cost
from rotateconv.kernels.fit import LineFit, fit_line
from rotateconv.kernels.line import line_kernel
from rotateconv.models import CONVS, MODELS, build_model, equal_size_width
from rotateconv.nn.batched import batched_kernels
from rotateconv.nn.conv import RotateConv2d
from rotateconv.optim import param_groups
from rotateconv.quantization.pack import load_packed, pack
from rotateconv.quantization.quantize import quantize

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
