"""Preprocessing in the graph: what `rotateconv predict` does to an image, but for the filter at odd shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from rotateconv import build_model, export_onnx
from rotateconv.export.preprocessing import normalized
from rotateconv.lab import predict
from rotateconv.lab.data.preprocessing import _fit

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MEAN, STD = [0.4, 0.5, 0.45], [0.25, 0.2, 0.3]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_model("resnet20", width=0.25).eval()
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    classes = [f"class {number}" for number in range(10)]
    found = export_onnx(
        model, path, input_size=(3, 32, 32), compact=True, preprocessing=True, classes=classes, mean=MEAN, std=STD
    )
    assert found.largest_difference < 1e-4
    return path


@pytest.mark.parametrize(("height", "width"), [(32, 32), (427, 427), (427, 640), (64, 48), (16, 16), (20, 30)])
@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_pixels_are_those_of_predict(photo: str, height: int, width: int, file: Path) -> None:
    image = Image.fromarray(load_sample_image(photo))
    image = image.crop((0, 0, width, height)) if height == 427 else image.resize((width, height))
    proto = onnx.load(file)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("pp_whole", onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(proto.SerializeToString())
    pixels = np.array(image)
    found = session.run(["pp_whole"], {"images": pixels[None]})[0][0].transpose(1, 2, 0)
    difference = abs(found - _fit(pixels, 3, 32, 32))
    assert difference.mean() <= 0.6  # of 255; docs/compact-onnx.md names these two
    assert difference.max() <= 25
    if (height, width) == (32, 32):
        assert difference.max() == 0


def test_predict_takes_the_file_and_agrees_with_it(file: Path, tmp_path: Path) -> None:
    photo = load_sample_image("flower.jpg")
    Image.fromarray(photo).save(tmp_path / "flower.png")
    (answer,) = predict(file, [tmp_path / "flower.png"], top=10)
    found = runtime.InferenceSession(file).run(["probabilities"], {"images": photo[None]})[0][0]
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert answer.classes[0] == f"class {found.argmax()}"
    assert answer.probabilities == pytest.approx(sorted(found, reverse=True), abs=0.02)
    small = np.array(Image.fromarray(photo).resize((32, 32)))
    Image.fromarray(small).save(tmp_path / "small.png")
    (answer,) = predict(file, [tmp_path / "small.png"], top=10)
    found = runtime.InferenceSession(file).run(["probabilities"], {"images": small[None]})[0][0]
    assert answer.probabilities == pytest.approx(sorted(found, reverse=True), abs=1e-6)


def test_pixels_are_normalized_per_channel() -> None:
    pixels = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    expected = [(0 - 0.4) / 0.25, (1 - 0.5) / 0.2, (0.2 - 0.45) / 0.3]
    assert normalized(pixels, MEAN, STD).flatten().tolist() == pytest.approx(expected)


def test_it_needs_mean_and_std(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"preprocessing needs mean and std of each of 3 channels, got \[0.5\] and None"
    ):
        export_onnx(torch.nn.Flatten(), tmp_path / "model.onnx", input_size=(3, 8, 8), preprocessing=True, mean=[0.5])
    assert not list(tmp_path.iterdir())
