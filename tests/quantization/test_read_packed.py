"""The reader of packed files in examples/, which has NumPy and the standard library alone."""

import ast
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rotateconv import build_model, load_packed, pack, param_groups

np = pytest.importorskip("numpy")

EXAMPLE = Path(__file__).parents[2] / "examples" / "read_packed.py"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_packed", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lively(model: nn.Module) -> nn.Module:
    """The model with norms that are not those that it is built with."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(1, 0.3)
                module.bias.normal_()
    return model.eval()


def test_it_needs_numpy_alone() -> None:
    source = EXAMPLE.read_text()
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([ast.alias(node.module)] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.parametrize("conv", ["rotate4", "rotate2p"])
@pytest.mark.parametrize(
    ("bits", "more"),
    [
        ((4, 5, 8), {}),
        ((2, 3, 3), {"weight_levels": 4, "profile_bits": 4}),
        ((1, 2, 8), {"profile_bits": 2}),
        ((7, 8, 5), {}),
        ((2, 3, 4), {"layer_bits": {"stages.[01].*": (3, 4), "stages.1.2.conv2": (8, 2), "*.conv1": (4, 4)}}),
        ((2, 3, 4), {"weight_levels": 4, "layer_bits": {"stages.[01].*": (3, 4), "stages.1.*": (8, 3)}}),
    ],
)
def test_the_scores_are_those_of_the_model(
    conv: str, bits: tuple[int, int, int], more: dict[str, Any], reader: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "model.rotateconv"
    model = lively(build_model("resnet20", conv, num_classes=7, width=0.5))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    weight, angle, dense = bits
    pack(model, file, weight_bits=weight, angle_bits=angle, dense_bits=dense, mean=mean, std=std, **more)
    images = torch.randint(256, (4, 3, 9, 12), dtype=torch.uint8)
    scores, names = reader.classify(file, images.numpy())
    normalized = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = load_packed(file)(normalized)
    torch.testing.assert_close(torch.from_numpy(scores).float(), expected, rtol=1e-4, atol=1e-4)
    assert list(names) == list(range(7))


def test_an_altered_file_is_refused(reader: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "model.rotateconv"
    pack(build_model("resnet20", width=0.25), file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="was altered"):
        reader.Packed(file)


def train_on_digits(images: Tensor, labels: Tensor) -> nn.Module:
    model = build_model("resnet20", "rotate4", in_channels=1, width=0.375)
    steps, batch = 60, 64
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1, weight_decay=5e-4), momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.slow
def test_it_classifies_real_digits(tmp_path: Path) -> None:
    from rotateconv.lab.data.sets import load_data

    data = load_data("digits")
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    model = train_on_digits((data.train.images / 255 - mean) / std, data.train.labels)
    pack(model, tmp_path / "digits.rotateconv", classes=data.classes, mean=data.mean, std=data.std)
    np.save(tmp_path / "images.npy", data.test.images.numpy())
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "digits.rotateconv"), str(tmp_path / "images.npy")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    expected = [data.classes[label] for label in data.test.labels]
    right = sum(one == other for one, other in zip(found, expected, strict=True))
    assert right / len(expected) > 0.9
    with torch.no_grad():
        same = load_packed(tmp_path / "digits.rotateconv")((data.test.images / 255 - mean) / std).argmax(1)
    agree = sum(one == data.classes[other] for one, other in zip(found, same.tolist(), strict=True))
    assert agree >= len(found) - 1  # float32 may see a tie otherwise
    assert math.isclose(right, (same == data.test.labels).sum().item(), abs_tol=1)
