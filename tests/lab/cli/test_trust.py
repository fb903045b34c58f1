"""No command imports what a folder or a file names, unless the user named it."""

import json
import sys
from pathlib import Path

import pytest

from commands import invoke
from rotateconv.lab.data import images
from rotateconv.lab.train import trust
from rotateconv.lab.train.fit import fit
from rotateconv.models import MODELS, described
from small import Tiny, small_digits, tiny_config

EVIL = """
from pathlib import Path
from small import Tiny
Path("marker").write_text("this code ran")
def net():
    return Tiny("rotate4", 10, 1, 1.0)
def leaves():
    raise SystemExit(0)
"""
COMMANDS = {
    "info": ["info", "evil"],
    "evaluate": ["evaluate", "evil"],
    "pack": ["pack", "evil", "--out", "evil.rcp"],
    "export": ["export", "evil", "--to", "torch-export", "--out", "evil.pt2"],
    "analyse": ["analyse", "evil"],
    "train --resume": ["train", "--resume", "evil"],
    "train --source": ["train", "--source", "evil"],
    "train --teacher": ["train", "--set", "model=tiny", "--teacher", "evil", "--epochs", "1"],
    "convert": ["convert", "evil", "--taps", "free"],
    "finish": ["finish", "evil"],
    "shrink": ["shrink", "evil", "--budget", "40KB"],
    "compare --sizes --with": [
        *("compare", "--models", "tiny", "--convs", "conv3x3", "--seeds", "1", "--epochs", "1"),
        *("--sizes", "--with", "evil", "--jobs", "1"),
    ],
    "train --config": ["train", "--config", "evil.toml"],
    "compare --config": ["compare", "--config", "evil.toml"],
}


@pytest.fixture(autouse=True)
def evil(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stranger's folder `evil`, with its module beside it: the marker says whether it was imported."""
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    monkeypatch.setattr(trust, "_allowed", set())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    data = small_digits()
    monkeypatch.setattr(images, "load_data", lambda name, *args, **kwargs: data)
    (tmp_path / "evil_notes.py").write_text(EVIL)
    (tmp_path / "evil.toml").write_text('factory = "evil_notes:net"\nepochs = 1\n')
    fit(tiny_config(epochs=1), tmp_path / "evil", data=data)
    config = json.loads((tmp_path / "evil" / "config.json").read_text())
    (tmp_path / "evil" / "config.json").write_text(json.dumps({**config, "factory": "evil_notes:net"}))
    yield
    sys.modules.pop("evil_notes", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_a_stranger_names_is_imported(name: str) -> None:
    result = invoke(COMMANDS[name])
    assert not Path("marker").exists()
    assert "evil_notes" not in sys.modules
    assert result.exit_code == 2, result.output
    assert "wants to import and call 'evil_notes:net', which runs that code: if it is yours, say so" in result.stderr
    assert "Traceback" not in result.output


def test_reading_a_library_function_is_refused_too() -> None:
    path = Path("evil", "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "factory": "os:getpid"}))
    assert "wants to import and call 'os:getpid'" in invoke(["evaluate", "evil"]).stderr


@pytest.mark.parametrize("name", ["info", "evaluate", "pack", "train --config"])
def test_what_the_user_trusts_is_imported_and_remembered(name: str) -> None:
    result = invoke([*COMMANDS[name], "--trust", "evil_notes:net"])
    assert result.exit_code == 0, result.output
    assert Path("marker").exists()
    assert invoke(["evaluate", "evil"]).exit_code == 0


def test_trust_is_of_one_function() -> None:
    result = invoke(["evaluate", "evil", "--trust", "evil_notes:other"])
    assert result.exit_code == 2
    assert not Path("marker").exists()
    assert (
        "--trust must be package.module:function, not 'evil_notes'"
        in invoke(["evaluate", "evil", "--trust", "evil_notes"]).stderr
    )


def test_a_function_that_leaves_is_one_sentence() -> None:
    path = Path("evil", "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "factory": "evil_notes:leaves"}))
    result = invoke(["evaluate", "evil", "--trust", "evil_notes:leaves"])
    assert result.exit_code == 2
    assert "cannot build a model with evil_notes:leaves: SystemExit" in result.stderr


@pytest.mark.parametrize("command", ["train", "compare", "search"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = 1000.0", "its model has 118,787,824,029 numbers, more than the 50,000,000 allowed"),
        (
            'model = "densenet40"\ngrowth = 10000',
            "its model has 324,066,243,649 numbers, more than the 50,000,000 allowed: if",
        ),
        ("width = 1e300", "its model is larger than any memory"),
    ],
)
def test_a_strangers_file_builds_no_huge_model(command: str, text: str, message: str) -> None:
    if command == "compare":
        text = text.replace('model = "densenet40"', 'models = ["densenet40"]')
    Path("huge.toml").write_text(text)
    result = invoke([command, "--config", "huge.toml"])
    assert result.exit_code == 2, result.output
    assert f"huge.toml: {message}" in result.stderr


def test_a_huge_model_is_the_users_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "MAX_PARAMETERS", 10)
    Path("wide.toml").write_text('data = "digits"\nepochs = 1\nwidth = 0.25')
    assert "wide.toml: its model has" in invoke(["train", "--config", "wide.toml"]).stderr
    result = invoke(["train", "--config", "wide.toml", "--width", "0.25", "--model", "tiny", "--out", "wide"])
    assert result.exit_code == 0, result.output
