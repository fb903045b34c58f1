"""Laws of accuracy against bytes: what is compared with what, and what a verdict needs."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from rotateconv.errors import RunError
from rotateconv.lab.config import changed, make_config
from rotateconv.lab.report.frontier import draw_frontier, make_points, points_table, rivalries
from rotateconv.lab.report.page import make_block
from rotateconv.lab.report.statistics import make_groups
from rotateconv.lab.report.write import fill_file
from rotateconv.lab.study.study_record import StudyRecord, find_studies, read_study, write_study
from study_runs import write_run

POINTS = {
    "lines": ({"convert_taps": "profile", "weight_bits": 2, "weight_levels": 4, "angle_bits": 3}, 20_000, 80.0),
    "longer": ({"convert_taps": "profile", "weight_bits": 3, "angle_bits": 4}, 28_500, 82.0),
    "ternary": ({"conv": "conv3x3", "width": 0.5, "weight_bits": 2}, 19_000, 78.0),
    "book": ({"conv": "codebook16", "weight_bits": 2}, 27_000, 84.0),
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder, its runs of three seeds, each with a source and a teacher of its own seed."""
    sizes = {}
    for name, (changes, size, accuracy) in POINTS.items():
        for seed in range(3):
            dense = f"f-dense-s{seed}"
            own = {"conv": "conv3x3", "source": dense, "teacher": f"f-wide-s{seed}", "seed": seed, "qat": True}
            config = make_config("quick", changes={**own, "epochs": 40, **changes})
            write_run(tmp_path / "runs" / f"{name}-s{seed}", config, accuracy + 0.1 * seed)
            sizes[f"{name}-s{seed}"] = {"packed": size + seed, "compact": size + 1000, "slice_entropy": 7.9 + seed / 10}
    write_run(tmp_path / "runs" / "f-dense-s0", make_config("quick", changes={"conv": "conv3x3"}), 90.0)
    runs = find_studies(tmp_path.glob("runs/*"))["runs"].runs
    write_study(runs, tmp_path / "bytes" / "records.jsonl")
    (tmp_path / "bytes" / "files.json").write_text(json.dumps(sizes))
    return tmp_path / "bytes"


def test_seeds_with_sources_of_their_own_are_one_point(study: Path) -> None:
    found = read_study(study)
    points = make_points(make_groups(found.runs), found.files)
    assert [(point.family, round(point.packed), point.bits, point.accuracy.n) for point in points] == [
        ("dense", 19_001, "2", 3),
        ("RotateConv", 20_001, "2 (4 levels) + 3", 3),
        ("others", 27_001, "2", 3),
        ("RotateConv", 28_501, "3 + 4", 3),
    ]
    rows = [row for row in points_table(points).rows if row[0] == "dense"]
    assert rows == [
        (
            "dense",
            "conv3x3 x0.50",
            "2 (TWN)",
            "19,001",
            "20,000",
            "78.10 ± 0.10",
            "78.10 ± 0.10",
            "3",
            "2.5 M",
            "2",
            "8.00",
        )
    ]


def test_a_narrow_model_that_its_source_taught_says_so(study: Path) -> None:
    found = read_study(study)
    runs = [
        dataclasses.replace(run, config=dataclasses.replace(run.config, teacher=run.config.source))
        if run.config.width < 1
        else run
        for run in found.runs
    ]
    names = {point.layers for point in make_points(make_groups(runs), found.files)}
    assert names == {"conv3x3 x0.50, its source as teacher", "profile taps", "codebook16"}


def test_a_budget_takes_what_fits_and_validation_chooses(study: Path) -> None:
    found = read_study(study)
    rivals = rivalries(make_points(make_groups(found.runs), found.files))
    assert [(one.budget, one.ours.bits, one.theirs.group.label, one.contrast.verdict) for one in rivals] == [
        (20, "2 (4 levels) + 3", "conv3x3 x0.50", "wins"),
        (28, "3 + 4", "conv3x3 x0.50", "wins"),  # of 28,672 bytes
        (28, "3 + 4", "codebook16", "loses"),
    ]  # and within 40 and 60 KiB the same
    assert all((one.contrast.adjusted or 0) >= (one.contrast.p_value or 1) for one in rivals)


def test_one_seed_decides_nothing(study: Path) -> None:
    found = read_study(study)
    runs = [run for run in found.runs if run.config.seed == 0]
    rivals = rivalries(make_points(make_groups(runs), found.files))
    assert {one.contrast.verdict for one in rivals} == {"one seed: not decided"}


def test_another_setting_is_named(study: Path) -> None:
    found = read_study(study)
    runs = [
        replace(run, config=changed(run.config, {"lr": 0.3})) if run.name.startswith("ternary") else run
        for run in found.runs
    ]
    layers = [point.layers for point in make_points(make_groups(runs), found.files)]
    assert layers.count("conv3x3 x0.50, lr=0.3") == 1
    assert sum("=" in name for name in layers) == 1


def test_a_run_without_files_is_no_point(study: Path) -> None:
    found = read_study(study)
    files = {name: size for name, size in found.files.items() if name != "book-s1"}
    points = make_points(make_groups(found.runs), files)
    assert "codebook16" not in [point.group.label for point in points]


def test_the_page_has_the_tables_and_the_picture(study: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- report: frontier bytes -->\n<!-- end -->\n")
    studies = {"bytes": read_study(study)}
    fill_file(page, studies)
    text = page.read_text()
    assert "![bytes-frontier](results/bytes-frontier.png)" in text
    assert "| 20 KiB | profile taps, 2 (4 levels) + 3 bits, 20,001 B | 80.10 ± 0.10 | conv3x3 x0.50, 2 bits" in text
    assert (tmp_path / "results" / "bytes-frontier.png").read_bytes().startswith(b"\x89PNG")
    assert make_block("frontier", "bytes", {"bytes": StudyRecord()}).text.startswith("Not measured yet")


def test_the_picture_says_which_points_have_one_seed(study: Path, tmp_path: Path) -> None:
    found = read_study(study)
    runs = [run for run in found.runs if run.config.seed == 0 or "ternary" not in run.name]
    draw_frontier(make_points(make_groups(runs), found.files), tmp_path / "one.svg")
    assert "white: one seed" in (tmp_path / "one.svg").read_text()


def test_a_damaged_record_of_files_is_refused(study: Path) -> None:
    (study / "files.json").write_text('{"lines-s0": {"packed": "many"}}')
    with pytest.raises(RunError, match=r"files\.json"):
        read_study(study)
