"""Laws of the report: its pages show the runs' numbers, and say what is not measured."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from commands import invoke
from rotateconv.errors import RunError
from rotateconv.lab.config import make_config
from rotateconv.lab.report.blocks import blocks
from rotateconv.lab.report.comparison import write_sizes
from rotateconv.lab.report.page import accuracy_text, fill_page, make_block, to_markdown
from rotateconv.lab.report.statistics import make_groups
from rotateconv.lab.report.tables import movement_table
from rotateconv.lab.report.write import write_records
from rotateconv.lab.study import study_record
from rotateconv.lab.study.convert_record import conversion_from_json
from rotateconv.lab.study.sizes import SizeRow, SizesTable
from rotateconv.lab.study.study_record import StudyRecord, find_studies, read_comparison, read_run, read_study
from rotateconv.lab.train.environment import EnvironmentHistory
from study_runs import analysis_of, write_analysis, write_comparison, write_run


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison's folder, with a run that diverged."""
    return write_comparison(tmp_path / "digits")


def test_the_table_holds_the_numbers(comparison: Path) -> None:
    table = accuracy_text(make_groups(read_comparison(comparison).runs))
    assert "| resnet20 | rotate4 | 121,242 | 91.00 ± 0.50 | +0.00 [-2.08, +2.08] | 3 |" in table
    assert "| resnet20 | conv3x3 | 269,722 | 91.00 ± 1.00 | - | 3 |" in table
    assert "| resnet20 | conv3x3 x0.69 | 127,486 | 89.10 ± 0.10 | -1.90 [" in table
    machine = "a processor AVX2, 1 thread a run"
    assert f"**digits**, recipe digits, 20 epochs. {machine}; torch 2; commit 0123456789ab." in table
    assert "- resnet20, rotate2p, seed 0: the loss became NaN" in table


def test_a_run_that_moved_is_named(comparison: Path) -> None:
    found = read_comparison(comparison).runs
    assert "another machine" not in accuracy_text(make_groups(found))
    moved = next(run for run in found if run.name == "resnet20-rotate4-seed1")
    began = {**moved.environment.to_json(), "gpu": "H200", "versions": {"torch": "3"}}
    began["resumed"] = [{"step": 5, "commit": "fedcba9876543210"}, {"step": 1500, "gpu": None}]
    changed = dataclasses.replace(moved, environment=EnvironmentHistory.from_json(began, "environment.json"))
    table = accuracy_text(make_groups([changed if run is moved else run for run in found]))
    assert "- resnet20, rotate4, seed 1: from step 1,500 of 2,000 on a processor AVX2, 1 thread" in table
    assert table.count("from step") == 1
    assert "a processor AVX2, 1 thread a run and H200; torch 2 and torch 3" in table
    assert "commit 0123456789ab and commit fedcba987654" not in table
    assert "commit 0123456789ab and fedcba987654." in table


COMMIT = "a18c77b7d39f" + "0" * 28


@pytest.mark.parametrize(
    ("commits", "told"),
    [
        ((f"{COMMIT}-dirty",) * 3, "; commit a18c77b7d39f-dirty."),
        ((COMMIT, f"{COMMIT}-dirty") * 2, "; commit a18c77b7d39f and a18c77b7d39f-dirty."),
        ((None, f"{COMMIT}-dirty", None), "; commit a18c77b7d39f-dirty and unknown."),
        ((None, None, None), "; torch 2."),
    ],
)
def test_a_commit_is_said_as_far_as_it_is_known(comparison: Path, commits: tuple[str | None, ...], told: str) -> None:
    runs = []
    for run, commit in zip(read_comparison(comparison).runs, commits, strict=False):
        environment = EnvironmentHistory.of(dataclasses.replace(run.environment.began, commit=commit))
        runs.append(dataclasses.replace(run, environment=environment))
    assert accuracy_text(make_groups(runs)).splitlines()[0].endswith(told)


def test_curves_of_a_model_that_was_not_kept_are_not_shown_as_its_own(tmp_path: Path) -> None:
    for name, kept in (("tuned", False), ("fitted", True)):
        write_run(tmp_path / name, make_config("digits", changes={"conv": "rotate4"}), 90.0, keeps_fitted=kept)
    tuned, fitted = (make_groups([read_run(tmp_path / name)])[0] for name in ("tuned", "fitted"))
    assert movement_table([tuned]) is not None
    assert tuned.validation is not None
    assert movement_table([fitted]) is None
    assert fitted.validation is None


