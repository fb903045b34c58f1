"""The commands pack, unpack and export: what they write, what they say, and mistakes."""

import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import invoke
from rotateconv import build_model, fuse, load_packed, quantize
from rotateconv import pack as write_pack
from rotateconv.lab.cli.shared.bits import choose
from rotateconv.lab.config import make_config
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import load_data
from rotateconv.lab.files import write_json
from rotateconv.lab.plain import to_json
from rotateconv.lab.train.evaluate import evaluate
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import load_run
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.pack import describe_packed
from small import small_digits


def run(*args: object, code: int = 0) -> str:
    """Return what a command prints; it must end with `code`."""
    result = invoke([str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    changes = {"model": "resnet20", "conv": "rotate2p", "width": 0.25, "epochs": 1, "batch_size": 32, "warmup": 0}
    fit(make_config("digits", changes=changes), out, data=small_digits())
    return out


def test_a_run_is_packed_and_unpacked(trained: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "model.rotateconv", tmp_path / "model.safetensors"
    told = run("pack", trained, "--out", file, "--weight-bits", 3, "--angle-bits", 4, "--dense-bits", 6)
    assert f"{file.stat().st_size:,} bytes" in told
    assert "accuracy    not measured: these are other images of digits" in told
    assert "accuracy    not measured: --no-evaluate" in run("pack", trained, "--out", file, "--no-evaluate")
    run("pack", trained, "--out", file, "--weight-bits", 3, "--angle-bits", 4, "--dense-bits", 6)
    model = quantize(load_run(trained).model, 3, 4, dense_bits=6)
    loaded = load_packed(file).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())

    told = run("unpack", file, "--out", out)
    for text in ("resnet20, rotate2p", "3 bits per weight, 4 per angle, 6 in", "0, 1, 2, 3", "1 x 8 x 8", str(out)):
        assert text in told
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in load_file(out).items())
    run("unpack", file, "--out", out, "--fused")
    assert load_file(out).keys() == fuse(model).state_dict().keys()
    assert "written" not in run("unpack", file)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained with 2 bits per weight, 3 per angle and 6 elsewhere."""
    out = tmp_path_factory.mktemp("runs") / "quantized"
    changes = {"model": "resnet20", "conv": "rotate2p", "width": 0.25, "epochs": 1, "batch_size": 32, "warmup": 0}
    bits = {"qat": True, "weight_bits": 2, "angle_bits": 3, "dense_bits": 6}
    fit(make_config("digits", changes={**changes, **bits}), out, data=small_digits())
    return out


@pytest.mark.slow
def test_bits_are_those_of_the_training(quantized: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    expected = "2 bits per weight, 3 per angle, 6 in stem, 1x1 and linear layers"
    assert expected in run("pack", quantized, "--out", tmp_path / "model.rcp")
    assert describe_packed(tmp_path / "model.rcp").bits == [2, 3, 6]
    for source in (quantized, tmp_path / "model.rcp"):
        assert expected in run("export", source, "--to", "onnx", "--out", tmp_path / "model.onnx")
    dense = run("export", quantized, "--to", "onnx", "--no-compact", "--out", tmp_path / "dense.onnx")
    assert expected not in dense
    assert 5 * (tmp_path / "model.onnx").stat().st_size < (tmp_path / "dense.onnx").stat().st_size
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = invoke(["pack", str(quantized), "--weight-bits", "4", "--out", str(tmp_path / "other.rcp")])
    assert result.exit_code == 0
    assert f"has {expected}, and is quantized again to 4 bits per weight, 3 per angle" in result.stderr
    mistake = run("export", quantized, "--to", "onnx", "--no-compact", "--weight-bits", 2, "--out", "x", code=2)
    assert "has no meaning without --compact" in mistake
    mistake = run("export", quantized, "--to", "torch-export", "--compact", "--out", "x", code=2)
    assert "--compact has no meaning with --to torch-export" in mistake
    mistake = run("export", quantized, "--to", "torch-export", "--license", "MIT", "--out", "x", code=2)
    assert "--license has no meaning with --to torch-export" in mistake


@pytest.mark.slow
def test_calibrating_gives_as_many_bytes_and_statistics_of_the_quantized_model(trained: Path, tmp_path: Path) -> None:
    whole = load_data("digits")  # what the command loads for this run: its data.json is of fewer images
    run_on_all = tmp_path / "run"
    shutil.copytree(trained, run_on_all)
    write_json(run_on_all / "data.json", to_json(DataDescription.of(whole)))
    plain, file = tmp_path / "plain", tmp_path / "calibrated"
    assert "statistics  of the training\n" in run("pack", run_on_all, "--out", plain, "--weight-bits", 3)
    told = run("pack", run_on_all, "--out", file, "--weight-bits", 3, "--calibrate")
    measured = evaluate(
        load_packed(file), Batches(whole.validation, 512, mean=whole.mean, std=whole.std), whole.classes
    )
    assert f"accuracy    {measured.accuracy:.2f} % of {measured.count:,} validation images\n" in told
    assert f"recalibrated on {len(whole.train):,} training images" in told
    assert abs(file.stat().st_size - plain.stat().st_size) < 0.02 * plain.stat().st_size

    before, after = load_packed(plain), load_packed(file)
    for (name, tensor), (_, other) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(tensor, other), name
    images = Batches(whole.train, len(whole.train), mean=whole.mean, std=whole.std)
    expected = quantize(load_run(trained).model, 3, calibration=images).state_dict()
    for name, tensor in after.state_dict().items():
        if tensor.is_floating_point():  # the mean of three batches is not quite that of one
            torch.testing.assert_close(tensor, expected[name], rtol=0.1, atol=0.02, msg=name)
    assert evaluate(after, images, whole.classes).loss < evaluate(before, images, whole.classes).loss


@pytest.mark.slow
@pytest.mark.parametrize(("to", "package"), [("onnx", "onnxscript"), ("torch-export", "torch")])
def test_a_run_and_a_packed_file_are_exported(to: str, package: str, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip(package)
    told = run("export", trained, "--to", to, "--out", tmp_path / "run.pt2")
    assert re.search(r"differs from PyTorch by \d\.\de-0\d at most \(0\.0001 of the outputs", told)
    assert "batch x 1 x 8 x 8, any batch" in told
    assert ("opset 18, IR version" in told) == (to == "onnx")
    run("pack", trained, "--out", tmp_path / "model")
    run("export", tmp_path / "model", "--to", to, "--out", tmp_path / "packed.pt2")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "run.pt2", "packed.pt2"}


@pytest.mark.parametrize(("given", "bits"), [("none", Bits(3, 4)), ("2", Bits(2, 4))])
def test_bits_of_none_are_those_of_the_model(given: str, bits: Bits, recwarn: pytest.WarningsRecorder) -> None:
    assert choose({"weight_bits": given}, Path("runs/digits"), Bits(3, 4), Bits()) == bits
    assert len(recwarn) == (given != "none")


def test_mistakes(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "model"
    assert run("pack", trained, "--out", file, "--weight-bits", 9, code=2) == (
        "error: --weight-bits must be a whole number from 1 to 8, or none, not 9\n"
    )
    mistake = run("pack", trained, "--out", file, "--weight-bits", 3, "--weight-levels", 9, code=2)
    assert "weight_levels must be from 5 to 8 with 3 bits, got 9" in mistake
    mistake = run("export", trained, "--to", "onnx", "--compact", "--out", file, "--angle-bits", "few", code=2)
    assert "--angle-bits must be a whole number from 2 to 8, or none, not 'few'" in mistake
    assert "--data-dir has no meaning with --no-evaluate and no --calibrate" in run(
        "pack", trained, "--out", file, "--no-evaluate", "--data-dir", ".", code=2
    )
    assert "was trained on other images of digits" in run("pack", trained, "--out", file, "--calibrate", code=2)
    assert "is not there" in run("pack", tmp_path / "no", "--out", file, code=2)
    assert "there is no folder" in run("pack", trained, "--out", tmp_path / "no" / "model", code=2)
    assert "--to must be one of onnx, torch-export, hub, not 'coreml'" in run(
        "export", trained, "--to", "coreml", "--out", file, code=2
    )
    assert not list(tmp_path.iterdir())
    assert "cannot read" in run("unpack", file, code=2)
    write_pack(build_model("resnet20", width=0.25), file)
    assert "does not say what images its model takes" in run("export", file, "--to", "onnx", "--out", "x", code=2)
    assert "--fused has no meaning with no --out" in run("unpack", file, "--fused", code=2)
    file.write_bytes(file.read_bytes()[:-1])
    for command in (("unpack", file), ("export", file, "--to", "onnx", "--out", tmp_path / "x")):
        assert "is no packed model, or it was cut off" in run(*command, code=2)
