"""The wheel, installed alone beside torch and safetensors: what a user has who takes no extra."""

import importlib.metadata
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def needed(*names: str) -> set[str]:
    """The installed distributions that these need without extras, themselves included."""
    found: set[str] = set()
    ahead = list(names)
    while ahead:
        name = ahead.pop()
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another system
            continue
        if name not in found:
            found.add(name)
            ahead += [re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel, torch and safetensors with what they need, no more."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    # Without the network: hatchling builds the wheel, the pip of this environment installs it in the other one.
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / Path(sys.executable).name
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)

    packages = folder / "packages"
    packages.mkdir()
    for name in needed("torch", "safetensors"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "bare.pth").write_text(f"{packages}\n", "utf-8")
    return python


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -I: nothing of this environment or of the folder that the tests run in.
    return subprocess.run([python, "-I", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_environment_is_bare(bare: Path, tmp_path: Path) -> None:
    code = "import rotateconv; print(rotateconv.__file__)"
    found = Path(run(bare, "-c", code, cwd=tmp_path).stdout.strip())
    assert bare.parent.parent in found.parents
    assert (found.parent / "py.typed").is_file()
    for module in ("numpy", "cyclopts", "pydantic", "torchvision", "matplotlib", "onnx", "huggingface_hub"):
        assert "ModuleNotFoundError" in run(bare, "-c", f"import {module}", cwd=tmp_path).stderr, module


def test_the_drop_in_example_runs(bare: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    example = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0]
    assert "RotateConv2d(64, 64, 3, padding=1)  # was: nn.Conv2d" in example
    found = run(bare, "-c", example, cwd=tmp_path)
    assert found.returncode == 0, found.stderr


def test_every_public_name_is_there(bare: Path, tmp_path: Path) -> None:
    found = run(bare, "-c", "from rotateconv import *; print(RotateConv2d(4, 4))", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("RotateConv2d(4, 4, kernel_size=(3, 3)")


def test_a_model_is_converted_trained_packed_and_loaded(bare: Path, tmp_path: Path) -> None:
    code = """
import torch
from rotateconv import build_model, convert, fuse, load_packed, pack, param_groups, quantize

model = build_model("resnet20", "conv3x3", width=0.25)
convert(model, "profile")
optimizer = torch.optim.SGD(param_groups(model, lr=0.1, weight_decay=1e-4))
model(torch.randn(4, 3, 16, 16)).square().mean().backward()
optimizer.step()
pack(model, "model.rcp")
images = torch.randn(2, 3, 16, 16)
assert torch.equal(load_packed("model.rcp")(images), quantize(model).eval()(images))
assert torch.allclose(fuse(model.eval(), fold_batchnorm=True)(images), model(images), atol=1e-4)
"""
    found = run(bare, "-c", code, cwd=tmp_path)
    assert found.returncode == 0, found.stderr


def test_the_command_says_which_extra_it_needs(bare: Path, tmp_path: Path) -> None:
    found = run(bare, "-m", "rotateconv", "train", "--data", "digits", cwd=tmp_path)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert "pip install 'rotateconv[" in found.stderr
