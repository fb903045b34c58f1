"""A run folder belongs to one process at a time, and to nobody once that process is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.train.lock import ATTEMPT, held_by_another, locked, take_over

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
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, ATTEMPT: "study-1"},
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


def test_what_a_dead_attempt_holds_is_free_for_the_next_one(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    """The holder stands for a machine that is gone, whose lock the server of a shared disk keeps."""
    take_over(tmp_path, ["study-0", "another-1"], patience=0)
    with pytest.raises(RunError, match="is being trained by process"):
        locked(tmp_path).__enter__()
    take_over(tmp_path, ["study-0", "study-1"], patience=0)
    with locked(tmp_path):
        assert not held_by_another(tmp_path, "study-2")  # it says no name


def test_an_attempt_that_was_taken_for_dead_learns_of_it(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    assert held_by_another(tmp_path, "study-0")
    assert not held_by_another(tmp_path, "study-1")
    take_over(tmp_path / "nothing", ["study-1"])
    assert not held_by_another(tmp_path / "nothing", "study-1")
