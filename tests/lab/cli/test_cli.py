"""Laws of the command line: help that works, options that arrive, runs that go on, sums that agree."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import rotateconv
from commands import invoke
from rotateconv.errors import RunInterrupted
from rotateconv.lab.api import evaluate
from rotateconv.lab.cli import app
from rotateconv.lab.cli.shared.console import duration
from rotateconv.lab.cli.shared.progress import TrainingProgress
from rotateconv.lab.config import PRESETS, RunConfig, make_config, recipe_for
from rotateconv.lab.data import images
from rotateconv.lab.files import read_json, write_json
from rotateconv.lab.naming import default_folder
from rotateconv.lab.study.convert_record import conversion_from_json, states_table
from rotateconv.lab.train import fit as training
from rotateconv.lab.train.events import Event, StepEnd
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.run_folder import read_config, read_records
from rotateconv.models import MODELS
from rotateconv.quantization.bits import Bits
from small import Tiny, small_digits

COMMANDS = [name for name in app if not name.startswith("-")]
SMALL = ["--set", "model=tiny", "--set", "augment=none", "--epochs", "2", "--batch-size", "32", "--lr", "0.05"]
PYTHON = [sys.executable, "-m", "rotateconv"]
# Four channels: small enough for a test, and a name that other processes know too.
NARROW = ["--width", "0.25", "--epochs", "1", "--set", "warmup=0"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = small_digits()
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    monkeypatch.setattr(images, "load_data", lambda name, *args, **kwargs: data)
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "RANK", "WORLD_SIZE", "ROTATECONV_DATA", "ROTATECONV_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def run(*args: str, code: int = 0) -> str:
    """Return what a command prints; it must end with `code`, and print nothing else where that is 0."""
    result = invoke(args)
    assert result.exit_code == code, result.output
    assert code or not result.stderr, result.stderr
    return result.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def tiny_config(**changes: Any) -> RunConfig:
    values = {"model": "tiny", "epochs": 2, "batch_size": 32, "lr": 0.05, **changes}
    return make_config("digits", changes=values)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_commands_that_parse(name: str, flag: str) -> None:
    lines = [line.strip() for line in run(name, flag).splitlines()]
    commands = re.findall(r"\[bold\](.*)\[/bold\]", app[name].help_epilogue or "")
    assert commands
    for text in commands:
        assert text in lines
        words = shlex.split(text)
        # Raises where an option is unknown or its value has another type.
        app.parse_args(words[words.index("rotateconv") + 1 :], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_and_a_switch_no_value(name: str) -> None:
    arguments = [argument for argument in app[name].assemble_argument_collection() if argument.parameter.help]
    assert arguments
    assert all(len(argument.parameter.help) > 5 for argument in arguments)
    assert not re.search(r"bool|BOOL|\[default: (True|False)\]|STR\b|\bINT\b|FLOAT", run(name, "--help"))


def test_convert_says_what_it_cost_and_goes_on() -> None:
    run("train", *SMALL, "--conv", "conv3x3", "--out", "dense")
    words = ["convert", "dense", "--taps", "profile", "--epochs", "2", "--out", "lines"]
    told = run(*words)
    found = conversion_from_json(read_json(Path("lines/conversion.json")), "conversion.json")
    assert found.taps == "profile"
    assert read_config(Path("lines")).source == read_config(Path("lines")).teacher == "dense"
    for row in states_table(found).rows:
        assert re.search(rf"^ *{' +'.join(row)} *$", told, re.MULTILINE), told
    assert f"{found.test_accuracy.source:.2f}" in told
    for text in (
        "skipped: the stem",
        "% fitted, ",
        "epoch 1/2",
        "lines/conversion.md",
        "tiny, profile taps",
    ):
        assert text in told
    again = run(*words)
    assert "epoch 1/2" not in again
    assert "profile taps" in run("info", "lines")
    assert f"test accuracy {getattr(found.test_accuracy, found.kept):.2f} %" in run("evaluate", "lines")
    run("pack", "lines", "--out", "lines.rotateconv")
    assert "resume it unchanged" in invoke([*words, "--lr", "0.01"]).stderr
    told = run(*words, "--lr", "0.01", "--stages", "1", "--overwrite", "--qat", "--weight-bits", "3")
    assert "fine-tuned for 2 epochs, quantized" in told
    assert read_config(Path("lines")).weight_bits == 3


def test_train_goes_on_from_a_run_with_rounded_numbers() -> None:
    run("train", *SMALL, "--conv", "rotate2p", "--out", "first")
    told = run("train", "--source", "first", "--qat", "--weight-bits", "3", "--angle-bits", "4")
    assert "trained with 3-bit weights" in told
    config = read_config(Path("runs/first-qat"))
    assert (config.conv, config.epochs, config.source, config.teacher) == ("rotate2p", 1, "first", "first")
    assert (config.qat, config.weight_bits, config.angle_bits) == (True, 3, 4)


def test_a_budget_is_told_the_bytes_of_the_file() -> None:
    run("train", *SMALL, "--conv", "rotate2p", "--out", "float")
    told = run("finish", "float", "--budget", "2KB", "--out", "small")
    run("pack", "small", "--fold-norms", "--no-evaluate", "--out", "small.rcp")
    size = Path("small.rcp").stat().st_size
    assert f"{size:,} of 2,000 bytes" in told
    assert size <= 2000


def test_finish_trains_to_few_bits_and_goes_on() -> None:
    for conv, out in (("rotate2p", "float"), ("conv3x3", "wide")):
        run("train", *SMALL, "--conv", conv, "--out", out)
    words = ["finish", "float", "--weight-bits", "2", "--angle-bits", "3", "--teacher", "wide"]
    assert "trained with 2-bit weights" in run(*words)
    config = read_config(Path("runs/float-w2-a3"))
    assert (config.conv, config.source, config.teacher) == ("rotate2p", "float", "wide")
    assert (config.qat, config.bits) == (True, Bits(2, 3, 8))
    assert "is finished already" in run(*words)
    assert "2 bits per weight, 3 per angle" in run("pack", "runs/float-w2-a3", "--out", "small.rcp")
    assert "resume it unchanged" in invoke([*words, "--lr", "0.01"]).stderr
    assert "epoch 1/1" in run(*words, "--lr", "0.01", "--overwrite")


@pytest.mark.slow
def test_compare_measures_sizes_too() -> None:
    words = ["compare", "--convs", "conv3x3,rotate2p", "--seeds", "1", *NARROW, "--out", "both"]
    run(*words)
    run("train", "--source", "both/runs/resnet20-rotate2p-w0.25-seed0", "--qat", "--out", "rounded")
    told = run(*words, "--sizes", "--bits", "32,4", "--with", "rounded")
    rows = json.loads(Path("both/sizes.json").read_text())
    assert [(row["dense"], row["bits"], row["qat"]) for row in rows] == [
        (True, 32, False),
        (True, 4, False),
        (False, 32, False),
        *[(False, 4, row["qat"]) for row in rows[3:]],  # the smaller one last, whichever that is
    ]
    assert sorted(row["qat"] for row in rows[3:]) == [False, True]
    for row in rows:
        assert f"{row['bytes']:,.0f}" in told
    for end in ("md", "json", "png"):
        assert Path(f"both/sizes.{end}").is_file()
        assert f"both/sizes.{end}" in told


def test_without_a_command_there_is_help() -> None:
    assert all(name in run() for name in COMMANDS)


def test_the_version() -> None:
    assert run("--version").strip() == rotateconv.__version__


def test_train_says_what_it_does_and_keeps_it() -> None:
    lines = run("train", *SMALL, "--out", "run").splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["run", "device", "model", "data", "recipe"]
    config, summary = read_config(Path("run")), read_json(Path("run", "summary.json"))
    assert config == tiny_config(seed=0)
    assert lines[2].endswith(f"tiny, rotate4: {summary['parameters']:,} parameters")
    assert "digits: 101 training, 40 validation, 37 test images, 1 x 8 x 8, 10 classes" in lines[3]
    records = read_records(Path("run"))
    for record, line in zip(records, lines[5:7], strict=True):
        assert line.startswith(f"epoch {record.epoch}/2  loss {record.train_loss:.4f}  validation accuracy ")
        assert f"{record.validation_accuracy:.2f} %" in line
    assert lines[7].startswith(f"test accuracy {summary['test_accuracy']:.2f} %")
    assert lines[-1] == "look closer with: rotateconv evaluate run"


OPTIONS: list[tuple[list[str], dict[str, object]]] = [
    ([], {"recipe": "digits", "data": "digits"}),
    (["--data", "mnist"], {"recipe": "mnist", "data": "mnist"}),
    (["--data", "cifar10"], {"recipe": "quick", "data": "cifar10"}),
    (["--data", "cifar100", "--recipe", "resnet-cifar"], {"recipe": "resnet-cifar", "data": "cifar100"}),
    (["--recipe", "resnet-cifar"], {"data": "cifar10", "schedule": "steps"}),
    (["--recipe", "quick"], {"data": "digits", "schedule": "one-cycle"}),
    (["--data", "mnist", "--data-dir", "somewhere"], {"recipe": "mnist", "data_dir": "somewhere"}),
    (["--data", "folder", "--image-size", "20"], {"image_size": 20}),
    (["--data", "folder", "--skip-bad-images"], {"skip_bad_images": True}),
    (["--data", "svhn", "--svhn-extra"], {"svhn_extra": True}),
    (["--model", "densenet40"], {"model": "densenet40"}),
    (["--conv", "rotate2p"], {"conv": "rotate2p"}),
    (["--width", "0.5"], {"width": 0.5}),
    (["--epochs", "7"], {"epochs": 7}),
    (["--batch-size", "16"], {"batch_size": 16}),
    (["--lr", "0.3"], {"lr": 0.3}),
    (["--seed", "5"], {"seed": 5}),
    (["--teacher", "big"], {"teacher": "big"}),
    (["--precision", "bf16"], {"precision": "bf16"}),
    (["--compile"], {"compile": True}),
    (["--cuda-graph"], {"cuda_graph": True}),
    (["--no-cuda-graph"], {"cuda_graph": False}),
    (["--set", "clip_grad_norm=1", "--set", "ema_decay=0.9"], {"clip_grad_norm": 1.0, "ema_decay": 0.9}),
    (["--lr", "0.3", "--set", "lr=0.4"], {"lr": 0.4}),
    (["--config", "file.toml"], {"recipe": "modern", "lr": 0.25, "epochs": 4}),
    (["--config", "file.toml", "--epochs", "5"], {"recipe": "modern", "lr": 0.25, "epochs": 5}),
]


@pytest.mark.parametrize(("args", "expected"), OPTIONS, ids=lambda value: " ".join(value) or "bare")
def test_options_reach_the_configuration(
    args: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file.toml").write_text('recipe = "modern"\nlr = 0.25\nepochs = 4\n')
    seen: list[RunConfig] = []

    def record(config: RunConfig, *args: Any, **kwargs: Any) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", record)
    run("train", *args, code=130)
    (config,) = seen
    assert {key: getattr(config, key) for key in expected} == expected
    untouched = {key: value for key, value in vars(PRESETS[config.recipe]).items() if key not in (*expected, "data")}
    assert {key: getattr(config, key) for key in untouched} == untouched


def test_every_data_set_has_a_recipe() -> None:
    from rotateconv.lab.data import DATASETS

    assert all(recipe_for(data) in PRESETS for data in DATASETS)


def test_names_of_runs_differ_where_runs_do() -> None:
    configs = [tiny_config(**c) for c in ({}, {"seed": 1}, {"conv": "line"}, {"model": "resnet20"}, {"width": 2.0})]
    assert len({default_folder("train", config) for config in configs}) == len(configs)
    photos = make_config("quick", changes={"data": "folder", "data_dir": "/x/photos"})
    assert default_folder("train", photos).name.startswith("photos-")


def test_resume_goes_on_and_a_finished_run_says_so() -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(RunInterrupted, match="after step 2"):
        fit(tiny_config(), "run", data=small_digits(), on_event=stop)
    assert "resumed  after step 2 of 8" in run("train", "--resume", "run")
    assert len(read_records(Path("run"))) == 2
    again = run("train", "--resume", "run", "--lr", "0.05")
    assert again.splitlines()[0] == "run is finished already"
    assert f"test accuracy {read_json(Path('run', 'summary.json'))['test_accuracy']:.2f} %" in again


def test_overwrite_starts_again() -> None:
    run("train", *SMALL, "--out", "run")
    run("train", *SMALL, "--seed", "3", "--out", "run", "--overwrite")
    assert read_config(Path("run")).seed == 3


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_one_bar_that_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rotateconv.lab.cli.shared.progress._EVERY", 0.0)
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=width, color_system=None, highlight=False)
    data = small_digits()
    with closing(TrainingProgress(console)) as progress:
        fit(tiny_config(), "run", data=data, on_event=progress)
    text = re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", output.getvalue())
    last = re.split(r"[\r\n]+", text.strip())[-1]
    assert re.search(r"epoch 2/2 .* loss \d\.\d{3}  acc \d+\.\d %  [\d,]+ img/s 0:00:00$", last)
    assert len(last) <= width


def test_evaluate_agrees_with_the_run() -> None:
    run("train", *SMALL, "--out", "run")
    summary = read_json(Path("run", "summary.json"))
    text = run("evaluate", "run")
    assert f"test accuracy {summary['test_accuracy']:.2f} %, loss {summary['test_loss']:.4f}" in text
    for number, (name, accuracy) in enumerate(summary["test_class_accuracy"].items()):
        row = summary["test_confusion"][number]
        counts = "".join(rf" +{count if count or place == number else '·'}" for place, count in enumerate(row))
        total = sum(row)
        told = "-" if accuracy is None else f"{accuracy:.1f}"
        assert re.search(rf"^ *{number} +{name} +{total} +{told}{counts} *$", text, re.MULTILINE)
    assert f"validation accuracy {read_records(Path('run'))[-1].validation_accuracy:.2f} %" in run(
        "evaluate", "run", "--split", "validation", "--batch-size", "7"
    )
    found = evaluate("run", "train", data=small_digits())
    assert "101 train images" in (text := run("evaluate", "run", "--split", "train"))
    assert f"train accuracy {found.accuracy:.2f} %, loss {found.loss:.4f}" in text


def test_evaluate_tells_of_a_validation_split_that_was_trained_on() -> None:
    run("train", *SMALL, "--out", "run", "--set", "validation=false")
    assert "trained on its validation images too" in run("evaluate", "run", "--split", "validation")
    assert "trained on" not in run("evaluate", "run").replace("trained on digits", "")


@pytest.mark.parametrize(
    ("args", "numbers"),
    [
        (["resnet20", "--conv", "rotate4"], ["121,242", "269,722", "40,551,040"]),
        (["resnet20", "--conv", "rotate2p"], ["63,866", "269,722"]),
        (["densenet40", "--conv", "rotate2", "--no-layers"], ["336,298"]),
        (["resnet20", "--conv", "conv3x3", "--classes", "100", "--input", "1x8x8"], ["275,284"]),
        (["resnet20", "--conv", "conv3x3", "--width", "0.6875"], ["128,017"]),
    ],
)
def test_info_tells_the_size_of_a_model(args: list[str], numbers: list[str]) -> None:
    text = run("info", *args)
    assert all(number in text for number in numbers)
    assert ("stages.2.2.conv2" in text) == ("resnet20" in args)


def test_info_sums_up_a_run() -> None:
    run("train", *SMALL, "--out", "run")
    summary = read_json(Path("run", "summary.json"))
    text = run("info", "run")
    assert f"accuracy {summary['test_accuracy']:.2f} %" in text
    assert "finished, 2 of 2 epochs" in text
    assert f"{summary['parameters']:,} (" in text
    (Path("run") / "summary.json").unlink()
    where = read_json(Path("run", "environment.json"))
    write_json(Path("run", "environment.json"), {**where, "resumed": [{"step": 1, "gpu": "another machine"}]})
    text = run("info", "run", "--no-layers")
    assert "not finished, 2 of 2 epochs" in text
    assert ", then another machine; torch" in " ".join(text.split())


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3675, "1:01:15")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    options = ["--width", "0.25", "--epochs", "400", "--out", str(folder)]
    process = subprocess.Popen(
        [*PYTHON, "train", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    wait_for(folder / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    found = re.fullmatch(r"stopped and saved after step (\d+) of 8400: go on with (rotateconv train .*)\n", error)
    assert found, error
    assert "Traceback" not in out
    process = subprocess.Popen(
        [*PYTHON, *shlex.split(found[2])[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    for line in process.stdout:
        if line.startswith("resumed"):
            break
    assert f"resumed  after step {int(found[1]):,} of 8,400" in line
    # Twice: it leaves at once, and what was saved before is still there.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "go on" in error
    assert "--resume" in error


@pytest.mark.slow
def test_two_processes_print_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = ["rotateconv", "train", *NARROW, "--out", str(tmp_path / "run")]
    result = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("test accuracy") == 1
    assert result.stdout.count("epoch 1/1") == 1
    assert "2 processes" in result.stdout
    assert "Warning" not in result.stderr
    assert len(read_records(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error() -> None:
    command = " ".join(map(shlex.quote, [*PYTHON, "info", "resnet110"]))
    result = subprocess.run(["bash", "-c", f"{command} | head -n 1"], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_the_caller_keeps_its_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    run("train", *SMALL, "--out", "run")
    assert torch.equal(torch.rand(1), expected)
