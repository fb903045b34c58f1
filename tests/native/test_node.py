"""The node in C++: compiled aside, once for all processes, never in the way, and the same digits as without it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rotateconv import native
from rotateconv.kernels.fused import fused_line_kernel
from rotateconv.native import build, node

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())

TRAINING = """
import sys
import time
import torch
from rotateconv import RotateConv2d
from rotateconv.native import node

torch.manual_seed(0)
layer = RotateConv2d(2, 4, padding=1)
optimizer = torch.optim.SGD(layer.parameters(), 0.1)
for step in range(250):
    if step == 240 and sys.argv[1] == "wait":
        node.wait()
    optimizer.zero_grad()
    layer(torch.randn(2, 2, 5, 5)).square().mean().backward()
    optimizer.step()
if sys.argv[1] == "linger":  # until the compiler surely runs
    time.sleep(3)
print(node.status())
print(layer(torch.ones(1, 2, 5, 5)).sum().item(), layer.angle.double().sum().item())
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process that has made no kernel yet, of a user whose folder is empty."""
    native.library()
    monkeypatch.setattr(node, "_state", node._Compilation())
    for name in ("line_kernel", "line_conv2d"):
        monkeypatch.setattr(node, name, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    yield
    node._stop()


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let a script stand in for the C++ compiler."""
    file = folder / "fakec++"
    file.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))


def train(times: int) -> None:
    weight, angle = torch.randn(2, 3, requires_grad=True), torch.randn(2)
    for _ in range(times):
        fused_line_kernel(weight, angle).sum().backward()


def run_training(then: str = "") -> tuple[str, str]:
    """What a process of its own says of the node after 250 steps, and the numbers that it learned."""
    command = [sys.executable, "-c", TRAINING, then]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    status, numbers = run.stdout.splitlines()
    return status, numbers


def test_it_is_compiled_when_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, monkeypatch, "echo 'node.cpp:1: no' >&2; exit 1")
    assert node.status() == "not compiled yet: a training on a CPU does that in its background"
    with torch.no_grad():
        train_not = [fused_line_kernel(torch.randn(2, 3), torch.randn(2)) for _ in range(node.ENOUGH)]
    train(node.ENOUGH - 1)
    assert len(train_not) == node.ENOUGH
    assert node._state.thread is None
    train(1)
    assert node._state.thread is not None
    train(5)
    assert node.wait().endswith("did not compile the kernel: node.cpp:1: no")
    train(node.ENOUGH)  # and it is not tried again
    assert [file.suffix for file in (tmp_path / "cache/rotateconv").iterdir()] == [".lock"]  # and no part of one


def test_what_switches_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def outcome() -> str:
        monkeypatch.setattr(node, "_state", node._Compilation())
        assert node.status() == node.wait()
        assert node.line_kernel is None
        return node.status()

    with monkeypatch.context() as patched:
        patched.setenv(native.VARIABLE, "c")
        assert outcome() == "not used: ROTATECONV_NATIVE=c"
    with monkeypatch.context() as patched:
        patched.setenv("CXX", "nosuchc++")
        assert outcome() == "not used: no C++ compiler: nosuchc++ was not found"
        patched.setenv("CXX", 'g++ "-O2')
        assert outcome() == "not used: the command in CXX cannot be read: No closing quotation"
        patched.delenv("CXX")
        patched.setenv("PATH", str(tmp_path))
        assert outcome() == "not used: no C++ compiler: c++, g++ or clang++ was not found"
    with monkeypatch.context() as patched:
        patched.setattr(node, "_torch_folder", lambda: tmp_path)
        assert outcome() == "not used: PyTorch was installed without its headers"
    with monkeypatch.context() as patched:
        patched.setattr(native, "available", lambda: False)
        assert outcome() == "not used: the compiled kernel is not"


def test_a_file_that_others_can_write_to_or_that_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, monkeypatch, "exit 1")
    file = node._file()
    file.write_bytes(b"no library")
    file.chmod(0o722)
    assert node.wait() == f"not used: {file} is not the user's own, or others can write to it: remove it"
    file.chmod(0o700)
    monkeypatch.setattr(node, "_state", node._Compilation())
    assert node.status() == f"used in training: {file}"
    train(1)
    assert node.status().startswith("not used: ")
    assert node.line_kernel is None


def test_each_torch_and_compiler_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path, monkeypatch, "true")
    found = [node._file()]
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    found.append(node._file())
    compiler(tmp_path, monkeypatch, "true  # another")
    found.append(node._file())
    monkeypatch.setattr(node, "SOURCE", build.SOURCE)
    found.append(node._file())
    assert len(set(found)) == 4


def ends_within(process: int, seconds: float) -> bool:
    """Whether there is no such process after so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_process_that_ends_takes_the_compiler_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the programs that the compiler has started, as g++ does, which keep its messages open."""
    compiler(tmp_path, monkeypatch, f"sleep 100 & echo $! > {tmp_path}/process; wait")
    start = time.monotonic()
    status, _ = run_training("linger")
    assert status == "being compiled"
    assert time.monotonic() - start < 60
    assert ends_within(int((tmp_path / "process").read_text()), 3)
    assert {file.suffix for file in (tmp_path / "cache/rotateconv").iterdir()} == {".lock", ".so"}  # that of C


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_was_forked_begins_anew_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, monkeypatch, f"touch {tmp_path}/runs; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 1")
    train(node.ENOUGH)
    end = time.monotonic() + 30
    while not ((tmp_path / "runs").exists() and node._state.process) and time.monotonic() < end:
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        begins_anew = node._state.outcome is None and node._state.lock_file is None
        time.sleep(0.0 if not begins_anew else 20.0)
        os._exit(1)
    try:
        (tmp_path / "go").touch()
        start = time.monotonic()
        assert "did not compile" in node.wait()
        monkeypatch.setattr(node, "_state", node._Compilation())
        assert "did not compile" in node.wait()  # the lock is free, while the child lives
        assert time.monotonic() - start < 15
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


@pytest.mark.slow
def test_processes_compile_it_once_and_no_digit_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        real = " ".join(node._compiler())
    except build.BuildError as error:
        pytest.skip(str(error))
    compiler(tmp_path, monkeypatch, f'echo compiled >> {tmp_path}/log; exec {real} "$@"')
    first = subprocess.Popen([sys.executable, "-c", TRAINING, "wait"], stdout=subprocess.PIPE, text=True)
    status, numbers = run_training("wait")
    assert first.communicate()[0].splitlines() == [status, numbers]
    assert status.startswith("used: ")
    assert (tmp_path / "log").read_text() == "compiled\n"
    assert run_training() == (status, numbers)  # from the first step on
    monkeypatch.setenv(native.VARIABLE, "c")
    assert run_training("wait") == ("not used: ROTATECONV_NATIVE=c", numbers)
