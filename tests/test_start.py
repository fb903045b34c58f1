"""The command line starts before torch is there, and a Ctrl-C while modules load is an end like any other."""

import subprocess
import sys

import pytest

START = """
import sys

class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            raise {error}

sys.meta_path.insert(0, Finder())
sys.argv = ["rotateconv", *{arguments!r}]
from rotateconv.__main__ import main
main()
"""


def start(arguments: list[str], name: str, error: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line where importing one module raises an error."""
    code = START.format(name=name, error=error, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("numpy", "matplotlib", "accelerate", "torchvision", "scipy")
        ),
    ],
)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["trian"], 2),
        (["train", "--ephocs", "3"], 2),
        (["predict", "run"], 2),
        (["evaluate", "run", "--batch-size", "0"], 2),
        (["unpack", "file", "--fused"], 2),
        (["export", "run", "--to", "hub", "--out", "folder", "--compact"], 2),
    ],
    ids=lambda value: str(value),
)
def test_help_and_typos_wait_for_no_library(arguments: list[str], code: int, name: str) -> None:
    if name != "torch" and arguments != ["--help"]:
        pytest.skip("one is enough: none of the others loads without torch")
    done = start(arguments, name, 'SystemExit("loaded")')
    assert done.returncode == code, done.stderr
    assert "loaded" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cyclopts", "torch", "accelerate"])
def test_ctrl_c_while_modules_load_is_no_traceback(name: str) -> None:
    done = start(["train", "--epochs", "1", "--out", "never"], name, "KeyboardInterrupt")
    assert done.returncode == 130
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(("interrupted: ", "stopped at once: "))
