"""The page's files are what tools/page.py makes; its own tests (make page-test) need Node and Chromium."""

import base64
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = ROOT / "web"
MODELS = WEB / "public" / "models"
if not WEB.is_dir():
    pytest.skip("the page is in the repository, not in the source archive", allow_module_level=True)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def test_the_cases_of_the_formula_are_current() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "page.py"))["cases"]()
    committed = json.loads((WEB / "tests" / "cases.json").read_text("utf-8"))
    assert made["images"] == committed["images"]
    for one, other in zip(made["kernels"], committed["kernels"], strict=True):
        for key, value in one.items():
            assert other[key] == (pytest.approx(value, abs=1e-7) if isinstance(value, list) else value)


@pytest.mark.parametrize("file", sorted(MODELS.glob("*.onnx")), ids=lambda file: file.stem)
def test_the_models_are_small_and_run(file: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert {"classes", "mean", "std", "input_size", "command", "versions"} <= set(about)
    assert session.get_outputs()[0].shape[1] == len(json.loads(about["classes"]))
    assert file.stat().st_size < 50_000
    layers = json.loads(file.with_suffix(".json").read_text("utf-8"))["layers"]
    for layer in layers:
        for key in ("weight", "before", "after"):
            assert len(base64.b64decode(layer[key])) == layer["out"] * layer["in"]
        assert set(base64.b64decode(layer["after"])) <= set(range(0, 256, 16)), "angles of four bits"


def test_both_models_are_there_and_all_files_are_small() -> None:
    assert {file.stem for file in MODELS.glob("*.onnx")} == {"mnist", "cifar10-jpeg"}
    assert sum(file.stat().st_size for file in MODELS.iterdir() if file.is_file()) < 300_000


@pytest.mark.slow
def test_the_page_in_a_browser() -> None:
    if not any(map(shutil.which, BROWSERS)) or not (WEB / "node_modules" / "installed").exists():
        pytest.skip("needs Chromium and what make page-test installs")
    subprocess.run([sys.executable, ROOT / "tools" / "page.py", "dense"], check=True)
    for words in (["run", "build"], ["test"]):
        subprocess.run(["npm", "--silent", *words], cwd=WEB, check=True)
