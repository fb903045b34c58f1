"""The laboratory: trains, compares and reports; nothing of the library imports it.

From Python: `load` a run folder, `fit`, `convert_run` and `finish` make one, `shrink` searches the best file of so many
bytes, `evaluate` measures a run, `save_for_hub` makes a folder for the Hugging Face Hub of it, `trust` names a function
that a run folder may have called. Names load when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotateconv.lab.api import LoadedRun as LoadedRun
    from rotateconv.lab.api import evaluate as evaluate
    from rotateconv.lab.api import load as load
    from rotateconv.lab.config import RunConfig as RunConfig
    from rotateconv.lab.config import make_config as make_config
    from rotateconv.lab.data.sets import load_data as load_data
    from rotateconv.lab.hub_folder import save_for_hub as save_for_hub
    from rotateconv.lab.predictions import Prediction as Prediction
    from rotateconv.lab.predictions import predict as predict
    from rotateconv.lab.study.convert import convert_run as convert_run
    from rotateconv.lab.study.finish import finish as finish
    from rotateconv.lab.study.shrink import shrink as shrink
    from rotateconv.lab.train.fit import fit as fit
    from rotateconv.lab.train.trust import allow as trust  # noqa: F401

_HOMES = {
    "LoadedRun": ("api", "LoadedRun"),
    "Prediction": ("predictions", "Prediction"),
    "RunConfig": ("config", "RunConfig"),
    "convert_run": ("study.convert", "convert_run"),
    "evaluate": ("api", "evaluate"),
    "finish": ("study.finish", "finish"),
    "fit": ("train.fit", "fit"),
    "load": ("api", "load"),
    "load_data": ("data.sets", "load_data"),
    "make_config": ("config", "make_config"),
    "predict": ("predictions", "predict"),
    "save_for_hub": ("hub_folder", "save_for_hub"),
    "shrink": ("study.shrink", "shrink"),
    "trust": ("train.trust", "allow"),
}

__all__ = sorted(_HOMES)
_ROOMS = ("bench", "cli", "data", "report", "study", "train")
"""Attributes without an import of their own, as those of `rotateconv`."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
