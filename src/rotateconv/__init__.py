"""RotateConv: convolution kernels that are line segments with a learned angle.

Names load when they are first asked for, so that the command line can show its help before torch is there.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotateconv.convert.convert import convert as convert
    from rotateconv.convert.fuse import fuse as fuse
    from rotateconv.convert.recalibrate import recalibrate as recalibrate
    from rotateconv.convert.report import ConversionEntry as ConversionEntry
    from rotateconv.convert.report import ConversionReport as ConversionReport
    from rotateconv.cost import ModelCost as ModelCost
    from rotateconv.cost import cost as cost
    from rotateconv.export.export import export_onnx as export_onnx
    from rotateconv.kernels.fit import LineFit as LineFit
    from rotateconv.kernels.fit import fit_line as fit_line
    from rotateconv.kernels.line import line_kernel as line_kernel
    from rotateconv.models import CONVS as CONVS
    from rotateconv.models import MODELS as MODELS
    from rotateconv.models import build_model as build_model
    from rotateconv.models import equal_size_width as equal_size_width
    from rotateconv.nn.batched import batched_kernels as batched_kernels
    from rotateconv.nn.config import RotateConfig as RotateConfig
    from rotateconv.nn.conv import RotateConv2d as RotateConv2d
    from rotateconv.optim import param_groups as param_groups
    from rotateconv.quantization.pack import load_packed as load_packed
    from rotateconv.quantization.pack import pack as pack
    from rotateconv.quantization.qat import QuantizedTraining as QuantizedTraining
    from rotateconv.quantization.quantize import quantize as quantize

# Where each name of the public surface lives: what the block above tells type checkers (a test compares them).
_HOMES = {
    "CONVS": "models",
    "MODELS": "models",
    "ConversionEntry": "convert.report",
    "ConversionReport": "convert.report",
    "LineFit": "kernels.fit",
    "ModelCost": "cost",
    "QuantizedTraining": "quantization.qat",
    "RotateConfig": "nn.config",
    "RotateConv2d": "nn.conv",
    "batched_kernels": "nn.batched",
    "build_model": "models",
    "convert": "convert.convert",
    "cost": "cost",
    "equal_size_width": "models",
    "export_onnx": "export.export",
    "fit_line": "kernels.fit",
    "fuse": "convert.fuse",
    "line_kernel": "kernels.line",
    "load_packed": "quantization.pack",
    "pack": "quantization.pack",
    "param_groups": "optim",
    "quantize": "quantization.quantize",
    "recalibrate": "convert.recalibrate",
}
_ROOMS = ("errors", "export", "hub", "kernels", "models", "nn", "optim", "quantization")

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a public name, or a room such as `rotateconv.nn`, when it is first asked for."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        for home in (*_HOMES.values(), name):  # with what is in the rooms, as if this file had imported everything
            importlib.import_module(f"{__name__}.{home}")
        return sys.modules[f"{__name__}.{name}"]
    if name in ("native", "lab"):  # the rooms above stand on the one; nothing but whoever asks needs the other
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


class _Package(ModuleType):
    """This package, in which a function keeps its name although a module is called the same."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing rotateconv.cost or rotateconv.convert binds the module here; the name is that of the function.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
