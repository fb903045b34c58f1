"""The package's root: every public name, whichever module was imported first, and no torch before it is needed."""

import ast
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import rotateconv

# Modules whose import binds, or could bind, a name of the root: those called like a function, and what is in them.
CLASHING = ("rotateconv.convert", "rotateconv.convert.convert", "rotateconv.cost", "rotateconv.quantization.pack")


def test_the_block_for_type_checkers_names_the_same() -> None:
    tree = ast.parse(Path(rotateconv.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.asname: f"{node.module}" for node in block.body for alias in node.names}
    assert told == {name: f"rotateconv.{home}" for name, home in rotateconv._HOMES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("order", [",".join(order) for order in itertools.permutations(CLASHING)])
def test_functions_keep_their_names_in_every_order_of_imports(order: str) -> None:
    # In this process all are imported: a fresh package stands in for a fresh interpreter, which takes two seconds.
    names = [name for name in sys.modules if name == "rotateconv" or name.startswith("rotateconv.")]
    kept = {name: sys.modules.pop(name) for name in names}
    try:
        for number, module in enumerate(order.split(",")):
            __import__(module)
            fresh = sys.modules["rotateconv"]
            if number % 2:  # also where a function was asked for before the next module was imported
                assert callable(fresh.cost)
        assert callable(fresh.convert)
        assert callable(fresh.cost)
        assert callable(fresh.pack)
        assert [name for name in fresh.__all__ if not hasattr(fresh, name)] == []
    finally:
        for name in [name for name in sys.modules if name == "rotateconv" or name.startswith("rotateconv.")]:
            del sys.modules[name]
        sys.modules.update(kept)


def test_a_star_import_gives_the_public_names_alone() -> None:
    names: dict[str, object] = {}
    exec("from rotateconv import *", names)
    assert set(names) - {"__builtins__"} == set(rotateconv.__all__)
    assert set(rotateconv.__all__) <= set(dir(rotateconv))


@pytest.mark.parametrize("name", rotateconv.__all__)
def test_public_code_survives_pickling(name: str) -> None:
    public = getattr(rotateconv, name)
    if callable(public):
        assert pickle.loads(pickle.dumps(public)) is public


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rotateconv' has no attribute 'covert'"):
        rotateconv.covert  # noqa: B018


@pytest.mark.slow
def test_rooms_are_attributes_without_an_import_of_their_own() -> None:
    code = "import rotateconv, sys; assert 'torch' not in sys.modules; rotateconv.nn.conv.RotateConv2d(1, 1)"
    subprocess.run([sys.executable, "-c", code], check=True)
