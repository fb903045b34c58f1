"""Where the runs of a study are done: the options, and the executor that they name."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rotateconv.errors import ConfigError
from rotateconv.lab.cli import options
from rotateconv.lab.cli.errors import refuse

if TYPE_CHECKING:
    from rotateconv.lab.study.executor import Executor

On = Annotated[
    str,
    options.value(
        "--on",
        "local|ray|ray://HOST:PORT",
        "Where runs are done: processes of this machine, or tasks of a Ray cluster; local.",
        options.RUN,
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    options.value(
        "--jobs",
        "INTEGER",
        "Runs at a time; one a core, or a GPU, each with its share of the cores; on Ray as many as fit.",
        options.RUN,
    ),
]
Together = Annotated[
    int | None,
    options.value(
        "--together",
        "INTEGER",
        "Runs in one process, taking turns step by step: for small models on a GPU; 1.",
        options.RUN,
    ),
]
Cpus = Annotated[int | None, options.value("--cpus-per-run", "INTEGER", "On Ray: cores, and threads; 1.", options.RUN)]
Gpus = Annotated[
    float | None,
    options.value(
        "--gpus-per-run",
        "NUMBER",
        "On Ray: such as 0.25, for four runs on a GPU; 1 where there are any, else 0.",
        options.RUN,
    ),
]


@contextmanager
def chosen_executor(
    on: str, out: Path, *, jobs: int | None, cpus: int | None, gpus: float | None, device: str | None
) -> "Iterator[Executor | None]":
    """Give the executor that the options name, and close it; None for the processes of this machine."""
    if on == "local":
        refuse({"--cpus-per-run": cpus, "--gpus-per-run": gpus}, "--on local")
        options.use_device(device)
        yield None
        return
    if on != "ray" and not on.startswith("ray://"):
        raise ConfigError(f"--on must be one of local, ray or ray://HOST:PORT, not {on!r}")
    refuse({"--device": device}, f"--on {on}, where --gpus-per-run says whether a run has a GPU")
    from rotateconv.lab.study.cluster import RayExecutor

    with closing(
        RayExecutor(out, None if on == "ray" else on, cpus=1 if cpus is None else cpus, gpus=gpus, jobs=jobs)
    ) as executor:
        yield executor
