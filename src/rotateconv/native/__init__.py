"""The compiled kernel of a CPU: where it comes from, whether it is used, and why.

It is plain C behind ctypes, part of the package where it was installed with a compiler at hand, else compiled at its
first use into a folder of the user's; without a compiler the tensor operations of PyTorch do the same. The
environment variable ROTATECONV_NATIVE=0, set before the first use, switches it off. `rotateconv.native.node` calls it
from C++ where it can; ROTATECONV_NATIVE=c keeps to Python.
"""

import ctypes
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from rotateconv.native.build import LIBRARY, BuildError, build_key, compile_library
from rotateconv.native.trust import check_file, private_folder

VARIABLE = "ROTATECONV_NATIVE"
VERSION = 3
"""Of the interface of the library, as line.c has it."""


class Call(ctypes.Structure):
    """What the calls of the library for layers of one sort have in common, as line.c has it."""

    _fields_ = (
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("rows", "length")),
        *((name, ctypes.c_int) for name in ("size", "taps", "square", "type", "last", "is_double", "threads")),
    )


def available() -> bool:
    """Whether kernels on a CPU are made by the compiled library; `status` says why.

    Example:
        >>> available() == (library() is not None)
        True
    """
    return library() is not None


def status() -> str:
    """One sentence: whether the compiled kernel is used, from which file, or why it is not.

    Example:
        >>> status().startswith("used" if available() else "not used")
        True
    """
    return _load()[1]


def library() -> ctypes.CDLL | None:
    """The loaded library, compiled before if need be; None where the tensor operations have to do."""
    return _load()[0]


@lru_cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(VARIABLE) == "0":
        return None, f"not used: {VARIABLE}=0"
    installed = Path(__file__).with_name(LIBRARY)
    try:
        if installed.exists():
            return _open(installed), f"used: {installed}, compiled when the package was installed"
        file = _compiled_for_user()
        return _open(file), f"used: {file}, compiled at its first use"
    except (BuildError, OSError) as error:
        return None, f"not used: {error}"


def _compiled_for_user() -> Path:
    """The library in the user's cache, compiled if these sources have not been by this compiler."""
    folder = private_folder()
    file = folder / f"line-{build_key()}.so"
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:  # a name of its own, for its owner alone
            made = Path(temporary) / LIBRARY
            compile_library(made)
            made.chmod(0o700)
            made.replace(file)
    check_file(file)
    return file


def _open(file: Path) -> ctypes.CDLL:
    """The library with its functions' types declared.

    Raises:
        OSError: If it cannot be loaded, or is that of another version.
    """
    found = ctypes.CDLL(str(file))
    version = getattr(found, "rotateconv_version", lambda: None)()
    if version != VERSION:
        raise OSError(f"expected version {VERSION} of the compiled kernel in {file}, found {version}: remove the file")
    found.rotateconv_line_forward.argtypes = [ctypes.c_void_p] * 5  # a Call, then tensors
    found.rotateconv_line_backward.argtypes = [ctypes.c_void_p] * 8
    found.rotateconv_line_forward.restype = found.rotateconv_line_backward.restype = None
    return found
