"""The house: the contracts of its imports, what importing it loads, and documentation that runs."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import rotateconv

ROOT = Path(__file__).parent.parent
HEAVY = [
    "torchvision",
    "matplotlib",
    "accelerate",
    "sklearn",
    "scipy",
    "rich",
    "cyclopts",
    "pydantic",
    "pandas",
    "PIL",
    "onnx",
]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(rotateconv.__path__, "rotateconv.")
    if not module.name.endswith("__main__")
)
TRAINING = {f"rotateconv.lab.{name}" for name in ("api", "study.finish", "train.fit")}
"""Their examples train."""


def test_imports_keep_the_contracts() -> None:
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_importing_the_package_loads_only_torch_and_safetensors() -> None:
    code = (
        "import sys, torch, safetensors.torch; before = set(sys.modules); from rotateconv import *;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}), sep='\\n');"
        f"print(*['HEAVY ' + name for name in {HEAVY} if name in sys.modules], sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = set(run.stdout.split("\n")) - {""}
    assert "rotateconv" in added
    assert not [name for name in added if name.startswith("HEAVY")]
    assert added - {"rotateconv"} <= set(sys.stdlib_module_names) | {"torch", "safetensors"}


@pytest.mark.parametrize("name", rotateconv.__all__)
def test_public_names_are_documented(name: str) -> None:
    public = getattr(rotateconv, name)
    documentation = inspect.getdoc(public) or ""
    if inspect.isclass(public) and (is_dataclass(public) or issubclass(public, tuple)):  # a plain result
        fields = public.__annotations__
        assert fields
        assert [field for field in fields if field not in documentation] == []
    elif inspect.isfunction(public) or inspect.isclass(public):
        assert ">>> " in documentation, f"{name} has no example"
    else:
        assert type(public) is dict, f"{name} is neither documented code nor a plain dict"


def examples_of(name: str) -> list[doctest.DocTest]:
    """The examples in the docstrings of a module; skips where it needs a package, or a device, that is not here."""
    try:
        module = importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} cannot be imported here: {error}")
    return doctest.DocTestFinder(exclude_empty=True).find(module)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in TRAINING), id=name) for name in MODULES]
)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in examples_of(name):
        report: list[str] = []
        doctest.DocTestRunner().run(example, out=report.append)
        assert not report, "".join(report)
    assert list(tmp_path.iterdir()) == []  # an example that writes cleans up


@pytest.mark.parametrize("half", ["lab", "library"])
def test_there_are_examples(half: str) -> None:
    names = [name for name in MODULES if name.startswith("rotateconv.lab") == (half == "lab") and "triton" not in name]
    found = [example for name in names for example in examples_of(name) if example.examples]
    assert len(found) >= 15  # a broken finder would make the test above pass
