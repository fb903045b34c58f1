"""Where the runs of a study are done: the options, and the executor that they name."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared import options
from rotateconv.lab.cli.shared.errors import refuse

if TYPE_CHECKING:
    from rotateconv.lab.study.executor import Executor

Jobs = Annotated[
    int | None,
    options.value(
        "--jobs",
        "INTEGER",
        "Runs at a time; one a core, or a GPU, each with its share of the cores; on Ray as many as fit.",
        options.RUN,
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """The options that say where runs are done."""

    on: Annotated[
        str,
        options.value(
            "--on",
            "local|ray|ray://HOST:PORT",
            "Where runs are done: processes of this machine, or tasks of a Ray cluster; local.",
            options.RUN,
            show_default=False,
        ),
    ] = "local"
    jobs: Jobs = None
    cpus: Annotated[
        int | None, options.value("--cpus-per-run", "INTEGER", "On Ray: cores, and threads; 1.", options.RUN)
    ] = None
    gpus: Annotated[
        float | None,
        options.value(
            "--gpus-per-run",
            "NUMBER",
            "On Ray: such as 0.25, for four runs on a GPU; 1 where there are any, else 0.",
            options.RUN,
        ),
    ] = None
    device: options.Device = None

    @contextmanager
    def executor(self, out: Path) -> "Iterator[Executor | None]":
        """Give the executor that the options name, and close it; None for the processes of this machine."""
        if self.on == "local":
            refuse({"--cpus-per-run": self.cpus, "--gpus-per-run": self.gpus}, "--on local")
            options.use_device(self.device)
            yield None
            return
        if self.on != "ray" and not self.on.startswith("ray://"):
            raise ConfigError(f"--on must be one of local, ray or ray://HOST:PORT, not {self.on!r}")
        refuse({"--device": self.device}, f"--on {self.on}, where --gpus-per-run says whether a run has a GPU")
        from rotateconv.lab.study.cluster import RayExecutor

        address = None if self.on == "ray" else self.on
        cpus = 1 if self.cpus is None else self.cpus
        with closing(RayExecutor(out, address, cpus=cpus, gpus=self.gpus, jobs=self.jobs)) as executor:
            yield executor
