"""A key that no run would read is refused where the user gave it, and nowhere else."""

import re
from pathlib import Path
from typing import Any

import pytest

from commands import invoke
from rotateconv.errors import ConfigError
from rotateconv.lab.cli.shared.settings import described, fine_tuned
from rotateconv.lab.cli.shared.unread import RULES, refuse_unread
from rotateconv.lab.config import RunConfig, changed, make_config
from rotateconv.lab.keys import field_of
from rotateconv.lab.train.fit import fit
from small import small_digits

OWN = {"factory": "package.module:function"}
DENSE = {"conv": "conv3x3"}
# A value of each key, a run that does not read it, a run that does, and what is said.
CASES: dict[str, tuple[object, dict[str, Any], dict[str, Any], str]] = {
    "gamma": (0.5, {"schedule": "cosine"}, {"schedule": "steps"}, "is of schedule=steps, not cosine: set --schedule"),
    "milestones": ((0.5,), {"schedule": "constant"}, {"schedule": "steps"}, "is of schedule=steps, not constant"),
    "teacher_weight": (0.5, {}, {"teacher": "run"}, "is of training with a teacher: name a run with --teacher, or"),
    "teacher_temperature": (2.0, {}, {"teacher": "run"}, "is of training with a teacher"),
    "angle_lr_scale": (3.0, DENSE, {"conv": "rotate2b"}, "is of angles that learn, and there are none in conv3x3:"),
    "angle_grad_scale": (
        1.0,
        {"conv": "rotate4-fixed"},
        {"conv": "line", **OWN},
        ".*, and there are none in rotate4-fixed:",
    ),
    "angle_weight_decay": (0.0, {"conv": "codebook16"}, {**DENSE, "convert_taps": "free"}, ".* none in codebook16:"),
    "angle_init": ("axes", {"conv": "line"}, {"conv": "rotate2p-g4"}, ".* none in line: leave it out"),
    "profile_init": ("bank", {"conv": "rotate4"}, {"conv": "rotate2p-fixed"}, "is of profiles that learn, .* rotate4:"),
    "model": ("resnet20", OWN, {}, "is of a model of this library, and package.module:function builds its own"),
    "conv": ("rotate4", OWN, {}, "is of a model of this library"),
    "width": (1.0, OWN, {}, "is of a model of this library"),
    "growth": (12, OWN, {"model": "densenet40"}, "is of a model of this library"),
    "dropout": (0.0, OWN, {}, "is of a model of this library"),
    **{
        key: (field_of(RunConfig, key).default, {}, {"convert_taps": "free"}, "says what dense convolutions become")
        for key in RULES
        if key.startswith("convert_")
    },
}


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("key", CASES)
def test_a_key_is_refused_where_no_run_reads_it(key: str) -> None:
    value, without, having, sentence = CASES[key]
    value = "circle" if value is None else value  # none asks for nothing
    unread, read = (changed(make_config("digits"), values) for values in (without, having))
    with pytest.raises(ConfigError, match=f"^--key {sentence}") as caught:
        refuse_unread({key: value}, {key: "--key"}, [unread])
    assert str(caught.value).endswith("leave it out")
    with pytest.raises(ConfigError, match=f"^{key} "):
        refuse_unread({key: value}, {}, [unread, unread])
    for given, runs in (
        ({key: value}, [read]),
        ({key: value}, [unread, read]),
        ({}, [unread]),
        ({key: None}, [unread]),
    ):
        refuse_unread(given, {}, runs)


@pytest.mark.parametrize(("key", "conv"), [("angle_init", "rotate4"), ("profile_init", "rotate2p")])
def test_weights_that_are_there_begin_in_no_way(key: str, conv: str) -> None:
    with pytest.raises(ConfigError, match="is of fresh weights, and those of runs/a are there already: leave it out"):
        refuse_unread({key: "axes"}, {}, [RunConfig(conv=conv, source="runs/a")])


def test_what_a_file_or_a_preset_says_is_let_be(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('gamma = 0.5\nangle_init = "axes"\nconv = "conv3x3"\nteacher_weight = 0.1\ndata_dir = "photos"\n')
    assert described(file, {}, {}, []).gamma == 0.5
    with pytest.raises(ConfigError, match=r"^gamma is of schedule=steps, not one-cycle"):
        described(file, {}, {}, ["gamma=0.5"])


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    fit(
        make_config("digits", changes={**DENSE, "width": 0.25, "epochs": 1, "batch_size": 64}), run, data=small_digits()
    )
    return run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--gamma", "0.5"], "--gamma is of schedule=steps"),
        (["train", "--set", "teacher_weight=0.3"], "teacher_weight is of training with a teacher"),
        (["train", "--recipe", "resnet-cifar", "--conv", "outer", "--angle-init", "axes"], "--angle-init is of angles"),
        (["train", "--source", "run", "--milestones", "0.5"], "--milestones is of schedule=steps"),
        (["train", "--source", "run", "--conv", "rotate4", "--angle-init", "axes"], "--angle-init is of fresh weights"),
        (["train", "--source", "run", "--set", "width=1"], "width has no meaning with --source, whose own it keeps"),
        (["convert", "run", "--gamma", "0.5"], "--gamma is of schedule=steps"),
        (["convert", "run", "--no-learn-angle", "--angle-lr-scale", "2"], "--angle-lr-scale .* none in free taps:"),
        (["convert", "run", "--set", "recipe=quick"], "recipe has no meaning with a run folder, which has its own"),
        (["finish", "run", "--angle-weight-decay", "0.1"], "--angle-weight-decay .* there are none in conv3x3:"),
        (["shrink", "run", "--budget", "20KB", "--gamma", "0.5"], "--gamma is of schedule=steps"),
        (["search", "--conv", "mask4", "--angle-lr-scale-range", "1,9"], "--angle-lr-scale-range .* none in mask4:"),
        (["compare", "--convs", "conv3x3,mask4", "--angle-lr-scale", "3"], "--angle-lr-scale .* in conv3x3, mask4:"),
        (
            ["compare", "--factory", "mine:net", "--convs", "mask4,line"],
            "mine:net builds one model, not 2: give one of",
        ),
    ],
    ids=lambda value: " ".join(value) if type(value) is list else "",
)
def test_every_command_refuses_what_it_would_not_read(
    words: list[str], sentence: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(dense)
    result = invoke(words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert re.search(sentence, result.stderr), result.stderr
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_the_lines_that_shrink_tries_have_angles(dense: Path) -> None:
    values = {"angle_lr_scale": 3.0}
    assert fine_tuned(dense, values=values, tries_lines=True).angle_lr_scale == 3.0
    with pytest.raises(ConfigError, match="there are none in conv3x3"):
        fine_tuned(dense, values=values)
