"""Laws of the report: its numbers are the runs', a record loses none of them, and a page says what is not measured."""

import json
import math
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import typer
from matplotlib.axes import Axes
from typer.testing import CliRunner

from rotateconv import records
from rotateconv.cli import app
from rotateconv.cli.report import EXAMPLES
from rotateconv.config import RunConfig, make_config, to_json
from rotateconv.plots_runs import PUBLISHED, draw_angles, draw_curves, draw_parameters, draw_study
from rotateconv.records import find_sizes, find_studies, read_comparison, read_run, read_study, write_study
from rotateconv.report import blocks, fill_page, to_markdown
from rotateconv.runs import Record, RunError
from rotateconv.sizes import SizeRow
from rotateconv.sizes_report import write_sizes
from rotateconv.study import Row, Spread, contrasts, dense_of, make_rows
from rotateconv.tables import accuracy_table, angle_table, contrast_table, validation_table

SIZES = {"conv3x3": 269_722, "rotate4": 121_242, "rotate2": 61_850, "rotate2p": 63_866, "rotate4-fixed": 91_258}
UNIFORM = {"kuiper": 0.02, "probability": 0.4, "axes": 0.001}
CROWDED = {"kuiper": 0.31, "probability": 1e-9, "axes": 0.2}


def write_run(folder: Path, config: RunConfig, accuracy: float, **summary: Any) -> None:
    """A finished run's files, as far as a report reads them."""
    folder.mkdir(parents=True)
    learned = config.conv.startswith("rotate") and "fixed" not in config.conv
    values = {
        "recipe": config.recipe,
        "conv": config.conv,
        "parameters": SIZES[config.conv] if config.width == 1 else round(SIZES[config.conv] * config.width**2),
        "test_accuracy": accuracy,
        "test_confusion": [[1, 2], [3, 4]],
        "last": {"angle_movement_mean": 0.1},
        "data": {},
        **summary,
    }
    lines = [
        {
            "epoch": epoch,
            "train_loss": 1.23456789 / epoch,
            "validation_accuracy": accuracy - 2 + epoch if config.validation else None,
            "angle_movement_mean": 0.1 * epoch if learned else None,
            "angle_movement_max": 0.7 * epoch if learned else None,
        }
        for epoch in (1, 2)
    ]
    machine = {"command": "python /home/somebody/x", "platform": "Linux-1", "cpu": "a processor", "threads": 1}
    files = {
        "summary.json": json.dumps(values),
        "environment.json": json.dumps({**machine, "commit": "0123456789abcdef", "versions": {"torch": "2"}}),
        "data.json": json.dumps({"name": "digits", "classes": ["0", "1"]}),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "config.json": to_json(config),
    }
    for name, text in files.items():
        (folder / name).write_text(text)


ACCURACIES = {
    ("conv3x3", 1.0): (90.0, 91.0, 92.0),
    ("rotate4", 1.0): (90.5, 91.0, 91.5),
    ("conv3x3", 0.6875): (89.0, 89.1, 89.2),
    ("rotate2", 1.0): (70.0, 72.0, 74.0),
    ("rotate4-fixed", 1.0): (88.0, 88.2, 88.4),
}


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A comparison's folder, with a run that diverged."""
    out = tmp_path / "digits"
    for (conv, width), accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            name = f"resnet20-{conv}{'' if width == 1 else f'-w{width:g}'}-seed{seed}"
            changes = {"conv": conv, "width": width, "seed": seed, "data_dir": "/home/somebody"}
            write_run(out / "runs" / name, make_config("digits", changes=changes), accuracy)
    wild = out / "runs" / "resnet20-rotate2p-seed0"
    write_run(wild, make_config("digits", changes={"conv": "rotate2p"}), 0.0)
    (wild / "summary.json").unlink()
    base = {"model": "resnet20", "width": 1.0, "equal_to": None, "failed": {}, "seeds": [0, 1, 2]}
    rows = [
        {**base, "conv": "conv3x3", "width": 0.6875, "equal_to": "rotate4"},
        {**base, "conv": "rotate2p", "seeds": [], "failed": {"0": "the loss became NaN; the last is /home/somebody"}},
    ]
    (out / "comparison.json").write_text(json.dumps(rows))
    return out


