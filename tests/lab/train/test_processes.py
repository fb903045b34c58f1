"""Laws of training on several processes: it is the training of one, written once, and it resumes exactly."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from processes_worker import SMALL_MODELS, plain_config
from rotateconv.lab.files import read_json
from rotateconv.lab.train.checkpoint import load_checkpoint, read_weights
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.run_folder import read_records
from rotateconv.models import MODELS
from small import small_digits


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the worker's models, for one test."""
    for name, model in SMALL_MODELS.items():
        monkeypatch.setitem(MODELS, name, model)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that two processes made."""
    folder = tmp_path_factory.mktemp("processes")
    worker = Path(__file__).parents[2] / "processes_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(worker), str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_weights((run / "model.safetensors").read_bytes())


@pytest.mark.slow
def test_two_processes_train_as_one(runs: Path, tmp_path: Path) -> None:
    summary = fit(plain_config(), tmp_path / "alone", data=small_digits())
    together = read_json(runs / "together" / "summary.json")
    ours, theirs = weights(runs / "together"), weights(tmp_path / "alone")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert together["test_accuracy"] == summary.test_accuracy
    assert sum(map(sum, together["test_confusion"])) == 37
    pairs = zip(read_records(runs / "together"), read_records(tmp_path / "alone"), strict=True)
    for found, expected in pairs:
        for key in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
            assert getattr(found, key) == pytest.approx(getattr(expected, key), rel=1e-4), key
        assert (found.step, found.learning_rates) == (expected.step, expected.learning_rates)


@pytest.mark.slow
def test_a_stop_of_the_main_process_stops_both_and_resumes_exactly(runs: Path) -> None:
    texts = {(runs / f"stopped-{rank}").read_text() for rank in (0, 1)}
    assert len(texts) == 1
    assert "stopped and saved after step 7 of 12" in texts.pop()  # asked at 6; they agree at some steps only
    ours, theirs = weights(runs / "stopped"), weights(runs / "noisy")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    for found, expected in zip(read_records(runs / "stopped"), read_records(runs / "noisy"), strict=True):
        assert found.train_loss == expected.train_loss
        assert found.validation_loss == expected.validation_loss


@pytest.mark.slow
def test_every_process_keeps_its_own_random_numbers(runs: Path) -> None:
    first, second = load_checkpoint(runs / "noisy" / "checkpoints").state["processes"]
    assert not torch.equal(first["rng"], second["rng"])


@pytest.mark.slow
def test_both_processes_tell_the_same_mistake(runs: Path) -> None:
    for name, message in [
        ("diverged", "the loss became infinite or NaN at step 2 of 12"),
        ("odd", "batch_size 33 must be a multiple of the 2 processes"),
    ]:
        texts = {(runs / f"{name}-{rank}").read_text() for rank in (0, 1)}
        assert len(texts) == 1
        assert message in texts.pop()
    assert not (runs / "odd").exists()


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "left"
    shutil.copytree(runs / "left", run)
    fit(plain_config(), run, data=small_digits(), resume=True)
    ours, theirs = weights(run), weights(runs / "together")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    for found, expected in zip(read_records(run), read_records(runs / "together"), strict=True):
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-4)
