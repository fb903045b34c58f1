"""Predictions: a run, its packed and its ONNX file answer alike; what is not a model or an image is refused."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import invoke
from rotateconv import build_model, pack
from rotateconv.lab.config import make_config
from rotateconv.lab.predictions import LARGEST_ONNX, predict
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import load_run, pack_model
from rotateconv.quantization.bits import Bits
from small import small_digits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its files of 8 bits, and three images of digits, one of them larger."""
    from rotateconv import export_onnx

    out = tmp_path_factory.mktemp("predict")
    changes = {"model": "resnet20", "conv": "rotate2p", "width": 0.5, "epochs": 2, "batch_size": 32, "warmup": 0}
    fit(make_config("digits", changes=changes), out / "run", data=small_digits())
    run = load_run(out / "run")
    pack_model(run.model, run.data, out / "model.rcp", Bits(8, 8, 8))
    about = {"classes": run.data.classes, "mean": run.data.mean, "std": run.data.std}
    bits = {"weight_bits": 8, "angle_bits": 8}
    about |= {"input_size": run.data.input_shape, "compact": True}
    export_onnx(run.model, out / "model.onnx", **bits, **about)
    export_onnx(run.model, out / "whole.onnx", preprocessing=True, **bits, **about)
    (out / "images").mkdir()
    for number, image in enumerate(small_digits().test.images[:3]):
        picture = Image.fromarray(image[0].numpy())
        (picture.resize((24, 16)) if number == 2 else picture).save(out / "images" / f"{number}.png")
    return out


def test_all_files_answer_alike_and_as_the_model(folder: Path) -> None:
    answers = [
        predict(folder / name, [folder / "images"], top=10) for name in ("run", "model.rcp", "model.onnx", "whole.onnx")
    ]
    run = load_run(folder / "run")
    pixels = small_digits().test.images[:2]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (run.data.mean, run.data.std))
    with torch.no_grad():
        expected = run.model((pixels / 255 - mean) / std).softmax(1)
    for found in answers:
        assert [prediction.image.name for prediction in found] == ["0.png", "1.png", "2.png"]
        assert [prediction.resized for prediction in found] == [False, False, True]
        for prediction, row in zip(found, expected, strict=False):
            assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
            values = [row[run.data.classes.index(name)].item() for name in prediction.classes]
            np.testing.assert_allclose(prediction.probabilities, values, atol=1e-5 if found is answers[0] else 0.05)


def test_the_command_prints_and_writes(folder: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(folder / "model.onnx"), str(folder / "images"), "--top", "2"]
    shown = invoke([*arguments, "--csv", str(tmp_path / "answers.csv")])
    assert shown.exit_code == 0, shown.output
    assert "resized to what the model takes: 1 of 3 images" in shown.stdout
    answers = predict(folder / "model.onnx", [folder / "images"], top=2)
    rows = list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == [name for answer in answers for name in answer.classes]
    printed = json.loads(invoke([*arguments, "--json"]).stdout)
    assert [row["classes"][0]["class"] for row in printed] == [answer.classes[0] for answer in answers]
    assert [row["resized"] for row in printed] == [False, False, True]


