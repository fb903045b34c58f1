"""The house: what `import rotateconv` loads, imports in one direction, and documentation that runs."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import rotateconv

PACKAGE = Path(rotateconv.__file__).parent
HEAVY = [
    "torchvision",
    "matplotlib",
    "accelerate",
    "sklearn",
    "scipy",
    "rich",
    "typer",
    "click",
    "pandas",
    "PIL",
    "onnx",
]


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """The modules that a module imports when it is loaded: not inside functions, not for type checkers only."""
    found: set[str] = set()
    statements: list[ast.stmt] = ast.parse(MODULES[name].read_text("utf-8")).body
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{name}: a relative import"
            module = statement.module or ""
            for alias in statement.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in MODULES else module)
        elif isinstance(statement, ast.Try):
            statements += statement.body + statement.orelse + statement.finalbody
            statements += [line for handler in statement.handlers for line in handler.body]
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.unparse(statement.test):
            statements += statement.body + statement.orelse
    return found


GRAPH = {name: imports_of(name) for name in MODULES}


def reachable(name: str) -> set[str]:
    """The modules of the package that importing one of them loads, itself included, and their parent packages."""
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        module = ahead.pop()
        if module in GRAPH and module not in seen:
            seen.add(module)
            ahead += [*GRAPH[module], module.rpartition(".")[0]]
    return seen


# What the public names load.
LIBRARY = sorted(set().union(*(reachable(f"rotateconv.{home}") for home in rotateconv._HOMES.values())))


def test_the_package_was_found() -> None:
    assert {"rotateconv", "rotateconv.kernels.line", "rotateconv.nn.conv", "rotateconv.kernels.fit"} <= set(LIBRARY)
    assert GRAPH["rotateconv.nn.conv"] >= {"rotateconv.kernels.line", "rotateconv.nn.arguments", "torch"}


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


def test_library_modules_import_only_torch_safetensors_and_the_standard_library() -> None:
    allowed = {"rotateconv", "torch", "safetensors", *sys.stdlib_module_names}
    outside = {name: {found for found in GRAPH[name] if found.split(".")[0] not in allowed} for name in LIBRARY}
    assert {name: found for name, found in outside.items() if found} == {}


def test_imports_go_one_way() -> None:
    # A package's own __init__ stands above its modules: they may be loaded through it, but never ask it for a name.
    graph = {name: {found for found in imported if found in GRAPH} for name, imported in GRAPH.items()}
    done: set[str] = set()
    while ready := {name for name, imported in graph.items() if name not in done and imported <= done}:
        done |= ready
    assert done == set(graph), f"imports go round among {sorted(set(graph) - done)}"


def test_no_module_imports_the_whole_package() -> None:
    # `import rotateconv` from inside is a circle, and loads everything for the sake of one name.
    assert {name for name, imported in GRAPH.items() if "rotateconv" in imported} <= {"rotateconv.__main__"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_everything_public_has_a_docstring(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert missing == []


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


@pytest.mark.parametrize("name", LIBRARY)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in LIBRARY for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 8  # a broken finder would make the test above pass