def row_of(comparison: Path, conv: str, width: float = 1.0) -> Row:
    (found,) = [row for row in make_rows(read_comparison(comparison)) if (row.conv, row.width) == (conv, width)]
    return found


def test_a_record_gives_back_every_run(comparison: Path, tmp_path: Path) -> None:
    runs = read_comparison(comparison)
    file = tmp_path / "experiments" / "digits" / records.RECORDS
    write_study(runs, file)
    assert read_study(file.parent) == runs
    text = file.read_text()
    assert len(text.splitlines()) == 1 + len(runs) == 17
    assert "somebody" not in text  # neither where data lie nor how the command was called
    assert "confusion" not in text
    assert read_study(tmp_path) == []


def test_a_run_is_what_its_folder_says(comparison: Path) -> None:
    run = read_run(comparison / "runs" / "resnet20-rotate4-seed2")
    assert run["config"]["conv"] == "rotate4"
    assert run["summary"] == {"parameters": 121_242, "test_accuracy": 91.5}
    assert run["metrics"]["train_loss"] == [1.23457, 0.617284]
    assert run["metrics"]["angle_movement_max"] == [0.7, 1.4]
    assert (run["failed"], run["analysis"], run["data"]["name"]) == (None, None, "digits")


def test_a_run_that_diverged_is_kept_with_its_reason(comparison: Path) -> None:
    (failed,) = [run for run in read_comparison(comparison) if run["failed"] is not None]
    assert (failed["run"], failed["failed"], failed["summary"]) == (
        "resnet20-rotate2p-seed0",
        "the loss became NaN",
        None,
    )
    table = accuracy_table(make_rows(read_comparison(comparison)))
    assert "| resnet20 | rotate2p | - | - | - | 0 of 1 |" in table
    assert "- resnet20, rotate2p, seed 0: the loss became NaN" in table


def test_rows_are_the_statistics_of_the_runs(comparison: Path) -> None:
    rows = make_rows(read_comparison(comparison))
    order = [(row.conv, row.width) for row in rows]
    assert order == [
        *(("conv3x3", 1.0), ("rotate4", 1.0), ("conv3x3", 0.6875), ("rotate2", 1.0)),
        *(("rotate2p", 1.0), ("rotate4-fixed", 1.0)),
    ]
    for key, accuracies in ACCURACIES.items():
        found = rows[order.index(key)].accuracy
        assert found is not None
        mean = sum(accuracies) / 3
        assert found.mean == pytest.approx(mean)
        assert found.std == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in accuracies) / 2))
    assert rows[1].validation == Spread.of([90.5, 91.0, 91.5])
    moved = rows[1].curve("angle_movement_mean")
    assert [(pytest.approx(spread.mean), spread.std, spread.n) for spread in moved] == [(0.1, 0.0, 3), (0.2, 0.0, 3)]
    assert rows[0].curve("angle_movement_mean") == []
    assert [run["config"]["seed"] for run in rows[1].runs] == [0, 1, 2]


def test_the_table_holds_the_numbers(comparison: Path) -> None:
    table = accuracy_table(make_rows(read_comparison(comparison)))
    error = math.sqrt(1 / 3 + 0.25 / 3)
    assert f"| resnet20 | rotate4 | 121,242 | 91.00 ± 0.50 | +0.00 ± {error:.2f} | 3 |" in table
    assert "| resnet20 | conv3x3 | 269,722 | 91.00 ± 1.00 | - | 3 |" in table
    assert "-19.00 ± 1.29" in table
    assert (
        "**digits**, recipe digits, 20 epochs. a processor, 1 thread(s) a run; torch 2; commit 0123456789ab." in table
    )


def test_losses_stand_first(comparison: Path) -> None:
    found = contrasts(make_rows(read_comparison(comparison)))
    told = [(one.row.conv, one.other.label, one.verdict) for one in found]
    assert told == [
        ("rotate2", "conv3x3", "loses"),
        ("rotate4", "conv3x3", "not decided"),
        ("rotate4", "conv3x3 x0.69", "wins"),
        ("rotate4", "rotate4-fixed", "wins"),
    ]
    assert found[2].difference == pytest.approx(1.9)
    assert found[2].error == pytest.approx(math.sqrt((0.25 + statistics.variance([89.0, 89.1, 89.2])) / 3))
    table = contrast_table(make_rows(read_comparison(comparison)))
    assert "| resnet20 | rotate4 | conv3x3 x0.69 (dense net of rotate4's size) | wins | +1.90 ± 0.29 |" in table


