"""The compiled kernel as a node of PyTorch's graph: C++, compiled aside for the PyTorch that is installed.

The node in Python costs 2 to 3 % of a training step of a small model: between two convolutions every function of it is
fetched again from memory. One in C++ is tied to the version of PyTorch, so that no wheel can hold it. It is compiled
once for each version, in the background of the first process that trains on a CPU, and kept in the user's folder. Until
then, and where there is no C++ compiler, the node in Python calls the same functions of C: no digit changes.
ROTATECONV_NATIVE=c keeps to that one.
"""

import atexit
import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rotateconv import native
from rotateconv.native.build import (
    HEADERS,
    BuildError,
    build_key,
    end_compiler,
    find_compiler,
    finish_compiler,
    start_compiler,
)
from rotateconv.native.trust import check_file, private_folder

SOURCE = Path(__file__).with_name("node.cpp")
ENOUGH = 200
"""Kernels for training in one process, some ten steps of a small model, after which the node is compiled."""
SECONDS = 600
"""After which the compiler is given up: on a busy machine it may take minutes."""
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared")

line_kernel: Callable[..., Tensor | None] | None = None
"""Once it is loaded: the kernels, of (weight, angle, profile, size, path, scale, dtype, last), or None.

None is for tensors that are not plain, which Python sees to.
"""
line_conv2d: Callable[..., Tensor | None] | None = None
"""The same with the convolution: (input, weight, angle, profile, bias, size, path, scale, stride, padding, ...)."""


class _Compilation:
    """How far it has come in this process.

    Attributes:
        outcome: What `status` says; None before the start.
        asked: Kernels that could have been made by it.
        thread: That compiles.
        process: The compiler.
        ends: Whether this process is about to end.
        lock_file: That is locked while this process compiles.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.outcome: str | None = None
        self.asked = 0
        self.thread: threading.Thread | None = None
        self.process: subprocess.Popen[str] | None = None
        self.ends = False
        self.lock_file: IO[str] | None = None


_state = _Compilation()


def ask() -> None:
    """A kernel was made for training without it: load it where it is, compile it if that goes on."""
    _state.asked += 1
    if _state.asked == 1:
        _begin(compiles=False)
    elif _state.asked == ENOUGH:
        _begin(compiles=True)


def wait() -> str:
    """Load the node, and compile it if need be; return when it is there or cannot be had.

    Some fifteen seconds the first time; in an image of a container, say, while it is built.

    Returns:
        What `status` says.

    Example:
        >>> wait().split(":")[0]  # doctest: +SKIP
        'used'
    """
    _begin(compiles=True)
    if _state.thread is not None:
        _state.thread.join()
    return status()


def status() -> str:
    """One sentence: whether the node in C++ is used, from which file, or why it is not."""
    if _state.outcome is not None:
        return _state.outcome
    try:
        file = _file()
    except (BuildError, OSError) as error:
        return f"not used: {error}"
    if file.exists():
        return f"used in training: {file}"
    return "not compiled yet: a training on a CPU does that in its background"


def _begin(compiles: bool) -> None:
    """Load the node if it is there, else begin to compile it in the background; once."""
    with _state.lock:
        if _state.outcome is not None:
            return
        try:
            file = _file()
            if file.exists():
                _load(file)
            elif compiles:
                _state.outcome = "being compiled"
                atexit.register(_stop)
                _state.thread = threading.Thread(target=_compile, args=(file,), name="rotateconv-compiler", daemon=True)
                _state.thread.start()
        except (BuildError, OSError, RuntimeError) as error:
            _state.outcome = f"not used: {error}"


def _file() -> Path:
    """Where the node is, or will be.

    Raises:
        BuildError: If it cannot be compiled, or is not wanted.
    """
    switch = os.environ.get(native.VARIABLE)
    if switch == "c":
        raise BuildError(f"{native.VARIABLE}={switch}")
    if not native.available():
        raise BuildError("the compiled kernel is not")
    if not (_torch_folder() / "include/torch/library.h").exists():
        raise BuildError("PyTorch was installed without its headers")
    flags = [*_FLAGS, torch.__version__, str(torch.version.git_version)]
    key = build_key(_compiler(), flags, [SOURCE, HEADERS[0]])
    return private_folder() / f"node-{key}.so"


def _compiler() -> list[str]:
    return find_compiler("C++", "CXX", ("c++", "g++", "clang++"))


def _torch_folder() -> Path:
    return Path(torch.__file__).parent


def _compile(file: Path) -> None:
    """Write the file, unless another process has, and load it."""
    try:
        with _one_at_a_time(file.with_suffix(".lock")):
            if not file.exists():
                _write(file)
        _load(file)
    except (BuildError, OSError, RuntimeError) as error:
        _state.outcome = f"not used: {error}"


def _write(file: Path) -> None:
    """Compile, under a name that the next one would write again if this one were killed."""
    made = file.with_suffix(".part")
    try:
        with start_compiler(_command(made)) as process:
            _state.process = process
            if _state.ends:
                end_compiler(process)
            finish_compiler(process, SECONDS)
        made.chmod(0o700)
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)


def _command(target: Path) -> list[str]:
    folder = _torch_folder()
    includes = ["-isystem", str(folder / "include"), "-isystem", str(folder / "include/torch/csrc/api/include")]
    libraries = [f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    return [*_compiler(), *_FLAGS, *includes, str(SOURCE), "-o", str(target), *libraries]


@contextlib.contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Let one process compile, and the others wait for it."""
    import fcntl  # where files have owners

    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _state.lock_file = lock
        try:
            yield
        finally:  # closed, it would stay locked by processes that were forked meanwhile
            _state.lock_file = None
            fcntl.flock(lock, fcntl.LOCK_UN)


def _load(file: Path) -> None:
    """Load the node, and give it the functions of the C library."""
    global line_kernel, line_conv2d
    check_file(file)
    torch.ops.load_library(str(file))
    operators: Any = torch.ops.rotateconv
    library = native.library()
    assert library is not None
    functions = (library.rotateconv_line_forward, library.rotateconv_line_backward)
    operators.bind(*[ctypes.cast(function, ctypes.c_void_p).value for function in functions])
    _state.outcome = f"used: {file}"
    line_kernel, line_conv2d = operators.line_kernel.default, operators.line_conv2d.default


def _stop() -> None:
    """End the compiler, which is not to outlive this process, and let the thread remove what it began."""
    _state.ends = True
    if _state.process is not None:
        end_compiler(_state.process)
    if _state.thread is not None:
        _state.thread.join(timeout=5)


def _start_anew() -> None:
    """In a process that was forked, which has no thread that compiles: begin from nothing, unless it is loaded."""
    global _state
    if line_kernel is None:
        lock_file, _state = _state.lock_file, _Compilation()
        if lock_file is not None:
            lock_file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