def test_a_model_that_was_kept_as_fitted_has_angles(tmp_path: Path) -> None:
    changes = {"conv": "conv3x3", "convert_taps": "profile"}
    write_run(tmp_path / "run", make_config("digits", changes=changes), 90.0, keeps_fitted=True)
    told = "The fitted model was kept, so no angle of it moved; `rotateconv analyse` shows how they lie."
    assert make_block("angles", "runs", find_studies([tmp_path / "run"])).text == told
    write_analysis(tmp_path / "run", analysis_of(crowded=True))
    assert "| resnet20 | profile taps |" in make_block("angles", "runs", find_studies([tmp_path / "run"])).text


def test_without_a_validation_split_the_table_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_config("digits", changes={"validation": False}), 90.0)
    (group,) = make_groups([read_run(tmp_path / "run")])
    assert group.validation is None
    assert "trained on too" in accuracy_text([group])


def test_the_caption_names_the_models_that_were_kept_as_fitted(tmp_path: Path) -> None:
    changes = {"conv": "conv3x3", "convert_taps": "profile"}
    for seed, kept in enumerate((False, True, True)):
        config = make_config("digits", changes={**changes, "seed": seed})
        write_run(tmp_path / f"run-{seed}", config, 90.0, keeps_fitted=kept)
    write_run(tmp_path / "dense", make_config("digits", changes={"conv": "conv3x3"}), 90.0)
    runs = {path.name: read_run(path) for path in tmp_path.iterdir()}

    def models(*names: str) -> str:
        text = accuracy_text(make_groups([runs[name] for name in names]))
        return text.partition("over seeds, of ")[2].partition(". Differences are in points")[0]

    last, fitted = "the model after the last epoch", "the model that was fitted and recalibrated"
    assert models("dense", "run-0") == last
    assert models("run-1", "run-2") == f"{fitted}, which was kept"
    some = "where this was kept (resnet20, profile taps: 2 of 3)"
    assert models("dense", "run-0", "run-1", "run-2") == f"{last}, or of {fitted} {some}"


PAGE = (
    "one\n<!-- report: table digits -->\nold\n<!-- end -->\ntwo\n<!-- report: pictures gpu -->\n<!-- end -->\nthree\n"
)


def test_a_long_table_is_closed_behind_a_line_and_a_short_one_is_not() -> None:
    studies = {"digits": read_study(Path(__file__).parents[3] / "experiments" / "digits")}
    filled = fill_page("<!-- report: contrasts digits -->\n<!-- end -->", studies)
    inside = filled.partition("</summary>\n\n")[2].partition("\n\n</details>")[0].splitlines()
    assert f'<details markdown="1">\n<summary>{len(inside) - 2} rows: model · conv · against · ' in filled
    assert len(inside) > 14
    assert "<details" not in fill_page("<!-- report: summary digits -->\n<!-- end -->", studies)


def test_a_summary_shows_the_models_of_the_baselines_width(tmp_path: Path) -> None:
    def summary(name: str, models: dict[str, float]) -> list[str]:
        for model, width in models.items():
            config = make_config("digits", changes={"conv": model.partition(" ")[0], "width": width})
            write_run(tmp_path / name / "runs" / model, config, 90.0)
        rows = make_block("summary", name, {name: read_comparison(tmp_path / name)}).text.splitlines()[4:]
        return [row.split(" | ")[1] for row in rows]

    alone = summary("narrow", {"conv3x3": 0.25, "rotate4": 0.25, "rotate2": 0.25})
    assert alone == ["conv3x3 x0.25", "rotate4 x0.25"]
    beside = {"conv3x3": 1.0, "rotate4": 1.0, "conv3x3 narrow": 0.5, "rotate4 narrow": 0.5}
    assert summary("mixed", beside) == ["conv3x3", "rotate4"]


