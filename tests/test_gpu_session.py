"""The script of `make gpu`, tried on a CPU: what is stopped is saved, and the same command goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def session(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=300, check=False
    )


def test_names_every_study_once() -> None:
    source = SCRIPT.read_text()
    studies = {file.parent.name for file in (ROOT / "experiments" / "gpu").glob("*/study.toml")}
    assert studies
    assert all(source.count(f'"{study}"') == 1 for study in studies)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    result = session("--out", str(tmp_path))
    assert result.returncode == 2
    assert "expected a GPU, found none: try --dry-run" in result.stderr


@pytest.mark.slow
def test_a_session_that_ran_out_of_time_goes_on(tmp_path: Path) -> None:
    words = ["--dry-run", "--jobs", "1", "--out", str(tmp_path)]
    first = session(*words, "--seconds", "60")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "tests: exit code 0" in first.stdout
    second = session(*words, "--seconds", "200")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "tests: done before" in second.stdout
    progress = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    study = [line for line in progress if line["stage"] == "cifar10-jpeg-resnet20-modern"]
    assert study[-1]["exit_code"] == 0
    records = (tmp_path / "cifar10-jpeg-resnet20-modern" / "records.jsonl").read_text().splitlines()
    assert len(records) >= 7
