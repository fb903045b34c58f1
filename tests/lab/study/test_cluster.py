"""Laws of a study on a Ray cluster: it finds what a local one finds, also when a node dies or somebody stops it."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import invoke
from rotateconv.errors import ConfigError
from rotateconv.lab.config import make_config
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.exit_codes import CommandError
from rotateconv.lab.study.cluster import TOKEN, RayExecutor, unseen
from rotateconv.lab.study.compare import compare
from rotateconv.lab.study.events import RunEvent, RunStopped, StudyEvent, TaskEvent
from rotateconv.lab.study.executor import run_tasks
from rotateconv.lab.study.plan import Study
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train.checkpoint import load_checkpoint
from rotateconv.lab.train.events import EpochEnd, RunStart, RunWarning
from rotateconv.lab.train.run_folder import read_records
from small import small_digits

DIGITS = DataDescription.of(small_digits(1295, 143, 359))
SMALL = {"width": 0.25, "lr": 0.01, "epochs": 12}


def test_a_folder_that_is_not_the_same_one_is_seen(tmp_path: Path) -> None:
    sentence = f"does not see the folder {tmp_path} of the machine that started the study: give --out a path"
    assert sentence in str(unseen(tmp_path, "a"))
    (tmp_path / TOKEN).write_text("b")
    assert sentence in str(unseen(tmp_path, "a"))
    (tmp_path / TOKEN).write_text("a")
    assert unseen(tmp_path, "a") is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--on", "slurm"], "--on must be one of local, ray or ray://HOST:PORT, not 'slurm'"),
        (["--gpus-per-run", "0.5"], "--gpus-per-run has no meaning with --on local: leave one of them out"),
        (["--on", "ray", "--device", "cpu"], "--device has no meaning with --on ray, where --gpus-per-run says"),
        (["--on", "ray", "--cpus-per-run", "0"], "a run needs 1 core or more"),
        (["--on", "ray://127.0.0.1:1"], "no Ray cluster can be reached at ray://127.0.0.1:1: [Errno"),
    ],
)
def test_options_that_have_no_meaning(tmp_path: Path, options: list[str], sentence: str) -> None:
    if "ray://" in " ".join(options):
        pytest.importorskip("ray", reason="Ray is not installed")
    result = invoke(["compare", *options, "--out", tmp_path / "out"])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--on ray needs a package that does not import .* 'rotateconv\[ray\]'"):
        RayExecutor(tmp_path)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that does no runs, and two nodes of a core each."""
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **memory)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def numbers(records: list[RunRecord]) -> list[RunRecord]:
    """Records without what no two runs have in common: times, memory, and where the run was made."""
    found = []
    for record in records:
        result = record.result
        times = dict.fromkeys(("seconds", "seconds_per_epoch", "images_per_second", "peak_memory_bytes"), 0)
        found.append(
            replace(
                record,
                environment=None,
                summary=replace(result, **{key: value for key, value in times.items() if hasattr(result, key)}),
                curves=replace(record.curves, seconds=()),
            )
        )
    return found


@pytest.mark.cluster
def test_a_node_dies_and_its_run_goes_on_elsewhere(cluster: Any, tmp_path: Path) -> None:
    # Enough epochs that on a busy machine, too, the first run is not over when the second one has its checkpoints.
    study = Study(make_config("digits", changes={**SMALL, "epochs": 24}), convs=("conv3x3", "rotate4"), seeds=1)
    starts: dict[str, list[int]] = {}
    epochs: dict[str, int] = {}
    warnings: list[str] = []

    def kill(event: StudyEvent) -> None:
        if not isinstance(event, RunEvent):
            return
        match event.event:
            case RunStart():
                starts.setdefault(event.run, []).append(event.event.step)
            case RunWarning(message):
                warnings.append(message)
            case EpochEnd(record):
                epochs[event.run] = record.epoch
                if len(epochs) == len(cluster.worker_nodes) == 2 and min(epochs.values()) >= 2:
                    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    found = compare(study, DIGITS, tmp_path / "ray", executor=RayExecutor(tmp_path / "ray"), on_event=kill)
    assert len(cluster.worker_nodes) == 1
    (warning,) = warnings
    assert "lost its process or its node" in warning
    first, second = sorted(starts.values(), key=len)
    assert first == [0]
    assert second[0] == 0 < second[1]  # from a checkpoint, not from the beginning
    assert not (tmp_path / "ray" / TOKEN).exists()
    local = compare(study, DIGITS, tmp_path / "local", jobs=2)
    assert [record.result.weights_sha256 for record in found] == [record.result.weights_sha256 for record in local]
    assert numbers(found) == numbers(local)


@pytest.mark.cluster
def test_one_run_is_cancelled_and_a_node_without_the_disk_is_a_sentence(cluster: Any, tmp_path: Path) -> None:
    config = make_config("digits", changes={**SMALL, "epochs": 500})
    tasks = [Task("long", config, tmp_path / "long"), Task("short", replace(config, epochs=1), tmp_path / "short")]
    ends: list[TaskEvent] = []
    executor = RayExecutor(tmp_path)

    def on_event(event: TaskEvent) -> None:
        if not (isinstance(event, RunEvent) and isinstance(event.event, RunStart | EpochEnd)):
            ends.append(event)
        elif event.run == "long" and isinstance(event.event, EpochEnd):
            executor.cancel("long")

    run_tasks(tasks, executor, 2, on_event)
    assert RunStopped("long") in ends
    assert (tmp_path / "short" / "summary.json").is_file()
    assert load_checkpoint(tmp_path / "long" / "checkpoints") is not None
    blind = RayExecutor(tmp_path / "unseen")
    blind.proof = tmp_path / "another disk"  # so that no token is written
    with pytest.raises(CommandError, match=r"the node \S+ does not see the folder .*unseen") as error:
        run_tasks(tasks[1:], blind, 1, ends.append)
    assert error.value.failure.code == 2


@pytest.mark.cluster
def test_ctrl_c_saves_and_the_same_command_goes_on(cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--width", "0.25", "--lr", "0.01", "--epochs", "12", "--seeds", "2", "--convs", "conv3x3"]
    arguments = ["compare", *options, "--on", "ray", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "rotateconv", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    runs = [out / "runs" / f"resnet20-conv3x3-w0.25-seed{seed}" for seed in range(2)]
    deadline = time.monotonic() + 120
    while not all((run / "metrics.jsonl").exists() for run in runs):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.startswith("stopped after 0 of 2 runs; those that were running are saved: go on with rotateconv ")
    assert all(load_checkpoint(run / "checkpoints").state["step"] > 0 for run in runs)
    assert all(0 < len(read_records(run)) < 12 for run in runs)
    result = invoke(shlex.split(error.partition("go on with ")[2])[1:])
    assert result.exit_code == 0, result.output
    assert [len(read_records(run)) for run in runs] == [12, 12]


@pytest.mark.cluster
def test_no_cluster_and_too_little_of_one(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no run fits in the cluster: it has 2 CPU, 0 GPU, a run wants 2 CPU and 0"):
        RayExecutor(tmp_path, cpus=2)
    with pytest.raises(ConfigError, match=r"it has 2 CPU, 0 GPU, a run wants 1 CPU and 0\.25 GPU"):
        RayExecutor(tmp_path, gpus=0.25)
    assert not any(tmp_path.iterdir())