@pytest.mark.parametrize(
    ("lead", "verdict"), [(-1.21, "loses"), (-1.19, "not decided"), (1.19, "not decided"), (1.21, "wins")]
)
def test_two_standard_errors_decide(lead: float, verdict: str, tmp_path: Path) -> None:
    spread = 0.6 * math.sqrt(1.5)  # three values 0 and ± it: a deviation of it, and a standard error of 0.6 together
    for conv, mean in (("conv3x3", 90.0), ("rotate4", 90.0 + lead)):
        for seed in range(3):
            config = make_config("digits", changes={"conv": conv, "seed": seed})
            write_run(tmp_path / f"{conv}-{seed}", config, mean + (seed - 1) * spread)
    (one,) = contrasts(make_rows([read_run(folder) for folder in sorted(tmp_path.iterdir())]))
    assert (one.error, one.verdict) == (pytest.approx(0.6), verdict)


def test_the_narrowed_net_of_the_nearest_size_is_the_rival(comparison: Path) -> None:
    runs = read_comparison(comparison)
    sizes = {"conv3x3-w0.5": 68_050, "conv3x3-w0.25": 17_000}
    template = next(run for run in runs if run["run"] == "resnet20-conv3x3-w0.6875-seed0")
    for name, size in sizes.items():
        config = {**template["config"], "width": float(name.partition("-w")[2])}
        summary = {**template["summary"], "parameters": size}
        runs.append({**template, "run": name, "config": config, "summary": summary, "equal_to": "rotate2"})
    pairs = {(one.row.conv, one.other.label) for one in contrasts(make_rows(runs)) if one.other.equal_to}
    assert pairs == {("rotate4", "conv3x3 x0.69"), ("rotate2", "conv3x3 x0.50")}
    without = [run for run in runs if run["run"] != "conv3x3-w0.5"]
    pairs = {(one.row.conv, one.other.label) for one in contrasts(make_rows(without)) if one.other.equal_to}
    assert pairs == {("rotate4", "conv3x3 x0.69")}  # a net of another size is no rival


def test_one_seed_decides_nothing(comparison: Path) -> None:
    runs = [run for run in read_comparison(comparison) if run["config"]["seed"] == 0]
    assert {one.verdict for one in contrasts(make_rows(runs))} == {"one seed: not decided"}
    assert "| rotate4 | 121,242 | 90.50 | +0.50 | 1 |" in accuracy_table(make_rows(runs))


def test_settings_are_told_where_they_differ(tmp_path: Path) -> None:
    for name, changes in {"recipe": {}, "unscaled": {"angle_grad_scale": 1.0}, "fast": {"angle_lr_scale": 3.0}}.items():
        for conv, accuracy in (("conv3x3", 90.0), ("rotate4", 80.0 + len(name))):
            config = make_config("digits", changes={"conv": conv, **changes})
            write_run(tmp_path / name / "runs" / f"resnet20-{conv}-seed0", config, accuracy)
    rows = make_rows([run for name in ("recipe", "unscaled", "fast") for run in read_comparison(tmp_path / name)])
    assert {row.setting for row in rows} == {"", "angle_grad_scale=1.0", "angle_lr_scale=3.0"}
    assert all(dense_of(row, rows).setting == row.setting for row in rows if row.conv == "rotate4")
    lines = [line for line in validation_table(rows).splitlines() if "| rotate4 |" in line]
    assert [line.split("|")[3].strip() for line in lines] == [
        "angle_grad_scale=1.0",
        "as the recipe",
        "angle_lr_scale=3.0",
    ]
    assert lines[0].endswith("| 88.00 | 1 |")
    assert "| rotate4 | as the recipe | 121,242 |" in accuracy_table(rows)


