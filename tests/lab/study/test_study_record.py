"""Laws of a study's record: it is found, loses no number, and names no machine."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.study import study_record
from rotateconv.lab.study.study_record import (
    RunRecord,
    StudyRecord,
    add_runs,
    find_studies,
    read_comparison,
    read_run,
    read_study,
    write_study,
)
from study_runs import analysis_of, write_analysis, write_comparison


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison's folder, with a run that diverged."""
    return write_comparison(tmp_path / "digits")


def test_a_record_gives_back_every_run(comparison: Path, tmp_path: Path) -> None:
    runs = read_comparison(comparison).runs
    file = tmp_path / "experiments" / "digits" / study_record.RECORDS
    write_study(runs, file)
    assert read_study(file.parent) == StudyRecord(runs)
    text = file.read_text()
    assert len(text.splitlines()) == 1 + len(runs) == 17
    assert "somebody" not in text  # neither where data lie nor how the command was called
    assert "confusion" not in text
    assert read_study(tmp_path) == StudyRecord()


def test_a_record_is_read_by_its_file_too(comparison: Path, tmp_path: Path) -> None:
    runs = read_comparison(comparison).runs
    for name in (study_record.RECORDS, "mine.jsonl"):
        write_study(runs, tmp_path / "kept" / name)
        assert find_studies([tmp_path / "kept" / name]) == {Path(name).stem: StudyRecord(runs)}
    (tmp_path / "other").write_text("some notes")
    with pytest.raises(RunError, match="other is no record of runs"):
        find_studies([tmp_path / "other"])


def test_a_run_is_what_its_folder_says(comparison: Path) -> None:
    run = read_run(comparison / "runs" / "resnet20-rotate4-seed2")
    assert (run.name, run.config.conv, run.config.data_dir) == ("resnet20-rotate4-seed2", "rotate4", None)
    assert (run.result.steps, run.result.parameters, run.result.test_accuracy) == (2000, 121_242, 91.5)
    assert run.curves.train_loss == (1.23457, 0.617284)
    assert run.curves.angle_movement_max == (0.7, 1.4)
    assert (run.failed, run.analysis, run.data.name) == (None, None, "digits")


def test_movement_by_layer_is_kept_of_analysed_runs(comparison: Path) -> None:
    folder = comparison / "runs" / "resnet20-rotate4-seed2"
    assert read_run(folder).curves.angle_movement_layers == ()
    write_analysis(folder, analysis_of(crowded=True))
    run = read_run(folder)
    assert run.curves.angle_movement_layers == ((0.1,) * 3, (0.2,) * 3)
    assert run.analysis is not None
    assert run.analysis.packed == analysis_of(crowded=True).packed


def test_a_run_that_diverged_is_kept_with_its_reason(comparison: Path) -> None:
    (failed,) = [run for run in read_comparison(comparison).runs if run.failed is not None]
    assert (failed.name, failed.failed, failed.summary) == (
        "resnet20-rotate2p-seed0",
        "the loss became NaN",
        None,
    )


def test_studies_are_found(comparison: Path, tmp_path: Path) -> None:
    experiments = tmp_path / "experiments"
    for name in ("mnist", "gpu/svhn"):
        (experiments / name).mkdir(parents=True)
        (experiments / name / "study.toml").write_text('seeds = 3\n[contrasts]\nrotate4 = ["mask4"]\n')
    write_study(read_comparison(comparison).runs, experiments / "digits" / study_record.RECORDS)
    studies = find_studies([experiments])
    assert {name: len(study.runs) for name, study in studies.items()} == {"digits": 16, "gpu/svhn": 0, "mnist": 0}
    assert studies["mnist"].contrasts == {"rotate4": ("mask4",)}
    assert find_studies([experiments / "digits"]) == {"digits": studies["digits"]}
    assert find_studies([comparison]) == {"digits": read_comparison(comparison)}
    runs = sorted((comparison / "runs").glob("*rotate4-seed*"))
    assert [run.name for run in find_studies(runs)["runs"].runs] == [run.name for run in runs]


def test_runs_are_added_to_a_record(comparison: Path, tmp_path: Path) -> None:
    file = tmp_path / "experiments" / study_record.RECORDS
    runs = sorted(read_comparison(comparison).runs, key=lambda run: run.name)
    late = dataclasses.replace(runs[3], summary=dataclasses.replace(runs[3].result, test_accuracy=1.5))
    assert add_runs(runs[::-1], file) == runs  # no record yet
    write_study(runs[:6], file)
    assert add_runs([], file) == runs[:6]
    assert add_runs([late, *runs[6:]], file) == [*runs[:3], late, *runs[4:]]
    with pytest.raises(RunError, match=f"two of the runs are called {late.name}: a record has each once"):
        add_runs([late, runs[3]], file)


def test_what_is_no_study_is_refused(comparison: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty is no run, no comparison and has no study in it"):
        find_studies([tmp_path / "empty"])
    with pytest.raises(RunError, match="two studies are called digits"):
        find_studies([comparison, comparison])
    with pytest.raises(RunError, match="resnet20-rotate2p-seed0 is not finished: resume it"):
        find_studies([comparison / "runs" / "resnet20-rotate2p-seed0"])
    with pytest.raises(RunError, match="expected a finished run to write into"):
        write_study([], tmp_path / study_record.RECORDS)
    (comparison / "comparison.json").write_text('[{"model": "resnet20"}]')
    with pytest.raises(RunError, match=r"comparison\.json: expected the key conv, found none"):
        find_studies([comparison])
    row = {"model": "resnet20", "conv": "rotate4", "width": -1, "equal_to": None, "seeds": [0], "failed": {}}
    (comparison / "comparison.json").write_text(json.dumps([row]))
    with pytest.raises(RunError, match=r"comparison\.json: width must be a number above 0, not -1.0: compare again"):
        find_studies([comparison])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n{}\n", "is no record of runs: write it again"),
        ('{"config":{}', "is no record of runs: write it again"),
        (
            '{"config":{},"environment":{},"data":{}}\n{"config":{},"environment":{},"data":{}}\n',
            "has a run with config",
        ),
    ],
)
def test_a_damaged_record_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / study_record.RECORDS).write_text(text)
    with pytest.raises(RunError, match=message):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run["summary"].pop("steps"), "rotate4-seed0: expected the key steps, found none"),
        (lambda run: run["summary"].update(steps=1.5), "rotate4-seed0: steps must be a valid integer, found 1.5"),
        (lambda run: run["metrics"].update(color=[]), "rotate4-seed0: the key color is unknown, expected train_loss"),
        (lambda run: run["config"].update(lr="fast"), "rotate4-seed0: lr must be a number above 0, not 'fast'"),
    ],
)
def test_a_damaged_run_names_file_run_and_key(
    change: Callable[[dict[str, Any]], Any], message: str, comparison: Path, tmp_path: Path
) -> None:
    run = read_run(comparison / "runs" / "resnet20-rotate4-seed0").to_json()
    change(run)
    with pytest.raises(RunError, match=f"records.jsonl, run resnet20-{message}"):
        RunRecord.from_json(run, "records.jsonl")


def test_a_record_of_version_0_1_is_read() -> None:
    run = read_run(Path(__file__).parents[2] / "fixtures" / "run-folder")
    assert (run.name, run.config.conv, run.result.steps) == ("run-folder", "rotate2p", 21)
    assert run.analysis is not None  # written with Kuiper's test, which is passed over
    assert run.analysis.angles is not None
    assert run.analysis.angles.all.slices == sum(layer.slices for layer in run.analysis.angles.layers)
    assert RunRecord.from_json(run.to_json(), "records.jsonl") == run
