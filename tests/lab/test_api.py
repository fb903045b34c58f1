"""The laboratory from Python, by its public names."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import rotateconv.lab
from rotateconv.errors import ConfigError, DataError, RunError, RunInterrupted
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.preprocessing import Preprocessing
from rotateconv.lab.data.sets import ImageData
from small import StopAt, tiny_config

pytestmark = pytest.mark.usefixtures("tiny")


def test_every_name_is_what_type_checkers_are_told() -> None:
    tree = ast.parse(Path(rotateconv.lab.__file__).read_text("utf-8"))
    told = {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("rotateconv.lab")
        for alias in node.names
    }
    assert sorted(told) == rotateconv.lab.__all__
    for name, (module, attribute) in told.items():
        assert getattr(rotateconv.lab, name) is getattr(importlib.import_module(module), attribute)
        assert inspect.getdoc(getattr(rotateconv.lab, name))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rotateconv.lab.nothing  # noqa: B018
    assert rotateconv.lab.bench.__name__ == "rotateconv.lab.bench"


def test_a_run_comes_back_with_all_that_belongs_to_it(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(conv="rotate4")
    summary = rotateconv.lab.fit(config, tmp_path / "run", data=data)
    run = rotateconv.lab.load(tmp_path / "run")
    assert run.config == config
    assert run.classes == data.classes
    assert run.record.summary == summary
    scores = run.model(run.preprocessing(data.test.images))
    correct = (scores.argmax(1) == data.test.labels).float().mean().item()
    assert 100 * correct == pytest.approx(summary.test_accuracy)
    assert rotateconv.lab.evaluate(tmp_path / "run", data=data).accuracy == summary.test_accuracy
    with pytest.raises(ConfigError, match="split must be train, validation or test, not 'tests'"):
        rotateconv.lab.evaluate(tmp_path / "run", "tests", data=data)


def test_an_unfinished_run_has_a_model_and_no_record(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(RunInterrupted):
        rotateconv.lab.fit(tiny_config(), tmp_path / "run", data=data, on_event=StopAt(3))
    assert rotateconv.lab.load(tmp_path / "run").record is None
    with pytest.raises(RunError, match="nothing is not there: name the folder of a run"):
        rotateconv.lab.load(tmp_path / "nothing")


@pytest.mark.parametrize("channels", [1, 3])
def test_image_files_become_what_the_model_takes(tmp_path: Path, channels: int) -> None:
    description = DataDescription(
        "x", ("a", "b"), (0.5,) * channels, (0.25,) * channels, (channels, 6, 8), False, 1, 1, 1
    )
    preprocessing = Preprocessing(description)
    fits, larger = tmp_path / "fits.png", tmp_path / "larger.png"
    Image.new("RGB", (8, 6), (255, 255, 255)).save(fits)
    Image.new("RGB", (40, 20), (0, 0, 0)).save(larger)
    images, resized = preprocessing.read([fits, larger])
    assert resized == [False, True]
    normalized = preprocessing(images)
    assert normalized.shape == (2, channels, 6, 8)
    torch.testing.assert_close(normalized[0], torch.full((channels, 6, 8), 2.0))
    torch.testing.assert_close(normalized[1], torch.full((channels, 6, 8), -2.0))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    preprocessing = Preprocessing(DataDescription("x", ("a",), (0.5,), (0.5,), (1, 4, 4), False, 1, 1, 1))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text.png does not decode as an image"):
        preprocessing.read([tmp_path / "text.png"])
    with pytest.raises(DataError, match=r"there is no image .*none.png"):
        preprocessing.read([tmp_path / "none.png"])
    with pytest.raises(DataError, match=r"expected images of 1 x 4 x 4 in uint8, not 1 x 5 x 4 in torch.uint8"):
        preprocessing(torch.zeros(2, 1, 5, 4, dtype=torch.uint8))


@pytest.mark.slow
def test_the_laboratory_is_there_for_whoever_asks_and_for_nobody_else() -> None:
    code = (
        "import sys, rotateconv; from rotateconv import *; rotateconv.nn;"
        "assert not [name for name in sys.modules if name.startswith('rotateconv.lab')];"
        "print(rotateconv.lab.load.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "load\n"
