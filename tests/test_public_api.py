"""The public surface: every name of `rotateconv.__all__` with its signature, as tests/public_api.txt has it.

`python tests/test_public_api.py` writes that file anew; the difference is what a release note must say.
"""

import difflib
import inspect
from collections.abc import Iterator
from pathlib import Path

import rotateconv

SNAPSHOT = Path(__file__).parent / "public_api.txt"


def signature(public: object) -> str:
    """Names, kinds and defaults of the arguments, without types, which mypy checks and Python versions spell anew."""
    given = inspect.signature(public)
    plain = [argument.replace(annotation=inspect.Parameter.empty) for argument in given.parameters.values()]
    return str(given.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def members(public: type) -> Iterator[str]:
    """The methods and properties that a class of this package has of its own, or from another of this package."""
    found = {
        name: value
        for base in reversed(public.__mro__)
        if base.__module__.startswith("rotateconv.")
        for name, value in vars(base).items()
        if not name.startswith("_") or name in ("__call__", "__str__")
    }
    for name, value in sorted(found.items()):
        if isinstance(value, property):
            yield f"    {name}"
        elif isinstance(value, classmethod):
            yield f"    {name}{signature(getattr(public, name))}"
        elif inspect.isfunction(value):
            yield f"    {name}{signature(value)}"


def surface() -> str:
    """One line per public name, its members or entries indented below."""
    lines = []
    for name in sorted(rotateconv.__all__):
        public = getattr(rotateconv, name)
        if isinstance(public, dict):
            lines += [name, *(f"    {key!r}" for key in public)]
        else:
            lines.append(f"{name}{signature(public)}")
            lines += members(public) if inspect.isclass(public) else []
    return "\n".join(lines) + "\n"


def test_the_public_surface_is_the_committed_one() -> None:
    found, expected = surface().splitlines(), SNAPSHOT.read_text("utf-8").splitlines()
    change = "\n".join(difflib.unified_diff(expected, found, "committed", "found", lineterm="", n=0))
    assert found == expected, f"the public surface changed; if that is meant, run python {__file__}\n{change}"


if __name__ == "__main__":
    SNAPSHOT.write_text(surface(), "utf-8")
