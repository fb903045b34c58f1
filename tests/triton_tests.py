"""Tests of Triton kernels in a process of their own: in Triton's interpreter or, where there is one, on a GPU."""

import os
import subprocess
import sys
from pathlib import Path


def run_triton_tests(name: str, *, interpret: bool) -> None:
    """Run a file of tests beside this one; all must pass and none may be skipped."""
    # In a process of its own: Triton decides when it is imported.
    file = Path(__file__).with_name(name)
    # A worker of pytest-xdist is known by its variables, and the process is none.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), "-p", "no:cacheprovider", "-q"],
        env={**environment, "TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped" not in result.stdout
