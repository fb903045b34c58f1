"""A run folder belongs to one process at a time, and to nobody once that process is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.train.lock import locked

HOLD = """
import sys
from pathlib import Path
from rotateconv.lab.train.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_holds_it(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(RunError, match=f"is being trained by process {holder.pid} on '.*': wait for it, or"):
        locked(tmp_path).__enter__()


def test_a_killed_process_holds_nothing(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_it_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            pass