def test_files_are_evaluated_as_the_run_is(folder: Path) -> None:
    def accuracy(name: str, *arguments: str) -> float:
        result = invoke(["evaluate", str(folder / name), "--data", "digits", *arguments])
        assert result.exit_code == 0, result.output
        found = re.search(r"test accuracy (\d+\.\d+) %", result.stdout)
        assert found is not None
        return float(found[1])

    expected = accuracy("run")
    for name in ("model.rcp", "model.onnx", "whole.onnx"):
        assert accuracy(name) == pytest.approx(expected, abs=2)
        refused = invoke(["evaluate", str(folder / name)])
        assert refused.exit_code == 2
        assert "does not say what its model was trained on" in " ".join(refused.stderr.split())


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    image = str(folder / "images" / "0.png")

    def mistake(*arguments: object) -> str:
        result = invoke(["predict", *map(str, arguments)])
        assert result.exit_code == 2, result.output
        return " ".join(result.stderr.split())

    assert "name at least one image" in mistake(folder / "run")
    assert "top must be 1 or more, not 0" in mistake(folder / "run", image, "--top", 0)
    assert "there is no image" in mistake(folder / "run", tmp_path / "no.png")
    assert "there is no image in the folder" in mistake(folder / "run", tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no image")
    answers = tmp_path / "answers.csv"
    assert "does not decode as an image" in mistake(folder / "run", tmp_path / "bad.png", "--csv", answers)
    assert not answers.exists()
    assert "cannot read" in mistake(tmp_path / "no.onnx", image)
    (tmp_path / "bad.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-100])
    assert "is no ONNX file, or it was cut off" in mistake(tmp_path / "bad.onnx", image)
    pack(build_model("resnet20", width=0.25), tmp_path / "bare.rcp")
    assert "does not say its classes, mean, std, input_size" in mistake(tmp_path / "bare.rcp", image)


def test_onnx_files_that_are_not_ours(folder: Path, tmp_path: Path) -> None:
    image, path = folder / "images" / "0.png", tmp_path / "other.onnx"
    proto = onnx.load(folder / "model.onnx")
    props = {prop.key: prop.value for prop in proto.metadata_props}

    def save(**changes: str) -> None:
        onnx.helper.set_model_props(proto, {**props, **changes})
        onnx.save(proto, path)

    save(mean="nothing", std="{}")
    with pytest.raises(ValueError, match="does not say its mean, std: write it with rotateconv export"):
        predict(path, [image])
    save(input_size="[1, 8]")
    with pytest.raises(ValueError, match=r"must say its input_size as channels, height and width, got \[1, 8\]"):
        predict(path, [image])
    save(std="[0.0]")
    with pytest.raises(ValueError, match="a standard deviation above 0 for each of 1 channels"):
        predict(path, [image])
    save(classes="[1, 2]")
    with pytest.raises(ValueError, match="must say its classes as a list of names"):
        predict(path, [image])
    save(classes='["one", "two"]')
    with pytest.raises(ValueError, match="has 10 outputs and names 2 classes"):
        predict(path, [image])
    save(input_size="[3, 8, 8]", mean="[0, 0, 0]", std="[1, 1, 1]")
    with pytest.raises(ValueError, match="cannot classify images of its input_size"):
        predict(path, [image])


def test_a_hostile_onnx_file_reads_no_other_file_and_takes_no_memory(folder: Path, tmp_path: Path) -> None:
    image, path = folder / "images" / "0.png", tmp_path / "other.onnx"
    proto = onnx.load(folder / "model.onnx")
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match="keeps numbers in other files, which are not opened"):
        predict(path, [image])
    with path.open("wb") as file:
        file.truncate(LARGEST_ONNX + 1)
    with pytest.raises(ValueError, match="more than the 268,435,456 allowed"):
        predict(path, [image])


@pytest.mark.skipif(sys.platform != "linux", reason="limited on Linux only")
@pytest.mark.parametrize("folded", [True, False])
def test_a_graph_that_asks_for_too_much_memory_is_refused(folded: bool, folder: Path, tmp_path: Path) -> None:
    path, helper = tmp_path / "bomb.onnx", onnx.helper
    proto = onnx.load(folder / "model.onnx")
    graph = proto.graph
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [2**31])  # eight gigabytes
    zeros = helper.make_tensor("zero", onnx.TensorProto.INT64, [1], [0])
    graph.initializer.extend([shape, zeros])
    graph.node.extend(
        [
            helper.make_node("Identity", ["zero"], ["own"])
            if folded
            else helper.make_node("Shape", ["images"], ["own"], start=0, end=1),
            helper.make_node("Add", ["shape", "own"], ["sum"]),
            helper.make_node("ConstantOfShape", ["sum"], ["many"]),
            helper.make_node("ReduceSum", ["many"], ["logits"]),
        ]
    )
    path.write_bytes(proto.SerializeToString())
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot open|cannot classify images of its input_size"):
        predict(path, [folder / "images" / "0.png"])
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    predict(folder / "model.onnx", [folder / "images" / "0.png"])
