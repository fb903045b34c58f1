"""The page of a run: all of it in one file, names as text, and no complaint of a browser."""

import dataclasses
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from commands import invoke
from rotateconv.lab.report.html import comparison_page, run_page
from rotateconv.lab.report.html_charts import Series, confusion_matrix, line_chart, rose
from rotateconv.lab.report.statistics import make_groups
from rotateconv.lab.study.run_details import FileSize, MovedLayer, RunDetails, read_details
from study_runs import write_comparison

RUN = Path(__file__).parents[2] / "fixtures" / "run-folder"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture(scope="module")
def details() -> RunDetails:
    return read_details(RUN)


def hostile(details: RunDetails) -> RunDetails:
    """The same run of somebody who wrote HTML wherever a name is free."""
    record = details.record
    data = dataclasses.replace(record.data, name=HOSTILE, classes=(HOSTILE, *record.data.classes[1:]))
    layers = tuple(dataclasses.replace(layer, name=HOSTILE) for layer in details.layers)
    record = dataclasses.replace(record, name=HOSTILE, data=data)
    sizes = (*details.sizes, FileSize(HOSTILE, None, HOSTILE))
    return dataclasses.replace(details, record=record, layers=layers, command=HOSTILE, start=HOSTILE, sizes=sizes)


@pytest.mark.slow
def test_a_page_shows_what_the_run_found(details: RunDetails) -> None:
    page = run_page(details)
    result = details.record.result
    expected = [f"{result.test_accuracy:.2f} %", f"{result.parameters:,}", "--conv rotate2p", 'conv = "rotate2p"']
    expected += [f"{size.bytes:,} B" for size in details.sizes if size.bytes] + [one.name for one in details.layers]
    assert [text for text in expected if text not in page and escape(text) not in page] == []


def test_a_page_needs_nothing_beside_it(details: RunDetails) -> None:
    page = run_page(details)
    assert re.findall(r"""\s(?:src|href)=(?!"data:,)""", page) == []
    assert re.findall(r"url\(|@import|fetch\(", page) == []
    assert "://" not in page


def test_names_of_others_are_text(details: RunDetails) -> None:
    page = run_page(hostile(details))
    assert "<script>document" not in page
    assert "<img" not in page
    assert page.count(escape(HOSTILE)) > 8
    assert page.count("<script") == 2  # the kernels and what draws them


@pytest.mark.parametrize("log", [False, True])
def test_charts_are_whole_svg(log: bool) -> None:
    series = [Series("a", (None, 1.0, 99.0), "red"), Series("b", (5.0,), "blue"), Series("c", (None,), "green")]
    figure = line_chart("accuracy, %", series, log=log)
    drawn = ElementTree.fromstring(figure)
    assert len(drawn.findall(".//polyline")) == 2
    places = [
        float(value) for line in drawn.findall(".//polyline") for value in re.split("[ ,]", line.get("points", ""))
    ]
    assert all(0 <= place <= 360 for place in places)
    assert line_chart("nothing", series[2:]) == ""
    ElementTree.fromstring(rose((0, 0), (0, 0), 2, "a layer"))
    ElementTree.fromstring(rose(None, (1, 2, 3), 1, "a layer"))


@pytest.mark.parametrize("number", [2, 10, 30, 100])
def test_a_confusion_matrix_has_a_cell_for_every_count(number: int) -> None:
    counts = [[row * column % 3 for column in range(number)] for row in range(number)]
    drawn = ElementTree.fromstring(confusion_matrix(counts, [f"class {n}" for n in range(number)]))
    cells = [cell for cell in drawn.iter("rect") if cell.get("class") in ("right", "wrong")]
    assert len(cells) == sum(count > 0 for row in counts for count in row)


def test_a_comparison_has_a_part_for_each_of_its_runs(details: RunDetails, tmp_path: Path) -> None:
    from rotateconv.lab.study.study_record import read_comparison

    study = read_comparison(write_comparison(tmp_path / "digits"))
    groups = make_groups(study.runs)
    other = dataclasses.replace(details, layers=())
    page = comparison_page("a <b>", groups, study.contrasts, [details, other])
    assert page.count("<details>") == 2
    assert page.count('id="time"') == 1
    assert "a &lt;b&gt;" in page
    for group in groups:
        assert f">{group.label}<" in page


@pytest.mark.parametrize("width", [360, 1440])
def test_a_browser_has_nothing_to_complain_of(width: int, details: RunDetails, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    file = tmp_path / "page.html"
    file.write_text(run_page(hostile(details)), "utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--enable-logging=stderr"]
    home = [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom"]
    run = subprocess.run([browser, *arguments, *home, file.as_uri()], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<title>owned" not in run.stdout
    assert '<output id="shown">end</output>' in run.stdout, "the script did not run to its end"
    assert run.stdout.count("<canvas") == len(details.layers) > 0
    assert re.search(r'<canvas [^>]*width="\d+"', run.stdout), "no kernel was drawn"


@pytest.mark.slow
def test_the_command_writes_a_page_of_one_folder(tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    done = invoke(["report", RUN, "--html", file])
    assert (done.exit_code, file.read_text("utf-8")[:15]) == (0, "<!doctype html>"), done.stderr
    several = invoke(["report", RUN, RUN, "--html", file])
    assert several.exit_code == 2
    assert "--html is the page of one run or comparison, not of 2: name one folder" in several.stderr
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    empty = invoke(["report", tmp_path / "empty", "--html", file])
    assert empty.exit_code == 2
    assert "is finished: a page shows what runs found" in empty.stderr
    records = invoke(["report", Path(__file__).parents[3] / "experiments" / "digits", "--html", file])
    assert records.exit_code == 2
    assert "is no run and no comparison: a page with kernels needs the weights" in records.stderr


def test_a_run_without_angles_has_no_kernels(details: RunDetails) -> None:
    page = run_page(dataclasses.replace(details, layers=(), confusion=None))
    assert "<script" not in page
    assert "Confusion" not in page


def test_a_rose_of_a_layer_tells_before_from_after(details: RunDetails) -> None:
    layer: MovedLayer = details.layers[0]
    both, after = rose(layer.before, layer.after, 1, "a"), rose(None, layer.after, 1, "a")
    assert ('class="before"' in both, 'class="before"' in after) == (True, False)
