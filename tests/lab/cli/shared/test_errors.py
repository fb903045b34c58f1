"""Every mistake of a user, and every fault of a machine: the exit code and one sentence, never a traceback."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from commands import invoke
from official_formats import write_official
from rotateconv.errors import DivergedError, RotateConvError, RunError, RunInterrupted
from rotateconv.lab.cli import app
from rotateconv.lab.config import make_config
from rotateconv.lab.data import images
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.exit_codes import CommandError, Failure, explain
from rotateconv.lab.train import fit as training
from rotateconv.lab.train import run_folder as runs
from rotateconv.lab.train.run_folder import read_records
from rotateconv.models import MODELS
from small import Tiny, small_digits
from study_runs import write_run

SMALL = ["--set", "model=tiny", "--epochs", "2", "--batch-size", "32"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "RANK", "WORLD_SIZE", "ROTATECONV_DATA", "ROTATECONV_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_digits()
    monkeypatch.setattr(images, "load_data", lambda name, *args, **kwargs: data)


def refused(args: list[str], code: int, message: str) -> str:
    """Check that a command ends with `code` and one line on stderr that matches; return what it printed before."""
    result = invoke(args)
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ") == (code != 130)
    return result.stdout


MISTAKES = [
    (["trian"], "unknown command 'trian': did you mean 'train'"),
    (["forecast"], "unknown command 'forecast': choose from train, compare"),
    (["train", "--epoch", "3"], r"unknown option '--epoch': did you mean '--epochs'.* See rotateconv train --help"),
    (["train", "--frobnicate=3"], "unknown option '--frobnicate'; see rotateconv train --help"),
    (["train", "extra"], "unexpected argument 'extra'; see rotateconv train --help"),
    (["train", "--epochs"], "--epochs requires a value; see"),
    (["shrink", "x", "--budget", "-5KB"], "--budget requires a value, and '-5KB' begins as an option does; see"),
    (["shrink", "x", "--budget=-5KB"], "--budget must be a number of bytes such as 40KB, 40000 or 0.1MB, not '-5KB'"),
    (["train", "--qat=maybe"], "--qat must be true or false, not 'maybe'"),
    (["train", "--recipe", "resnet"], "unknown recipe 'resnet': did you mean 'resnet-cifar'"),
    (["train", "--data", "cifar11"], "unknown data set 'cifar11': did you mean 'cifar10' or 'cifar100'"),
    (["train", "--model", "resnet21"], "unknown model 'resnet21': did you mean .*'resnet20'"),
    (["train", "--models", "resnet20,resnet32"], "unknown model 'resnet20,resnet32'"),
    (["train", "--conv", "rotate3"], "unknown conv 'rotate3': did you mean 'rotate"),
    (["train", "--set", "epohcs=3"], "unknown key 'epohcs': did you mean 'epochs'"),
    (["train", "--set", "epochs"], "--set must be KEY=VALUE, such as lr=0.1, not 'epochs'"),
    (["train", "--set", "epochs=few"], "^error: epochs must be a whole number of at least 1, not 'few'"),
    (["train", "--config", "missing.toml"], "cannot read the configuration file missing.toml: No such file"),
    (["train", "--config", "broken.toml"], "the configuration file broken.toml is no TOML"),
    (["train", "--config", "unknown.toml"], "unknown.toml: unknown key 'eopchs': did you mean 'epochs'"),
    (["train", "--resume", "nowhere"], "nowhere is not there: name the folder of a run"),
    (["train", "--resume", "nowhere", "--overwrite"], "--overwrite has no meaning with --resume"),
    (["train", "--resume", "nowhere", "--out", "a"], "--out has no meaning with --resume"),
    (["train", "--resume", "nowhere", "--recipe", "quick"], "--recipe has no meaning with --resume"),
    (["train", "--teacher", "nowhere", *SMALL], "nowhere is not there: name the folder of a run"),
    (["train", "--svhn-extra"], "--svhn-extra belongs to data=svhn, not data=digits"),
    (["train", "--image-size", "16"], r"image_size \(--image-size\) has no meaning for the data set digits"),
    (["train", "--data", "cifar10"], "cifar10 is not in .*/data: .* missing; .*--download .*--data-dir"),
    (["train", "--data", "mnist", "--data-dir", "away"], "mnist is not in .*/away: .*train-images.* missing"),
    (["train", "--data", "folder", "--data-dir", "away"], "no folder 'train' in .*/away"),
    (["train", "--out", "broken.toml"], "broken.toml exists and is no run folder"),
    (["train", "--source", "nowhere"], "nowhere is not there: name the folder of a run"),
    (["train", "--source", "nowhere", "--width", "2"], "--width has no meaning with --source, whose own it keeps"),
    (["train", "--weight-bits", "3"], r"--weight-bits is of training with qat: set qat=true \(--qat\) too"),
    (["train", "--source", "bits.toml"], "--source takes the folder of a run, and bits.toml is a file"),
    (["convert", "nowhere", "--taps", "none"], "--taps must be one of free, shared, profile, not none"),
    (["convert", "nowhere", "--taps", "fre"], "--taps must be one of free, shared, profile, not 'fre'"),
    (["train", "--mean", "0.5", "--std", "0"], "--std must be numbers above 0, not 0"),
    (["train", "--set", "angle_bits=4"], "angle_bits is of training with qat"),
    (["train", "--config", "bits.toml"], "weight_bits is of training with qat"),
    (["train", "--device", "gpu"], "--device must be cpu, cuda, cuda:N or mps, not 'gpu'"),
    (["train", "--device", "cuda:99"], "--device cuda:99 is not there, this machine has .*: name another one, or cpu"),
    (["compare", "--device", "gpu"], "--device must be cpu, cuda, cuda:N or mps, not 'gpu'"),
    (["compare", "--convs", "conv3x3,rotate9"], "unknown conv 'rotate9'"),
    (["compare", "--model", "resnet"], "unknown model 'resnet'"),
    (["compare", "--convs", ","], "convs must be one name or more, each once, not none"),
    (["compare", "--convs", "rotate4,rotate4"], "convs must be one name or more, each once, not rotate4, rotate4"),
    (["compare", "--seeds", "0"], "--seeds must be a whole number from 1 to 1000, not 0"),
    (["compare", "--jobs", "0"], "jobs must be 1 or more, not 0"),
    (["shrink", "runs/nothing", "--budget", "20KB", "--jobs", "-1"], "--jobs must be 1 or more, not -1"),
    (["report", "runs/nothing", "--html", "."], "cannot write .: it is a folder; give the name of a file"),
    (["compare", "--set", "conv=rotate4"], "a comparison has no conv of its own: give --convs"),
    (["compare", "--set", "seed=4"], "a comparison has no seed of its own: give --seeds"),
    (["compare", "--config", "study.toml"], "study.toml: models must be names with commas between, not 'resnet20'"),
    (["compare", "--config", "seeds.toml"], "seeds.toml: seeds must be a whole number from 1 to 1000, not True"),
    (["compare", "--config", "unknown.toml"], "unknown.toml: unknown key 'eopchs': did you mean 'epochs'"),
    (["compare", "--set", "dropout=0.5"], "resnet20 has no dropout"),
    (["compare", "--bits", "4"], "--bits has no meaning with no --sizes"),
    (["compare", "--sizes", "--bits", "4,few"], "--bits must be whole numbers with commas between, .*not '4,few'"),
    (["convert"], "SOURCE is missing; see rotateconv convert --help"),
    (["convert", "nowhere"], "nowhere is not there: name the folder of a run"),
    (["convert", "broken.toml"], "broken.toml is a file of weights: say with --model which function builds its model"),
    (
        ["convert", "nowhere", "--model", "torch.nn:ReLU"],
        "--model belongs to a file of weights, and nowhere is not there",
    ),
    (["convert", "broken.toml", "--model", "torch.nn:Rleu"], "cannot build a model with torch.nn:Rleu: AttributeError"),
    (["convert", "broken.toml", "--model", "torch.nn:ReLU"], "cannot read broken.toml: expected a safetensors file"),
    (["convert", "broken.toml", "--model", "torch.nn:ReLU", "--taps", "four"], "--taps must be one of free, shared"),
    (["convert", "nowhere", "--data", "mnist"], "--data has no meaning with a run folder, which has its own"),
    (["finish"], "SOURCE is missing; see rotateconv finish --help"),
    (["finish", "nowhere"], "nowhere is not there: name the folder of a run"),
    (
        ["finish", "broken.toml"],
        "broken.toml is a file: finish takes the folder of a run, as",
    ),
    (["finish", "nowhere", "--conv", "rotate2"], "unknown option '--conv'"),
    (["shrink", "nowhere"], "--budget is missing"),
    (["shrink", "nowhere", "--budget", "40KB"], "nowhere is not there: name the folder of a run"),
    (["shrink", "nowhere", "--budget", "little"], "--budget must be a number of bytes such as 40KB"),
    (["shrink", "nowhere", "--budget", "9KB", "--count", "zip"], "--count must be one of onnx, rcp, not 'zip'"),
    (["shrink", "nowhere", "--budget", "9KB", "--model", "mine:net"], "--model belongs to a file of weights"),
    (["shrink", "nowhere", "--budget", "9KB", "--set", "weight_bits=3"], "weight_bits is the source's, or searched"),
    (["shrink", "nowhere", "--budget", "9KB", "--recipe", "quick"], "--recipe has no meaning with a run folder"),
    (["evaluate"], "RUN is missing"),
    (["evaluate", "nowhere"], "nowhere is not there: name the folder of a run"),
    (["evaluate", "gone.rcp", "--data", "digits"], "gone.rcp is not there: name the .* run, a packed file or an ONNX"),
    (["export", "gone.rcp", "--to", "onnx", "--out", "x"], "gone.rcp is not there: name the .* run or a packed file"),
    (["evaluate", "nowhere", "--split", "all"], "--split must be one of test, validation, train, not 'all'"),
    (["evaluate", "nowhere", "--batch-size", "0"], "--batch-size must be 1 or more, not 0"),
    (["info", "resnet200"], "'resnet200' is neither a run folder nor a model: did you mean 'resnet20'"),
    (["info", "runs/nothing"], "runs/nothing is not there: name the folder of a run"),
    (["info", "./study.toml"], "study.toml is no run folder: .* rotateconv unpack shows what is in a packed file"),
    (["info", "resnet20", "--conv", "rotat4"], "unknown conv 'rotat4': did you mean 'rotate4'"),
    (["info", "resnet20", "--input", "32"], "--input must be channels x height x width such as 3x32x32, not '32'"),
    (["info", "resnet20", "--width", "-1"], "width must be a positive finite number"),
    (["info", "resnet20", "--classes", "0"], "num_classes must be"),
    (["report"], "DIR is missing"),
    (["report", "runs", "--records", "file"], "report writes no record: say rotateconv record DIR... --out FILE"),
    (["report", "runs", "--analysis"], "report analyses no angles: say rotateconv analyse RUN"),
    (["record", "runs"], "--out is missing"),
    (["record", "runs", "--out", "no/folder/x"], "cannot write no/folder/x: there is no folder no/folder; make it"),
    (["bench", "--seconds", "0"], "--seconds must be a number above 0, not 0"),
    (["bench", "--seconds", "-3"], "--seconds must be a number above 0, not -3"),
    (["analyse", "nowhere"], "there is no finished run in nowhere: name its folder, or that of a comparison"),
    (["analyse", "nowhere", "--draws", "0"], "--draws must be 1 or more, not 0"),
    (["--install-completion", "--shell", "tcsh"], "--shell must be one of zsh, bash, fish, powershell, not 'tcsh'"),
]


@pytest.mark.parametrize(
    ("args", "message"), MISTAKES, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_mistakes_are_told_in_one_sentence_before_anything_is_written(args: list[str], message: str) -> None:
    Path("broken.toml").write_text("epochs = = 3")
    Path("unknown.toml").write_text("eopchs = 3")
    Path("study.toml").write_text('models = "resnet20"')
    Path("seeds.toml").write_text("seeds = true")
    Path("bits.toml").write_text("weight_bits = 3")
    before = sorted(Path().iterdir())
    refused(args, 2, message)
    assert sorted(Path().iterdir()) == before


REQUIRED = {
    "predict": ("run", "image.png"),
    **{name: ["run"] for name in ("convert", "finish", "evaluate", "analyse", "report", "unpack")},
    **{name: ["run", "--out", "file"] for name in ("pack", "record")},
    "shrink": ["run", "--budget", "40KB"],
    "export": ["run", "--to", "onnx", "--out", "file"],
    "info": ["resnet20"],
}
# Every option of every command whose value has a type; those that a help page leaves out too.
TYPED = [
    (name, argument.name)
    for name in app
    if not name.startswith("-")
    for argument in app[name].assemble_argument_collection()
    if argument.parameter.metavar in ("INTEGER", "NUMBER") or "|" in (argument.parameter.metavar or "")
]


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    changes = {"conv": "conv3x3", "width": 0.25, "epochs": 1, "batch_size": 32, "warmup": 0}
    training.fit(make_config("digits", changes=changes), out, data=small_digits())
    return out


def test_there_are_typed_options() -> None:
    assert {("train", "--lr"), ("train", "--ema-decay"), ("compare", "--seeds"), ("convert", "--taps")} <= set(TYPED)
    assert {("bench", "--seconds"), ("export", "--to"), ("evaluate", "--image-size")} <= set(TYPED)


@pytest.mark.parametrize(("name", "option"), TYPED)
def test_every_option_says_what_it_takes(name: str, option: str, dense_run: Path) -> None:
    Path("run").symlink_to(dense_run)
    refused([name, *REQUIRED.get(name, ()), option, "papr"], 2, f"^error: {option} must be (a|one of) .*, not 'papr'")


def photos(folder: Path, classes: dict[str, int]) -> None:
    for split in ("train", "test"):
        for name, count in classes.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / split / name / f"{number}.png")


def folder_of_text(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").write_text("no image")


def folder_without_images(folder: Path) -> None:
    for path in (folder / "test" / "dog").iterdir():
        path.unlink()


def folder_of_another_class(folder: Path) -> None:
    shutil.copytree(folder / "test" / "dog", folder / "test" / "bird")


def folder_of_two_sizes(folder: Path) -> None:
    Image.new("RGB", (9, 8)).save(folder / "train" / "cat" / "0.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (folder_of_text, r"1 of 24 files \(train/cat/0.png\) do not decode as images: .*--skip-bad-images"),
        (folder_without_images, "the class folder photos/test/dog is empty"),
        (folder_of_another_class, "train has 2 classes and test 3, and bird only in one of them"),
        (folder_of_two_sizes, "images differ in size.*--image-size"),
    ],
)
def test_bad_image_folders(damage: Callable[[Path], None], message: str) -> None:
    photos(Path("photos"), {"cat": 6, "dog": 6})
    damage(Path("photos"))
    refused(["train", *SMALL, "--data", "folder", "--data-dir", "photos", "--out", "run"], 2, message)
    assert not Path("run").exists()


@pytest.mark.filterwarnings("default")
def test_skipped_images_are_named_in_a_warning() -> None:
    photos(Path("photos"), {"cat": 6, "dog": 6})
    folder_of_text(Path("photos"))
    options = ["--data", "folder", "--data-dir", "photos", "--skip-bad-images", "--out", "run"]
    result = invoke(["train", *SMALL, *options])
    assert result.exit_code == 0, result.output
    sentence = "warning: skipped 1 of 24 files (train/cat/0.png) that do not decode as images\n"
    assert sentence in result.stderr
    assert "site-packages" not in result.stderr
    assert "photos: 10 training, 1 validation, 12 test images, 3 x 8 x 8, 2 classes" in result.stdout
    # Once decoded, the images come from the cache: nothing is told of decoding.
    assert "decoding" in result.stdout
    again = invoke(["train", *SMALL, *options, "--overwrite"])
    assert "decoding" not in again.stdout
    assert sentence in again.stderr


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_cut_off_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = write_official(name, tmp_path / "data", tmp_path / "server", monkeypatch)
    file = official.files[0]
    file.write_bytes(file.read_bytes()[:-50])
    message = f"{re.escape(file.name)} is damaged: its checksum is not the official"
    refused(["train", *SMALL, "--data", name, "--data-dir", "data", "--out", "run"], 2, message)
    file.unlink()
    message = f"{name} is not in .*{re.escape(file.name)} missing"
    refused(["compare", "--data", name, "--data-dir", "data"], 2, message)


def test_a_run_folder_is_never_mixed_up(digits: None) -> None:
    assert invoke(["train", *SMALL, "--out", "run"]).exit_code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    ways = r"go on with it \(--resume run\), start again \(--overwrite\) or choose another folder \(--out\)$"
    refused(["train", *SMALL, "--out", "run"], 2, f"run holds a run already: {ways}")
    ways = r"resume it unchanged, start again \(--overwrite\) or choose another folder \(--out\)$"
    refused(["train", "--resume", "run", "--lr", "0.01"], 2, f"the run in run has lr .*, not 0.01: {ways}")
    refused(["train", "--resume", "run", "--set", "lrr=1"], 2, "unknown key 'lrr'")
    refused(["train", "--resume", "run", "--set", "lr"], 2, "--set must be KEY=VALUE, such as lr=0.1, not 'lr'")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "taken"], "taken exists and is no run folder"),
        (["--model", "resnet21"], "unknown model"),
        (["--conv", "rotate3"], "unknown conv"),
    ],
)
def test_mistakes_are_told_before_images_are_loaded(
    args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("images are loaded, which can take minutes")

    monkeypatch.setattr(images, "load_data", load)
    Path("taken").write_text("")
    refused(["train", *args], 2, message)


def test_evaluate_refuses_data_that_the_model_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_digits()
    with monkeypatch.context() as patch:
        patch.setattr(images, "load_data", lambda name, *args, **kwargs: data)
        assert invoke(["train", *SMALL, "--out", "run"]).exit_code == 0
    photos(Path("photos"), {"cat": 6, "dog": 6})
    message = "knows the 10 classes 0, 1, 2, ..., photos has the 2 classes cat, dog: name data of the same classes"
    refused(["evaluate", "run", "--data", "folder", "--data-dir", "photos"], 2, message)
    shutil.rmtree("photos")
    photos(Path("photos"), {str(digit): 2 for digit in range(10)})
    message = "takes images of 1 channels, photos has 3"
    refused(["evaluate", "run", "--data", "folder", "--data-dir", "photos"], 2, message)


def test_a_damaged_run_is_told(digits: None) -> None:
    assert invoke(["train", *SMALL, "--out", "run"]).exit_code == 0
    config = Path("run", "config.json")
    good = config.read_text()
    Path("run", "model.safetensors").write_bytes(b"cut off")
    refused(["evaluate", "run"], 2, "cannot read the weights run/model.safetensors")
    config.write_text(json.dumps({**json.loads(good), "lr": "high"}))
    refused(["info", "run"], 2, r"run/config\.json: lr must be a number above 0, not 'high': restore the file")
    config.write_text(good[:-20])
    refused(["evaluate", "run"], 2, r"run/config\.json: the configuration is no JSON")
    refused(["compare", "--seeds", "1", "--out", "run"], 2, "run holds a run: choose another folder for a comparison")


def test_a_learning_rate_that_diverges(digits: None) -> None:
    out = refused(
        ["train", *SMALL, "--lr", "1e30", "--out", "run"],
        1,
        r"became infinite or NaN at step \d+ of 8 \(epoch 1\); .*: a new run with a lower lr than 1e\+30 or clip",
    )
    assert "test accuracy" not in out
    assert read_records(Path("run")) == []


def test_a_full_disk_is_the_machines_fault(digits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = "the disk is full: run could not be written; free some space, then resume the run"
    refused(["train", *SMALL, "--out", "run"], 1, message)


def test_a_place_that_cannot_be_written_to_is_the_users_mistake(digits: None) -> None:
    Path("file").write_text("")
    refused(["train", *SMALL, "--out", "file/run"], 2, "cannot write in file/run: Not a directory")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "the memory is full: try a smaller batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "the memory is full"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "the memory is full"),
        (KeyboardInterrupt(), 130, "stopped at once: nothing was saved"),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "Input/output error: x"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "Permission denied: x"),
    ],
)
def test_what_can_happen_while_training(
    error: BaseException, code: int, message: str, digits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(training, "fit", fail)
    refused(["train", *SMALL, "--out", "run"], code, message)


def test_a_second_ctrl_c_names_the_run_that_is_there(digits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(config: Any, run: Path, **kwargs: Any) -> None:
        runs.create_run(run, config, DataDescription("x", ("a", "b"), (0.5,), (0.25,), (1, 8, 8), False, 1, 1, 1))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", twice)
    message = "^stopped at once: go on from the last checkpoint with rotateconv train --resume 'a run'\n$"
    refused(["train", *SMALL, "--out", "a run"], 130, message)


@pytest.mark.parametrize("error", [TypeError("what"), ValueError("from elsewhere")])
def test_our_own_faults_show_the_traceback(error: Exception, digits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error  # in a file outside of the package, as torch would

    monkeypatch.setattr(training, "fit", fail)
    result = invoke(["train", *SMALL, "--out", "run"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == f"error: a fault of rotateconv, {type(error).__name__}: {error}; please report it"


def test_only_the_main_process_tells_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = invoke(["train", "--lr", "-1"])
    assert (result.exit_code, result.output) == (2, "")


def test_compare_does_not_run_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(["compare"], 2, "compare starts its own processes: run it without torchrun and choose --jobs")


@pytest.mark.parametrize("command", [["train"], ["compare"], ["convert", "run"]])
def test_a_tracker_that_is_not_there(digits: None, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    write_run(Path("run"), make_config("digits", changes={"conv": "conv3x3"}), 90)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    sentence = r"--log-with tensorboard needs .* pip install 'rotateconv\[tensorboard\]'"
    refused([*command, "--log-with", "tensorboard", "--out", "new"], 2, sentence)
    refused([*command, "--log-with", "wandbb", "--out", "new"], 2, "unknown tracker 'wandbb': did you mean 'wandb'")
    assert not Path("new").exists()


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RotateConvError("a sentence"), 2),
        (RunError("a sentence"), 2),
        (raised(RunError("a sentence"), OSError(errno.ENOSPC, "full")), 1),
        (raised(RunError("a sentence"), OSError(errno.EDQUOT, "quota")), 1),
        (raised(RunError("a sentence"), OSError(errno.EROFS, "read-only")), 2),
        (DivergedError("a sentence"), 1),
        (RunInterrupted("a sentence"), 130),
        (KeyboardInterrupt("a sentence"), 130),
        (CommandError(Failure(7, "a sentence")), 7),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    found = explain(error)
    assert (found.code, found.sentence, found.unexpected) == (code, "a sentence", False)


def test_sentences_are_put_on_one_line() -> None:
    assert explain(RotateConvError("one\n  two")).sentence == "one two"