def test_a_page_is_filled_and_then_stays(comparison: Path) -> None:
    studies = {"digits": read_comparison(comparison), "gpu/svhn": StudyRecord()}
    assert blocks(PAGE, "report") == ["table digits", "pictures gpu"]
    filled = fill_page(PAGE, studies)
    assert fill_page(filled, studies) == filled
    assert [part for part in ("one", "two", "three", "old") if part in filled] == ["one", "two", "three"]
    assert accuracy_text(make_groups(studies["digits"].runs)) in filled
    told = "Not measured yet: `rotateconv compare --config experiments/gpu/svhn/study.toml --out runs/gpu/svhn`"
    assert told in filled
    measured = fill_page(PAGE, {"digits": StudyRecord(), "gpu/svhn": studies["digits"]})
    assert "![gpu-curves](results/gpu-curves.png)" in measured


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("table digit", "there is no study 'digit': did you mean 'digits'?"),
        ("tables digits", "a page asks for 'tables': did you mean 'table'?"),
    ],
)
def test_a_page_that_asks_for_what_is_not_there_is_refused(block: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        fill_page(f"<!-- report: {block} -->\n<!-- end -->", {"digits": StudyRecord()})


def test_the_angles_tables_say_what_shuffling_costs(comparison: Path) -> None:
    run = comparison / "runs" / "resnet20-rotate4-seed0"
    before = accuracy_text(make_groups(read_comparison(comparison).runs))
    write_analysis(run, analysis_of(crowded=True))
    studies = {"digits": read_comparison(comparison)}
    text = make_block("angles", "digits", studies).text
    assert "| resnet20 | rotate4 | 0.200 | 1.40 | 3 |" in text
    worst = "| resnet20 | rotate4 | stages.0 | 90.00 | 12.50 | 80.00 | 89.50 |"
    assert f"{worst} +0.0010 | +0.2000 | 0.1000 | 1 |" in text
    assert "rotate4-fixed" not in text
    assert "packed bytes" not in before
    table = make_block("table", "digits", studies).text
    assert "| resnet20 | rotate4 | 121,242 | 50,000 |" in table
    assert "| resnet20 | rotate2 | 61,850 | - |" in table
    dense = [run for run in studies["digits"].runs if run.config.conv == "conv3x3"]
    assert make_block("angles", "dense", {"dense": StudyRecord(tuple(dense))}).text == "No model here has angles."


@pytest.mark.parametrize("seen", [False, True])
def test_shuffles_judged_on_images_that_were_trained_on_are_said_to_be(comparison: Path, seen: bool) -> None:
    write_analysis(comparison / "runs" / "resnet20-rotate4-seed0", analysis_of(crowded=True, seen=seen))
    text = make_block("angles", "digits", {"digits": read_comparison(comparison)}).text
    assert ("The validation images were trained on too." in text) == seen


def write_sizes_of(folder: Path) -> str:
    """What `compare --sizes` leaves in a comparison's folder; return its table."""
    dense = SizeRow("resnet20, conv3x3", True, 4, False, 150_000.0, (91.0, 92.0), runs=("dense-0", "dense-1"))
    rows = (dense, SizeRow("resnet20, rotate4", False, 4, True, 60e3, (90.0,), runs=("lines",)))
    write_sizes(SizesTable("digits", rows), folder)
    return (folder / "sizes.md").read_text().rstrip()


def test_accuracy_against_bytes_is_kept_and_shown(comparison: Path, tmp_path: Path) -> None:
    page, experiments = "<!-- report: sizes digits -->\n<!-- end -->", tmp_path / "experiments"
    file = experiments / "digits" / study_record.RECORDS
    record(comparison, "--out", file)
    studies = find_studies([experiments])
    assert studies["digits"].sizes is None
    assert "Not measured yet: `rotateconv compare --sizes`" in fill_page(page, studies)
    table = write_sizes_of(comparison)
    record(comparison, "--out", file)
    studies = find_studies([experiments])
    assert studies["digits"].sizes == read_comparison(comparison).sizes is not None
    shown = f"{table}\n\n![digits-sizes](results/digits-sizes.png)"
    assert fill_page(page, studies) == f"<!-- report: sizes digits -->\n{shown}\n<!-- end -->"
    (tmp_path / "page.md").write_text(page)
    report(experiments, "--page", tmp_path / "page.md")
    assert table in (tmp_path / "page.md").read_text()
    assert (tmp_path / "results" / "digits-sizes.png").stat().st_size > 1000
    (file.parent / "sizes.json").write_text("[")
    with pytest.raises(RunError, match=r"sizes\.json is no JSON: restore it or write it again"):
        find_studies([experiments])


def report(*arguments: object, code: int = 0) -> str:
    result = invoke(["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def record(*arguments: object) -> str:
    Path(str(arguments[arguments.index("--out") + 1])).parent.mkdir(parents=True, exist_ok=True)
    result = invoke(["record", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
def test_the_command_prints_writes_and_fills(comparison: Path, tmp_path: Path) -> None:
    experiments, page, out = tmp_path / "experiments", tmp_path / "docs" / "page.md", tmp_path / "out"
    assert report(comparison) == to_markdown(find_studies([comparison]))
    file = experiments / "digits" / study_record.RECORDS
    assert record(comparison, "--out", file).split() == ["records", str(file)]
    report(experiments, "--out", out)
    assert {path.name for path in out.iterdir()} == {"report.md", "digits-curves.png", "digits-parameters.png"}
    assert "![digits-curves](digits-curves.png)" in (out / "report.md").read_text()
    report(experiments, "--out", tmp_path / "drawn", "--format", "svg,pdf")
    assert "![digits-curves](digits-curves.svg)" in (tmp_path / "drawn" / "report.md").read_text()
    assert (tmp_path / "drawn" / "digits-curves.svg").read_text().startswith("<?xml")
    assert (tmp_path / "drawn" / "digits-curves.pdf").read_bytes().startswith(b"%PDF")
    page.parent.mkdir()
    page.write_text("<!-- report: pictures digits -->\n<!-- end -->\n")
    report(experiments, "--page", page)
    assert page.read_text() == fill_page(page.read_text(), find_studies([experiments]))
    assert {path.name for path in (page.parent / "results").iterdir()} == {"digits-curves.png", "digits-parameters.png"}


def test_the_command_adds_runs_to_a_record(comparison: Path, tmp_path: Path) -> None:
    file = tmp_path / "experiments" / "digits" / study_record.RECORDS
    first, *others = sorted(path.parent for path in (comparison / "runs").glob("*/summary.json"))
    record(first, "--out", file)
    assert not file.with_name(study_record.SIZES).exists()
    write_sizes_of(comparison)
    record(comparison, "--out", file, "--add")
    expected, study = read_comparison(comparison), find_studies([file.parent])["digits"]
    assert list(study.runs) == sorted(expected.runs, key=lambda run: run.name)  # equal_to came with the comparison
    assert study.sizes == expected.sizes
    more = SizeRow("resnet20, rotate4", False, 4, True, 62e3, (92.0,), runs=("more",))
    write_sizes(SizesTable("digits", (more,)), comparison)
    conversions = file.with_name(study_record.CONVERSIONS)
    conversions.write_text("[]")
    record(comparison, "--out", file, "--add")
    sizes = read_study(file.parent).sizes
    assert sizes is not None
    dense, rotated = sizes.rows
    assert (len(dense.runs), rotated.bytes, rotated.runs) == (2, 61e3, ("lines", "more"))
    assert conversions.read_text() == "[]"
    record(*others, "--out", file)
    assert [run.name for run in read_study(file.parent).runs] == [run.name for run in others]


def test_a_record_replaces_no_file_of_others(comparison: Path, tmp_path: Path) -> None:
    file = tmp_path / "kept" / study_record.RECORDS
    file.parent.mkdir()
    write_sizes_of(comparison)
    other = file.with_name(study_record.SIZES)
    other.write_text('{"mine": 1}')
    with pytest.raises(RunError, match=r"would be replaced and is not what .* move it, or choose another --out"):
        write_records(find_studies([comparison]), file)
    assert other.read_text() == '{"mine": 1}'
    assert not file.exists()
    other.unlink()
    for _ in range(2):  # its own, it replaces
        assert write_records(find_studies([comparison]), file) == [file, other]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run, no comparison and has no study in it"),
        (["{}", "--page", "no.md"], "cannot read no.md: No such file"),
        (["{}", "--format", "svg"], "--format has no meaning without --out"),
        (
            ["{}", "--out", "x", "--format", "svg,gif"],
            "--format takes png, svg and pdf, several with commas between, not 'gif'",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, comparison: Path) -> None:
    told = report(*(argument.format(comparison) for argument in arguments), code=2)
    assert message in told
    assert len(told.splitlines()) == 1


def test_conversions_are_kept_and_shown(comparison: Path, tmp_path: Path) -> None:
    run = tmp_path / "lines"
    shutil.copytree(min((comparison / "runs").glob("*rotate4*")), run)
    values = {
        **{"source": "/somewhere/runs/dense", "net": "resnet20", "dataset": "digits", "lines": "free"},
        **{"quantised": None, "epochs": 3, "stages": 1, "parameters_before": 269_434, "parameters_after": 120_954},
        "validation_accuracy": {"source": 99.0, "fitted": 10.0, "fine_tuned": 98.5},
        "test_accuracy": {"source": 99.0, "fitted": 10.0, "calibrated": 80.0, "fine_tuned": 98.5},
        **{"validation_was_trained_on": False, "layers": []},
    }
    (run / "conversion.json").write_text(json.dumps(values))
    record(str(run), "--out", str(tmp_path / "kept" / "digits" / "records.jsonl"))
    found = find_studies([tmp_path / "kept"])
    assert found["digits"].conversions == (conversion_from_json({**values, "source": "dense"}, "conversion.json"),)
    page = fill_page("<!-- report: conversions digits -->\n<!-- end -->", found)
    row = "| digits | resnet20 | free | float32 | 269,434 to 120,954 | 99.00 | 10.00 | 80.00 | 98.50 | **-0.50** | 3 |"
    assert row in page
    assert "Not measured yet: `rotateconv convert`" in fill_page(page, {"digits": StudyRecord()})
    (tmp_path / "kept" / "digits" / "conversions.json").write_text("[")
    with pytest.raises(RunError, match=r"conversions\.json is no JSON"):
        find_studies([tmp_path / "kept"])
