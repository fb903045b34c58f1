"""A model of the user's own through every command that opens what it left."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from commands import invoke
from rotateconv.lab.data import images
from rotateconv.lab.train import trust
from small import small_digits

OWN = """
from torch import nn
from rotateconv import RotateConv2d
def build():
    body = [RotateConv2d(1, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
"""
BUILT_BY = ["--model", "own_notes:build"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of a user's own model, and its packed file."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_notes.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "_allowed", set())
        patch.setattr(sys, "path", [*sys.path])
        patch.chdir(folder)
        data = small_digits()
        patch.setattr(images, "load_data", lambda name, *args, **kwargs: data)
        assert invoke(["train", "--set", "factory=own_notes:build", "--epochs", "1", "--out", "run"]).exit_code == 0
        assert invoke(["pack", "run", "--out", "own.rcp"]).exit_code == 0
        Image.new("L", (8, 8), 100).save("image.png")
        yield folder
    sys.modules.pop("own_notes", None)


def run(*arguments: str) -> str:
    result = invoke(arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_analyse(folder: Path) -> None:
    run("analyse", "run")
    analysis = json.loads((folder / "run" / "analysis.json").read_text())
    assert analysis["angles"] is not None
    assert analysis["packed"]["bytes"] < 1200


@pytest.mark.slow
def test_the_file_says_what_the_run_says(folder: Path) -> None:
    run("export", "own.rcp", "--to", "onnx", "--out", "own.onnx", *BUILT_BY)
    shown = (["own.rcp", *BUILT_BY], ["own.onnx"], ["run"])
    answers = [json.loads(run("predict", *model, "image.png", "--json", "--top", "1"))[0]["classes"] for model in shown]
    assert len({answer["class"] for (answer,) in answers}) == 1
    assert "test accuracy" in run("evaluate", "own.rcp", "--data", "digits", *BUILT_BY)


def test_unpack_writes_its_state_dict(folder: Path) -> None:
    run("unpack", "own.rcp", "--out", "own.safetensors", *BUILT_BY)
    assert load_file("own.safetensors").keys() == load_file("run/model.safetensors").keys()


@pytest.mark.parametrize(
    "command",
    [
        ["export", "own.rcp", "--to", "onnx", "--out", "x.onnx"],
        ["unpack", "own.rcp", "--out", "x.safetensors"],
        ["predict", "own.rcp", "image.png"],
        ["evaluate", "own.rcp", "--data", "digits"],
    ],
)
def test_a_file_that_needs_a_function_says_so(folder: Path, command: list[str]) -> None:
    result = invoke(command)
    assert result.exit_code == 2
    assert (
        "own.rcp holds a Sequential, a model of your own: say which function builds it, with --model" in result.stderr
    )


@pytest.mark.parametrize(
    "command",
    [
        ["export", "run", "--to", "onnx", "--out", "x.onnx"],
        ["unpack", "own.rcp"],
        ["predict", "run", "image.png"],
        ["evaluate", "run"],
    ],
)
def test_a_function_where_none_is_needed_is_refused(folder: Path, command: list[str]) -> None:
    result = invoke([*command, *BUILT_BY])
    assert result.exit_code == 2
    assert "--model" in result.stderr
