"""A run as a folder of the Hub's form: what is in it is the run's, its card says only what was measured."""

import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import invoke
from rotateconv.errors import InputError, RunError
from rotateconv.lab import evaluate, fit, load, save_for_hub
from rotateconv.lab.config import make_config
from rotateconv.lab.report.model_card import CARD_PICTURE

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "run"
    fit(make_config("digits", changes={"width": 0.25, "epochs": 2, "data_dir": "/secret/place"}), out)
    return out


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("something was sent")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.slow
def test_the_folder_is_the_run(run: Path, tmp_path: Path, offline: None) -> None:
    from rotateconv.hub import RotateConvNet

    folder = tmp_path / "folder"
    for _ in range(2):  # the second time over the first
        result = invoke(["export", run, "--to", "hub", "--out", folder, "--license", "cc0-1.0", "--weight-bits", "3"])
        assert result.exit_code == 0, result.output
    expected, loaded = load(run), RotateConvNet.from_pretrained(folder)
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(images), expected.model(images))
    assert tuple(loaded.classes) == expected.classes
    card = hub.ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc0-1.0", "rotateconv")
    (found,) = card.data.eval_results
    assert found.metric_value == pytest.approx(evaluate(run).accuracy, abs=1e-4)
    rows = {name: cells.split("|") for name, cells in re.findall(r"\| \[`(\S+)`\]\(\1\) \|(.*)\|\n", card.text)}
    assert rows.keys() == {"model.safetensors", "model.onnx"}
    for name, (_, size, _) in rows.items():
        assert int(size.replace(",", "")) == (folder / name).stat().st_size
    told = invoke(["evaluate", folder / "model.onnx", "--data", "digits"]).stdout
    assert f"test accuracy {rows['model.onnx'][2].strip()} %" in told
    assert "codes of 3 bits" in rows["model.onnx"][0]
    recipe = re.search(r"```toml\n(.*?)```", card.text, re.DOTALL)
    (tmp_path / "recipe.toml").write_text(recipe[1])
    assert make_config(file=tmp_path / "recipe.toml", changes={"data_dir": "/secret/place"}) == expected.config
    assert "secret" not in card.content
    assert f"({CARD_PICTURE})" in card.text
    assert (folder / CARD_PICTURE).read_text().startswith("<?xml")


@pytest.mark.slow
def test_what_is_no_model_for_the_hub(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds \S+: choose a new folder for the model"):
        save_for_hub(run, run)
    part = tmp_path / "part"
    shutil.copytree(run, part)
    (part / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished: resume it first"):
        save_for_hub(part, tmp_path / "out")
    assert not (tmp_path / "out").exists()
