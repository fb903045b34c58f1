"""How the C sources become a library; the standard library alone, for the build of the wheel runs it too."""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

LIBRARY = "_line.so"
SOURCE = Path(__file__).with_name("line.c")
HEADERS = (Path(__file__).with_name("line.h"), Path(__file__).with_name("line_real.h"))
_FLAGS = ("-std=c11", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-fPIC", "-shared", "-pthread")
SECONDS = 120
"""After which a compiler is given up."""


class BuildError(Exception):
    """There is no library, and this sentence says why."""


def find_compiler(
    language: str = "C", variable: str = "CC", names: Sequence[str] = ("cc", "gcc", "clang")
) -> list[str]:
    """The command of a compiler: that of the environment variable, else the first of the names that there is.

    Raises:
        BuildError: If there is none.
    """
    try:
        command = shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise BuildError(f"the command in {variable} cannot be read: {error}") from error
    for candidate in [command] if command else [[name] for name in names]:
        if found := shutil.which(candidate[0]):
            return [found, *candidate[1:]]
    wanted = " ".join(command) or f"{', '.join(names[:-1])} or {names[-1]}"
    raise BuildError(f"no {language} compiler: {wanted} was not found")


def build_key(
    compiler: Sequence[str] | None = None,
    flags: Sequence[str] = _FLAGS,
    sources: Iterable[Path] | None = None,
) -> str:
    """What a library depends on, as 16 hexadecimal digits: sources, compiler, flags and kind of processor.

    Raises:
        BuildError: If there is no compiler.
    """
    compiler = find_compiler() if compiler is None else compiler
    file = Path(compiler[0]).resolve()
    state = file.stat()
    parts = [*compiler, str(file), state.st_size, state.st_mtime_ns, *flags, platform.system(), platform.machine()]
    digest = hashlib.sha256(repr(parts).encode())
    for source in (SOURCE, *HEADERS) if sources is None else sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(target: Path, flags: tuple[str, ...] = ()) -> None:
    """Compile the sources into the file `target`, for every processor of this kind where the compiler can do that.

    Args:
        target: The library to write.
        flags: Further flags, after `_FLAGS`.

    Raises:
        BuildError: If there is no compiler, or it fails.
    """
    command = [*find_compiler(), *_FLAGS, *flags]
    # Older compilers, and some C libraries, do not know functions in several versions.
    try:
        run_compiler([*command, "-DCLONES", str(SOURCE), "-o", str(target), "-lm"])
    except BuildError:
        run_compiler([*command, str(SOURCE), "-o", str(target), "-lm"])


def run_compiler(command: Sequence[str]) -> None:
    """Run a compiler, and wait for it; BuildError if it fails, or takes more than `SECONDS`."""
    try:
        with start_compiler(command) as process:
            finish_compiler(process, SECONDS)
    except OSError as error:
        raise BuildError(f"{command[0]} did not compile the kernel: {error}") from error


def start_compiler(command: Sequence[str]) -> "subprocess.Popen[str]":
    """The process of a compiler, in a session of its own: Ctrl-C in a terminal does not reach it."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def finish_compiler(process: "subprocess.Popen[str]", seconds: float) -> None:
    """Wait for the compiler that was started; BuildError if it fails, or takes longer."""
    name = cast("list[str]", process.args)[0]
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{name} did not compile the kernel within {seconds:g} seconds") from error
    finally:
        end_compiler(process)
    if process.returncode != 0:
        lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        raise BuildError(f"{name} did not compile the kernel: {lines[-1]}")


def end_compiler(process: "subprocess.Popen[str]") -> None:
    """End a compiler that runs, with the programs that it has started."""
    if process.poll() is not None:
        return
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):  # another thread has waited for it meanwhile
        os.killpg(process.pid, signal.SIGKILL)
