"""Where a run was made: versions, processor, cores, threads, GPU, commit; and where it went on."""

import contextlib
import dataclasses
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rotateconv.errors import RunError
from rotateconv.lab.naming import counted
from rotateconv.lab.plain import Plain, from_json, to_json


@dataclass(frozen=True)
class Environment(Plain):
    """What a number's reader asks for.

    Attributes:
        commit: Of the current folder, "-dirty" where files differ from it; None outside git.
        python: Its version.
        versions: Of the packages that a number depends on; None for one that is not installed.
        cpu: The processor's name.
        physical_cores, logical_cores, threads: Of the machine, and that PyTorch uses.
        memory_bytes: Of the machine.
        gpu, gpu_count, cuda: Name, number, and CUDA's version; None and 0 without one.
        cpu_capability: What PyTorch's kernels are written for: with another one sums are taken in another order, under
            one processor's name. Older runs do not have it.
        command, platform: How the program was called and on which system: no number depends on them.
    """

    commit: str | None
    python: str
    versions: dict[str, str | None]
    cpu: str
    physical_cores: int | None
    logical_cores: int | None
    threads: int
    memory_bytes: int
    gpu: str | None
    gpu_count: int
    cuda: str | None
    cpu_capability: str | None = None
    command: str | None = None
    platform: str | None = None

    @classmethod
    def now(cls) -> "Environment":
        """Describe this process."""
        import psutil

        cuda = torch.cuda.is_available()
        return cls(
            commit=_commit(),
            python=platform.python_version(),
            versions={name: _version(name) for name in ("rotateconv", "torch", "torchvision", "accelerate")},
            cpu=_cpu_model(),
            physical_cores=psutil.cpu_count(logical=False),
            logical_cores=psutil.cpu_count(),
            threads=torch.get_num_threads(),
            memory_bytes=psutil.virtual_memory().total,
            gpu=torch.cuda.get_device_name() if cuda else None,
            gpu_count=torch.cuda.device_count() if cuda else 0,
            cuda=torch.version.cuda if cuda else None,
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            command=_command(),
            platform=platform.platform(),
        )

    @property
    def hardware(self) -> str:
        """What computes, for people: the GPU, or the processor and its threads."""
        cpu = self.cpu if self.cpu_capability is None else f"{self.cpu} {self.cpu_capability}"
        return self.gpu or f"{cpu}, {counted(self.threads, 'thread')} a run"

    def of_no_call(self) -> "Environment":
        """Return it without what no number depends on."""
        return dataclasses.replace(self, command=None, platform=None)


@dataclass(frozen=True)
class Stage:
    """An environment in which a run went on after so many steps."""

    step: int
    environment: Environment


@dataclass(frozen=True)
class EnvironmentHistory:
    """The environments of a run, in the order of their steps, the first one at step 0: environment.json.

    In JSON it is the first one with a list "resumed": of each later one the step, and all that is other than at the
    beginning.
    """

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, environment: Environment) -> "EnvironmentHistory":
        """Begin with an environment."""
        return cls((Stage(0, environment),))

    @property
    def began(self) -> Environment:
        """The first one."""
        return self.stages[0].environment

    def resumed(self, step: int, environment: Environment) -> "EnvironmentHistory":
        """Return it with the environment in which the run goes on, if that is another one than before."""
        began = self.began
        other = dataclasses.replace(environment, command=began.command, platform=began.platform)
        if other == self.stages[-1].environment:
            return self
        return EnvironmentHistory((*self.stages, Stage(step, other)))

    def of_no_call(self) -> "EnvironmentHistory":
        """Return it without what no number depends on."""
        return EnvironmentHistory(tuple(Stage(s.step, s.environment.of_no_call()) for s in self.stages))

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str | Path) -> "EnvironmentHistory":
        """Return what `to_json` described; RunError for anything else."""
        first = {key: item for key, item in value.items() if key != "resumed"}
        stages = [Stage(0, from_json(Environment, first, where))]
        for entry in value.get("resumed", []):
            if not isinstance(entry, dict) or type(entry.get("step")) is not int:
                raise RunError(f"{where}: an entry of resumed must have a step, found {entry!r}: restore the file")
            changes = {key: item for key, item in entry.items() if key != "step"}
            stages.append(Stage(entry["step"], from_json(Environment, {**first, **changes}, where)))
        return cls(tuple(stages))

    def to_json(self) -> dict[str, Any]:
        """Return it as `json.dumps` takes it."""
        first = dataclasses.asdict(self.began)
        later = [
            {"step": s.step, **{k: v for k, v in dataclasses.asdict(s.environment).items() if v != first[k]}}
            for s in self.stages[1:]
        ]
        return to_json(self.began) | ({"resumed": later} if later else {})


def _commit() -> str | None:
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


def _command() -> str:
    """The command line, to be pasted: without where on this computer rotateconv lies."""
    own = sys.argv[0].endswith(("rotateconv", "rotateconv.exe", "rotateconv/__main__.py"))
    return shlex.join(["rotateconv" if own else sys.argv[0], *sys.argv[1:]])


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
