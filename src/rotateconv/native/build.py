"""How the C sources become a library; the standard library alone, for the build of the wheel runs it too."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

LIBRARY = "_line.so"
SOURCE = Path(__file__).with_name("line.c")
HEADER = Path(__file__).with_name("line_real.h")
_FLAGS = ("-std=c11", "-O2", "-ftree-vectorize", "-ffp-contract=off", "-fPIC", "-shared", "-pthread")
SECONDS = 120
"""After which a compiler is given up."""


class BuildError(Exception):
    """There is no library, and this sentence says why."""


def find_compiler() -> list[str]:
    """The command of the C compiler: that of $CC, else the first of cc, gcc and clang that there is.

    Raises:
        BuildError: If there is none.
    """
    command = shlex.split(os.environ.get("CC", ""))
    for candidate in [command] if command else [["cc"], ["gcc"], ["clang"]]:
        if found := shutil.which(candidate[0]):
            return [found, *candidate[1:]]
    raise BuildError(f"no C compiler: {' '.join(command) or 'cc, gcc or clang'} was not found")


def build_key() -> str:
    """What the library depends on, as 16 hexadecimal digits: sources, compiler, flags and kind of processor.

    Raises:
        BuildError: If there is no compiler.
    """
    compiler = find_compiler()
    file = Path(compiler[0]).resolve()
    state = file.stat()
    parts = [*compiler, str(file), state.st_size, state.st_mtime_ns, *_FLAGS, platform.system(), platform.machine()]
    digest = hashlib.sha256(repr(parts).encode())
    for source in (SOURCE, HEADER):
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
    for clones in (["-DCLONES"], []):
        try:
            run = subprocess.run(
                [*command, *clones, str(SOURCE), "-o", str(target), "-lm"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{command[0]} did not compile the kernel: {error}") from error
        if run.returncode == 0:
            return
    lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
    raise BuildError(f"{command[0]} did not compile the kernel: {lines[-1]}")
