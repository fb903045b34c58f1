"""A run's environment holds what a number's reader asks for, of every machine that it was trained on."""

import json
from pathlib import Path

import pytest

from rotateconv.lab.train.environment import environment, machine, stages


def test_environment_tells_what_a_number_depends_on() -> None:
    found = environment()
    assert set(found) == {
        *("command", "commit", "platform", "python", "versions", "cpu", "cpu_capability", "physical_cores"),
        *("logical_cores", "threads", "memory_bytes", "gpu", "gpu_count", "cuda"),
    }
    assert found["threads"] >= 1
    assert found["cpu"]
    assert found["cpu_capability"]
    json.dumps(found, allow_nan=False)


def test_commit_is_none_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


def test_a_machine_is_its_gpu_or_its_processor_with_threads() -> None:
    with_capability = {"cpu": "a processor", "cpu_capability": "AVX2", "threads": 2}
    assert machine(with_capability) == "a processor AVX2, 2 thread(s) a run"
    assert machine({"cpu": "a processor", "threads": 2}) == "a processor, 2 thread(s) a run"  # of an older record
    assert machine({"cpu": "a processor", "threads": 2, "gpu": "a GPU"}) == "a GPU"


def test_a_later_stage_is_the_beginning_but_for_what_was_noted() -> None:
    began = {"cpu": "a processor", "threads": 2, "gpu": None}
    assert stages(began) == [(0, began)]
    moved = {**began, "resumed": [{"step": 7, "gpu": "a GPU"}, {"step": 9}]}
    assert [(step, machine(found)) for step, found in stages(moved)] == [
        (0, "a processor, 2 thread(s) a run"),
        (7, "a GPU"),
        (9, "a processor, 2 thread(s) a run"),
    ]
