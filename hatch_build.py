"""The build of the wheel: with the compiled kernel where there is a C compiler, else of Python alone."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class CompiledKernel(BuildHookInterface[Any]):
    """Compiles the library into a temporary folder, from where it goes into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to the wheel and name its platform; an editable package compiles at its first use."""
        if version == "editable" or os.environ.get("ROTATECONV_NATIVE") == "0":
            return
        build = load_build(Path(self.root))
        folder = tempfile.TemporaryDirectory()
        self.folder = folder  # until the wheel is written
        library = Path(folder.name) / build.LIBRARY
        try:
            build.compile_library(library)
        except build.BuildError as error:
            self.app.display_warning(f"rotateconv is built without its compiled kernel, and works: {error}")
            return
        build_data["force_include"][str(library)] = f"rotateconv/native/{build.LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"


def load_build(root: Path) -> ModuleType:
    """`rotateconv.native.build` from its file: the package itself is not installed yet."""
    spec = importlib.util.spec_from_file_location("rotateconv_native_build", root / "src/rotateconv/native/build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
