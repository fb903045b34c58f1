"""RotateConv: convolution kernels that are line segments with a learned angle."""
# ruff: noqa: F403, F405  # the star is for type checkers, which see the names of both files

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotateconv.public import *

__all__ = [
    "CONVS",
    "MODELS",
    "ConversionEntry",
    "ConversionReport",
    "LineFit",
    "ModelCost",
    "RotateConv2d",
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
]

__version__ = "0.1.0"


class _Package(ModuleType):
    """Imports the public names with the first that is asked for.

    The command line is in this package, and torch takes longer to import than a help text takes to print.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module("rotateconv.public"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # The import system sets every submodule; `rotateconv.convert`, though, is the function and not the file.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
