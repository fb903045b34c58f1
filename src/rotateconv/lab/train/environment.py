"""Where a run was made: versions, processor, cores, threads, GPU, commit; and where it went on."""

import contextlib
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

OF_THE_CALL = ("command", "platform")
"""Keys of an environment that say how a program was called and nothing that a number depends on."""


def environment() -> dict[str, Any]:
    """Return what a number's reader asks for: versions, processor, cores, threads, GPU, commit, command."""
    import psutil

    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join(sys.argv),
        "commit": _commit(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("rotateconv", "torch", "torchvision", "accelerate")},
        "cpu": _cpu_model(),
        # What torch's kernels are written for: with another one sums are taken in another order, under one model name.
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpu_count": torch.cuda.device_count() if cuda else 0,
        "cuda": torch.version.cuda if cuda else None,
    }


def stages(record: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the environments that a run went through, each with the number of steps done before it.

    Args:
        record: a run's environment.json, in whose "resumed" `note_resumption` of the run folder has put the later ones.
    """
    return [(0, record), *((other["step"], {**record, **other}) for other in record.get("resumed", ()))]


def machine(record: dict[str, Any]) -> str:
    """Return what an environment's tensors were computed on, for people: the GPU, or the processor and threads."""
    cpu = " ".join(str(record[key]) for key in ("cpu", "cpu_capability") if key in record)
    return str(record.get("gpu") or f"{cpu}, {record.get('threads')} thread(s) a run")


def _commit() -> str | None:
    """Return the commit of the current folder, "-dirty" where files differ from it, or None outside git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