def test_without_a_validation_split_the_table_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_config("digits", changes={"validation": False}), 90.0)
    (row,) = make_rows([read_run(tmp_path / "run")])
    assert row.validation is None
    assert "trained on too" in accuracy_table([row])


def test_the_same_seed_twice_is_refused(comparison: Path) -> None:
    runs = read_comparison(comparison)
    with pytest.raises(RunError, match="resnet20-rotate4-seed1 and again have the same configuration and seed"):
        make_rows([*runs, {**next(run for run in runs if run["run"] == "resnet20-rotate4-seed1"), "run": "again"}])


def test_studies_are_found(comparison: Path, tmp_path: Path) -> None:
    experiments = tmp_path / "experiments"
    for name in ("mnist", "gpu/svhn"):
        (experiments / name).mkdir(parents=True)
        (experiments / name / "study.toml").write_text("seeds = 3\n")
    write_study(read_comparison(comparison), experiments / "digits" / records.RECORDS)
    studies = find_studies([experiments])
    assert {name: len(runs) for name, runs in studies.items()} == {"digits": 16, "gpu/svhn": 0, "mnist": 0}
    assert find_studies([experiments / "digits"]) == {"digits": studies["digits"]}
    assert find_studies([comparison]) == {"digits": read_comparison(comparison)}
    runs = sorted((comparison / "runs").glob("*rotate4-seed*"))
    assert [run["run"] for run in find_studies(runs)["runs"]] == [run.name for run in runs]


