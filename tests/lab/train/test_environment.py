"""A run's environment holds what a number's reader asks for, of every machine that it was trained on."""

import json
from pathlib import Path

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.plain import to_json
from rotateconv.lab.train.environment import Environment, EnvironmentHistory

BEGAN = {
    **{"commit": None, "python": "3", "versions": {"torch": "2"}, "cpu": "a processor", "physical_cores": 1},
    **{"logical_cores": 2, "threads": 2, "memory_bytes": 2**30, "gpu": None, "gpu_count": 0, "cuda": None},
}


def test_environment_tells_what_a_number_depends_on() -> None:
    found = Environment.now()
    assert found.threads >= 1
    assert found.cpu
    assert found.cpu_capability
    assert found.versions["torch"]
    json.dumps(to_json(found), allow_nan=False)


def test_commit_is_none_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Environment.now().commit is None
    monkeypatch.setenv("PATH", "")
    assert Environment.now().commit is None


def test_hardware_is_a_gpu_or_a_processor_with_threads() -> None:
    def hardware(**changes: object) -> str:
        return EnvironmentHistory.from_json({**BEGAN, **changes}, "environment.json").began.hardware

    assert hardware(cpu_capability="AVX2") == "a processor AVX2, 2 threads a run"
    assert hardware() == "a processor, 2 threads a run"  # of an older record
    assert hardware(gpu="a GPU") == "a GPU"


def test_a_later_stage_is_the_beginning_but_for_what_was_noted() -> None:
    moved = {**BEGAN, "resumed": [{"step": 7, "gpu": "a GPU"}, {"step": 9}]}
    found = EnvironmentHistory.from_json(moved, "environment.json")
    assert [(stage.step, stage.environment.hardware) for stage in found.stages] == [
        (0, "a processor, 2 threads a run"),
        (7, "a GPU"),
        (9, "a processor, 2 threads a run"),
    ]
    assert found.to_json() == moved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": "two"}, "environment.json: threads must be a valid integer, found 'two'"),
        ({"color": "red"}, "environment.json: the key color is unknown, expected commit, python, "),
        ({"resumed": [{"gpu": "a GPU"}]}, "environment.json: an entry of resumed must have a step, found {'gpu'"),
        ({"resumed": [{"step": 1, "gpu": 5}]}, "environment.json: gpu must be a valid string, found 5"),
    ],
)
def test_a_damaged_environment_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        EnvironmentHistory.from_json({**BEGAN, **changes}, "environment.json")
