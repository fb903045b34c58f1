"""Models in folders of the Hub's form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rotateconv import build_model

pytest.importorskip("huggingface_hub")
from rotateconv.hub import RotateConvNet

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("conv", ["rotate4", "rotate2p", "mask4", "rotate4-fixed"])
def test_what_is_saved_is_loaded(conv: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = RotateConvNet("resnet20", conv, num_classes=3, in_channels=1, width=0.25, classes=["a", "b", "c"])
    model.model.norm.running_mean.normal_()
    state = torch.get_rng_state()
    model.save_pretrained(tmp_path)
    loaded = RotateConvNet.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (loaded.classes, loaded.mean, loaded.std) == (["a", "b", "c"], None, None)
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images), model.eval()(images))
    assert capsys.readouterr().out == ""


def test_a_folder_holds_json_and_safetensors(tmp_path: Path) -> None:
    RotateConvNet("densenet40", growth=2, mean=[0.5, 0.5, 0.5]).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["name"], config["growth"], config["mean"]) == ("densenet40", 2, [0.5, 0.5, 0.5])
    assert "rotateconv" in (tmp_path / "README.md").read_text()


def test_a_model_of_build_model(tmp_path: Path) -> None:
    model = build_model("resnet20", "rotate2", width=0.25)
    RotateConvNet.from_model(model, classes=[str(i) for i in range(10)]).save_pretrained(tmp_path)
    loaded = RotateConvNet.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.classes == [str(i) for i in range(10)]


def test_weights_under_their_first_names_are_read(tmp_path: Path) -> None:
    model = RotateConvNet("resnet20", "rotate2", width=0.25)
    model.save_pretrained(tmp_path)
    first = {name.replace("model.", "net.", 1): tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    assert len(first) == len(model.state_dict())
    save_file(first, tmp_path / WEIGHTS)
    loaded = RotateConvNet.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_it_can_be_pushed() -> None:
    assert callable(RotateConvNet.push_to_hub)


def test_other_models() -> None:
    with pytest.raises(ValueError, match="expected a model of build_model with a conv of CONVS, got a Linear"):
        RotateConvNet.from_model(nn.Linear(2, 2))
    model = build_model("resnet20", width=0.25)
    model.classifier = nn.Linear(16, 3)
    with pytest.raises(
        ValueError, match="the model is not what build_model built any more: size mismatch for classifier"
    ):
        RotateConvNet.from_model(model)


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    RotateConvNet(width=0.25).save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    data = file.read_bytes()
    file.write_bytes(data[:-10])
    with pytest.raises(ValueError, match="is no safetensors file, or it was cut off"):
        RotateConvNet.from_pretrained(tmp_path)
    file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        RotateConvNet.from_pretrained(tmp_path)
    file.write_bytes(data)
    config.write_text(config.read_text().replace("0.25", "0.5"))
    with pytest.raises(ValueError, match=r"does not fit its config\.json: size mismatch for model\."):
        RotateConvNet.from_pretrained(tmp_path)
    config.write_text(config.read_text().replace("rotate4", "rotate5"))
    with pytest.raises(ValueError, match="unknown conv 'rotate5'"):
        RotateConvNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": 60}, r"its model has 427,\d+,\d+ numbers, more than the 50,000,000 allowed"),
        ({"width": 1e300}, "is larger than any memory"),
        ({"width": "wide"}, "width of the model must be a number above 0, got 'wide'"),
        ({"num_classes": None}, "num_classes of the model must be a whole number above 0, got None"),
        ({"name": ["resnet20"]}, "name of the model must be a text"),
        ({"classes": 5}, "classes must be a list of texts"),
        ({"std": [0]}, "std must be a list of finite numbers above 0"),
        ({"layers": {"stem": {"taps": []}}}, "taps must be one of"),
        ({"layers": ["stem"]}, "layers must be options by the name of a convolution"),
        ({"num_classes": 11}, r"does not fit its config\.json: size mismatch for model\.classifier"),
    ],
)
def test_configurations_of_another_model(changes: dict[str, object], match: str, tmp_path: Path) -> None:
    RotateConvNet("resnet20", width=0.25).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ValueError, match=match):
        RotateConvNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[1]", "\udcff"])
def test_configurations_that_are_no_object(text: str, tmp_path: Path) -> None:
    RotateConvNet("resnet20", width=0.25).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"the config\.json of .* is no (JSON|object)"):
        RotateConvNet.from_pretrained(tmp_path)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = RotateConvNet("resnet20", width=0.25)
    model.model.classifier.bias.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds numbers that are not finite: model\.classifier\.bias"):
        RotateConvNet.from_pretrained(tmp_path)


def test_a_larger_model_is_loaded_for_who_allows_it(tmp_path: Path) -> None:
    RotateConvNet("resnet20", width=0.25).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="more than the 1,000 allowed"):
        RotateConvNet.from_pretrained(tmp_path, max_parameters=1000)
    assert RotateConvNet.from_pretrained(tmp_path, max_parameters=100_000).model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ImportError", "RuntimeError"])
def test_a_missing_package(kind: str) -> None:
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "huggingface_hub":
            raise {kind}("no hub here")
sys.meta_path.insert(0, Missing())
try:
    import rotateconv.hub
except ImportError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "rotateconv.hub needs huggingface_hub (no hub here): pip install 'rotateconv[hub]'\n"