def test_what_is_no_study_is_refused(comparison: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty is no run, no comparison and has no study in it"):
        find_studies([tmp_path / "empty"])
    with pytest.raises(RunError, match="two studies are called digits"):
        find_studies([comparison, comparison])
    with pytest.raises(RunError, match="resnet20-rotate2p-seed0 is not finished: resume it"):
        find_studies([comparison / "runs" / "resnet20-rotate2p-seed0"])
    with pytest.raises(RunError, match="expected a finished run to write into"):
        write_study([], tmp_path / records.RECORDS)


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
    (tmp_path / records.RECORDS).write_text(text)
    with pytest.raises(RunError, match=message):
        read_study(tmp_path)


PAGE = (
    "one\n<!-- report: table digits -->\nold\n<!-- end -->\ntwo\n<!-- report: pictures gpu -->\n<!-- end -->\nthree\n"
)


def test_a_page_is_filled_and_then_stays(comparison: Path) -> None:
    studies = {"digits": read_comparison(comparison), "gpu/svhn": []}
    assert blocks(PAGE) == [("table", "digits"), ("pictures", "gpu")]
    filled = fill_page(PAGE, studies)
    assert fill_page(filled, studies) == filled
    assert [part for part in ("one", "two", "three", "old") if part in filled] == ["one", "two", "three"]
    assert accuracy_table(make_rows(studies["digits"])) in filled
    told = "Not measured yet: `rotateconv compare --config experiments/gpu/svhn/study.toml --out runs/gpu/svhn`"
    assert told in filled
    measured = fill_page(PAGE, {"digits": [], "gpu/svhn": studies["digits"]})
    assert "![gpu-curves](results/gpu-curves.png)" in measured


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("table digit", "there is no study 'digit': did you mean digits?"),
        ("tables digits", "a page asks for 'tables': did you mean table?"),
    ],
)
def test_a_page_that_asks_for_what_is_not_there_is_refused(block: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        fill_page(f"<!-- report: {block} -->\n<!-- end -->", {"digits": []})


def analysis_of(rejected: bool) -> Record:
    after = CROWDED if rejected else UNIFORM
    layer = {"slices": 50, "movement": {"mean": 0.3, "max": 2.0}, "before": UNIFORM, "after": after}
    layers = [
        {"name": f"stages.{i}", **layer, "shuffled": {"mean": 80.0 + i, "std": 0.5, "draws": 3}} for i in (2, 0, 1)
    ]
    together = {**layer, "shuffled": {"mean": 12.5, "std": 1.0, "draws": 3}}
    together["histogram"] = {"before": [1, 2, 3, 4], "after": [4, 3, 2, 1]}
    angles = {"period": math.pi, "layers": layers, "all": together}
    packed = {"bytes": 50_000, "validation_accuracy": 89.5}
    return {"validation_accuracy": 90.0, "validation_seen": False, "packed": packed, "angles": angles}


def test_the_angles_table_says_what_shuffling_costs(comparison: Path) -> None:
    run = comparison / "runs" / "resnet20-rotate4-seed0"
    before = accuracy_table(make_rows(read_comparison(comparison)))
    (run / "analysis.json").write_text(json.dumps(analysis_of(rejected=True)))
    rows = make_rows(read_comparison(comparison))
    table = angle_table(rows)
    assert "| resnet20 | rotate4 | 0.200 | 1.40 | 3 |" in table
    worst = "| resnet20 | rotate4 | stages.0 | 90.00 | 12.50 | 80.00 | 89.50 |"
    assert f"{worst} 0.0200 | **0.3100** | +0.0010 | +0.2000 | 0.1000 | 1 |" in table
    assert "rotate4-fixed" not in table
    (run / "analysis.json").write_text(json.dumps(analysis_of(rejected=False)))
    assert "**0.0200**" not in angle_table(make_rows(read_comparison(comparison)))
    assert "packed bytes" not in before
    assert "| resnet20 | rotate4 | 121,242 | 50,000 |" in accuracy_table(rows)
    assert "| resnet20 | rotate2 | 61,850 | - |" in accuracy_table(rows)
    assert angle_table([row_of(comparison, "conv3x3")]) == "No net here has angles."


def write_sizes_of(folder: Path) -> str:
    """What `compare --sizes` leaves in a comparison's folder; return its table."""
    rows = [
        SizeRow("conv3x3", True, 4, False, 150_000.0, (91.0, 92.0)),
        SizeRow("rotate4", False, 4, True, 60e3, (90.0,)),
    ]
    write_sizes(rows, folder, "digits")
    return (folder / "sizes.md").read_text().rstrip()


def test_accuracy_against_bytes_is_kept_and_shown(comparison: Path, tmp_path: Path) -> None:
    page, experiments = "<!-- report: sizes digits -->\n<!-- end -->", tmp_path / "experiments"
    file = experiments / "digits" / records.RECORDS
    report(comparison, "--records", file)
    studies = find_studies([experiments])
    assert find_sizes([experiments]) == {}
    assert "Not measured yet: `rotateconv compare --sizes`" in fill_page(page, studies, {})
    table = write_sizes_of(comparison)
    report(comparison, "--records", file)
    sizes = find_sizes([experiments])
    assert sizes == find_sizes([comparison])
    assert fill_page(page, studies, sizes) == f"<!-- report: sizes digits -->\n{table}\n<!-- end -->"
    (tmp_path / "page.md").write_text(page)
    report(experiments, "--page", tmp_path / "page.md")
    assert table in (tmp_path / "page.md").read_text()
    (file.parent / "sizes.json").write_text("[")
    with pytest.raises(RunError, match=r"sizes\.json is no JSON: write it again with rotateconv compare --sizes"):
        find_sizes([experiments])


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every picture that is drawn."""
    seen: list[Axes] = []
    save = matplotlib.figure.Figure.savefig

    def remember(self: matplotlib.figure.Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        seen.extend(self.axes)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remember)
    return seen


def test_curves_show_every_row_over_epochs(comparison: Path, axes: list[Axes], tmp_path: Path) -> None:
    rows = make_rows(read_comparison(comparison))
    draw_curves(rows, tmp_path / "curves.png")
    loss, accuracy, moved = axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1.23457, 0.617284]] * 5
    expected = [
        [mean - 1, mean] for mean in (statistics.fmean(ACCURACIES[row.conv, row.width]) for row in rows if row.runs)
    ]
    assert [list(line.get_ydata()) for line in accuracy.lines] == [pytest.approx(pair) for pair in expected]
    assert [list(line.get_xdata()) for line in moved.lines] == [[1, 2]] * 2  # rotate4 and rotate2 learn angles
    assert [len(drawn.collections) for drawn in axes] == [0, 5, 2]  # bands


def test_points_of_the_rows_and_published_ones(comparison: Path, axes: list[Axes], tmp_path: Path) -> None:
    rows = make_rows(read_comparison(comparison))
    draw_parameters(rows, tmp_path / "ours.png")
    draw_parameters(rows, tmp_path / "all.png", PUBLISHED)
    ours, both = axes
    points = [(bars[0].get_xdata()[0], bars[0].get_ydata()[0]) for bars in ours.containers]
    assert points == [(row.parameters, row.accuracy.mean) for row in rows if row.runs]
    hollow = [bars[0].get_markerfacecolor() == "white" for bars in ours.containers]
    assert hollow == [row.equal_to is not None for row in rows if row.runs]
    crosses = [line for line in both.lines if line.get_marker() == "x"]
    assert [line.get_ydata()[0] for line in crosses] == [point.accuracy for point in PUBLISHED]
    legends = [[text.get_text() for text in drawn.figure.legends[0].texts] for drawn in axes]
    assert [name for name in legends[1] if name not in legends[0]] == ["published: true CIFAR-10,\nother recipes"]


def test_bars_of_an_analysed_run(axes: list[Axes], tmp_path: Path) -> None:
    draw_angles(analysis_of(rejected=True), tmp_path / "angles.png")
    moved, lost, spread = axes
    assert [bar.get_height() for bar in moved.patches] == [0.3] * 3
    assert [bar.get_height() for bar in lost.patches] == pytest.approx([8.0, 10.0, 9.0])
    assert [list(patch.get_data().values) for patch in spread.patches] == [[1, 2, 3, 4], [4, 3, 2, 1]]
    assert spread.patches[0].get_data().edges[-1] == pytest.approx(math.pi)


def test_a_study_draws_what_its_page_names(comparison: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        file = comparison / "runs" / f"resnet20-rotate4-seed{seed}" / "analysis.json"
        file.write_text(json.dumps(analysis_of(rejected=True)))
    rows = make_rows(read_comparison(comparison))
    expected = ["a-b-curves.png", "a-b-parameters.png", "a-b-resnet20-rotate4-seed1-angles.png"]
    assert draw_study("a/b", rows, tmp_path) == expected
    assert sorted(path.name for path in tmp_path.glob("*.png")) == expected
    page = fill_page("<!-- report: pictures a/b -->\n<!-- end -->", {"a/b": read_comparison(comparison)})
    assert all(f"](results/{name})" in page for name in expected)


def report(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_the_command_prints_writes_and_fills(comparison: Path, tmp_path: Path) -> None:
    experiments, page, out = tmp_path / "experiments", tmp_path / "docs" / "page.md", tmp_path / "out"
    assert report(comparison) == to_markdown(find_studies([comparison]))
    file = experiments / "digits" / records.RECORDS
    assert report(comparison, "--records", file).split() == ["records", str(file)]
    report(experiments, "--out", out)
    assert {path.name for path in out.iterdir()} == {"report.md", "digits-curves.png", "digits-parameters.png"}
    assert "![digits-curves](digits-curves.png)" in (out / "report.md").read_text()
    page.parent.mkdir()
    page.write_text("<!-- report: pictures digits -->\n<!-- end -->\n")
    report(experiments, "--page", page)
    assert page.read_text() == fill_page(page.read_text(), find_studies([experiments]))
    assert {path.name for path in (page.parent / "results").iterdir()} == {"digits-curves.png", "digits-parameters.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run, no comparison and has no study in it"),
        (["{}", "--page", "no.md"], "cannot read no.md: No such file"),
        (["{}", "--data-dir", "x"], "--data-dir has no meaning without --analysis"),
        (["{}", "--analysis", "--draws", "0"], "--draws must be 1 or more, not 0"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, comparison: Path) -> None:
    told = report(*(argument.format(comparison) for argument in arguments), code=2)
    assert message in told
    assert len(told.splitlines()) == 1


def test_the_examples_of_the_help_parse() -> None:
    group = typer.main.get_command(app)
    examples = re.findall(r"\[bold\](.*)\[/bold\]", EXAMPLES)
    assert len(examples) >= 4
    for example in examples:
        program, command, *rest = shlex.split(example)
        assert (program, command) == ("rotateconv", "report")
        group.commands[command].make_context(command, rest)  # raises where an option is unknown
