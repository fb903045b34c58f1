"""What the process keeps of the memory that it frees, and who asks for it."""

import json
import os
import platform
import subprocess
import sys

import pytest

from rotateconv.lab.cli import main
from rotateconv.lab.train import process_memory as memory

# A block above the largest that glibc ever keeps by itself, taken, filled and freed 32 times.
PROGRAM = """
import json, resource, sys, torch
from rotateconv.lab.train.process_memory import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else None
torch.set_num_threads(1)
faults = []
for _ in range(32):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16 * 2**20).fill_(1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps([done, faults]))
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def run(mode: str, **environment: str) -> tuple[bool | None, list[int]]:
    clean = {name: value for name, value in os.environ.items() if name not in memory._BY_HAND}
    command = [sys.executable, "-c", PROGRAM, mode]
    output = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout
    return tuple(json.loads(output))


@pytest.mark.slow
@glibc
def test_a_freed_block_is_taken_again_without_faults() -> None:
    _, without = run("leave")
    done, kept = run("keep")
    assert done
    assert min(without) > 0  # every time all of it, in pages of any size
    # A few times at the start, as long as a small block in between leaves a hole that is too short, then hardly any.
    assert sum(kept[16:]) < 2 * min(without)


@pytest.mark.slow
@glibc
def test_the_environment_of_the_user_decides() -> None:
    done, faults = run("keep", MALLOC_MMAP_THRESHOLD_="65536")
    assert done is False
    assert min(faults) > 0


@pytest.mark.parametrize("error", [OSError, AttributeError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def missing(name: None) -> None:
        raise error

    for name in memory._BY_HAND:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", missing)
    assert memory.keep_freed_memory() is False


def test_commands_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("rotateconv.lab.train.process_memory.keep_freed_memory", lambda: asked.append("command"))
    monkeypatch.setattr(sys, "argv", ["rotateconv", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert asked == ["command"]
