"""What the pages say holds: links and anchors lead somewhere, examples run, tables and pictures are of the code."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rotateconv
import rotateconv.lab
from rotateconv import build_model
from rotateconv.lab.cli import app
from rotateconv.lab.report.blocks import blocks

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
# The tutorial is run as its notebook.
EXAMPLES = [
    page
    for page in PAGES
    if page.parent == DOCS and page.name != "tutorial.md" and "```python\n" in page.read_text("utf-8")
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page get, as Python-Markdown makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), flags=re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        count = sum(one == slug or re.fullmatch(rf"{re.escape(slug)}_\d+", one) is not None for one in found)
        found.add(f"{slug}_{count}" if count else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if page.parent == DOCS:
            assert DOCS in (file, *file.parents), f"{target} is not on the site"
        if anchor and not anchor.startswith("only-"):  # of a picture: shown in one color scheme only
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_those_that_there_are(page: Path) -> None:
    text = page.read_text("utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        lines = block.replace("\\\n", "")
        for command in re.findall(r"^(?:.* -m |  exec )?rotateconv (.+?)'?$", lines, flags=re.MULTILINE):
            # Raises where an option is unknown, one is missing, or its value has another type.
            app.parse_args(shlex.split(command, comments=True), exit_on_error=False, print_error=False)
    inline = [shlex.split(span) for span in re.findall(r"`((?:rotateconv|make) [^`]+)`", FENCE.sub("", text))]
    for program, name, *words in inline:
        if program == "rotateconv" and name != "COMMAND":
            known = {spelling for one in app[name].assemble_argument_collection() for spelling in one.names}
            assert {word for word in words if word.startswith("--")} <= {*known, "--help"}, (name, *words)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    made = {name for program, name, *_ in inline if program == "make"}
    assert made | set(re.findall(r"^make ([\w-]+)", text, flags=re.MULTILINE)) <= targets
    for name in re.findall(
        r"(?<![\w/])(?:experiments|benchmarks|examples|tests|tools|docs)/[a-z\d_./-]+\.[a-z]+", text
    ):
        assert (ROOT / name).exists(), name


def test_every_page_is_in_the_menu() -> None:
    menu = set(re.findall(r'= "([\w-]+\.md)"', (ROOT / "zensical.toml").read_text("utf-8")))
    assert menu == {page.name for page in DOCS.glob("*.md")}


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES, ids=name_of)
def test_examples_run_in_the_order_in_which_they_stand(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torchvision", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for example in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
        exec(compile(example, str(page), "exec"), names)


def test_there_are_examples() -> None:
    assert {"docs/quickstart.md", "docs/training-loop.md"} <= set(map(name_of, EXAMPLES))


def test_the_parameter_table_is_right() -> None:
    table = re.search(
        r"<!-- parameters -->\n(.*?)<!-- /parameters -->", (DOCS / "concepts.md").read_text("utf-8"), flags=re.DOTALL
    )
    assert table is not None
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].strip().splitlines()]
    assert len(rows) >= 7
    for model, *counts in rows:
        for conv, count in zip(head[1:], counts, strict=True):
            assert int(count.replace(",", "")) == sum(p.numel() for p in build_model(model, conv).parameters())


def test_pictures_are_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    runpy.run_path(str(ROOT / "tools" / "pictures.py"))["draw"](tmp_path)
    made = {file.name: file.read_text("utf-8") for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text("utf-8") for file in (DOCS / "pictures").iterdir()}
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == [], "make pictures"


def test_the_notebook_is_the_tutorial() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "notebook.py"))
    assert tool["NOTEBOOK"].read_text("utf-8") == tool["notebook"](tool["PAGE"].read_text("utf-8")), "make pictures"


@pytest.mark.slow
def test_the_notebook_runs_and_says_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision", exc_type=ImportError)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "make_your_model_small.ipynb").read_text("utf-8"))
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    printed = capsys.readouterr().out
    dense, packed = (float(re.search(rf"{name}: ([\d.]+) %", printed)[1]) for name in ("dense", "packed"))  # type: ignore[index]
    assert dense > 60  # three classes: a third is chance
    assert packed > dense - 20
    assert "11,178,051 parameters before, 2,645,315 after" in printed
    sizes = re.search(r"%, ([\d,]+) bytes where float32 takes ([\d,]+)", printed)
    assert sizes is not None
    small, large = (int(size.replace(",", "")) for size in sizes.groups())
    assert 29 * small < large  # "a thirtieth of its size"


@pytest.mark.slow
def test_the_source_archive_is_small(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.iterdir()
    assert archive.stat().st_size < 1_000_000


def test_every_public_name_is_in_the_reference() -> None:
    for page, package in (("api.md", rotateconv), ("api-lab.md", rotateconv.lab)):
        shown = re.findall(r"^::: (\S+)$", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE)
        assert len(shown) == len(set(shown))
        assert set(package.__all__) <= {name.rpartition(".")[2] for name in shown}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings")
    site = tmp_path / "site"
    settings = (ROOT / "zensical.toml").read_text("utf-8")
    for name in ("docs", "src", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "zensical.toml").write_text(settings, "utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (site / "api.html").read_text("utf-8") + (site / "api-lab.html").read_text("utf-8")
    for package in (rotateconv, rotateconv.lab):
        for name in package.__all__:
            assert re.search(rf'<h3 id="{package.__name__}\.([\w.]+\.)?{name}"', reference), name


def test_the_page_of_compact_files_is_that_of_its_records() -> None:
    pytest.importorskip("onnxruntime")
    text = (DOCS / "compact-onnx.md").read_text("utf-8")
    filled = runpy.run_path(str(ROOT / "benchmarks" / "compact_onnx.py"))["fill"](text)
    assert filled == text, "docs/compact-onnx.md is older than its records: python benchmarks/compact_onnx.py --page"
    assert set(blocks(text, "compact")) == {"sizes", "times", "machine", "runtimes"}
