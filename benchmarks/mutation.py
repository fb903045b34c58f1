"""Small changes of a module, made by mutmut, each of which a test should notice; the score goes into mutation.json.

    python benchmarks/mutation.py kernels/line.py [more modules ...] [--seconds 600] [--out benchmarks/mutation.json]

`mutmut run` hands pytest every test that reached a function by name, thousands of them, which takes it longer than the
tests do. Here a process that has collected the tests of a module is forked for each change, and runs them, the fastest
first, until one fails. With --seconds, a random part of the changes is tried, the same one each time; --again tries
those that survived the last time.
"""

import argparse
import ast
import difflib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).parents[1]
TESTS = {
    "kernels/line.py": ("tests/kernels/test_line.py", "tests/kernels/test_laws.py"),
    "nn/conv.py": (
        "tests/nn/test_conv.py",
        "tests/nn/test_init.py",
        "tests/nn/test_conv_fuse.py",
        "tests/nn/test_batched.py",
    ),
    "quantization/primitives.py": ("tests/quantization/test_quantize.py",),
}
"""The tests of a module."""
# What torch.compile traces cannot go through mutmut's switch between a function and its changes.
# Kernels of 7 and 9 take most of the time, and go through the lines that those of 5 go through.
OPTIONS = (
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-m",
    "not slow",
    "-k",
    "not compile and not graph and not 7- and not 9-",
)
LONGEST = 120
"""Seconds until a change counts as noticed, because nothing ends any more."""


def mutated(module: str, folder: Path) -> dict[str, str]:
    """Copy the package and the tests into a folder, the module with its changes in it; return the diff of each."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    for name in ("src", "tests", "pyproject.toml", "docs", "experiments", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "src").unlink()
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "src/rotateconv" / module
    made = mutate_file_contents(str(path), path.read_text("utf-8"))
    path.write_text(made.code, "utf-8")
    bodies = {}
    for node in ast.walk(ast.parse(made.code)):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            name, node.name = node.name, "f"
            bodies[name] = ast.unparse(node).splitlines()
    diffs = {}
    for name in made.mutant_names:
        before = bodies[f"{name.rpartition('_')[0]}_orig"]
        changed = [line for line in difflib.ndiff(before, bodies[name]) if line[0] in "+-"]
        diffs[name] = "\n".join(" ".join(line.split()) for line in changed)
    return diffs


class Trials:
    """A plugin of pytest that runs the collected tests once for each change, in a fork of their process."""

    def __init__(self, module: str, tried: Sequence[str], results: Path, seconds: float) -> None:
        self.name = f"rotateconv.{module.removesuffix('.py').replace('/', '.')}"
        self.tried, self.results, self.seconds = tried, results, seconds

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try one change after the other, and note how each ended, a line of JSON for each."""
        order = self.results.with_name("order.json")
        if self._run(session.items, "", order):
            sys.exit("the tests fail without any change")
        seconds = json.loads(order.read_text("utf-8"))
        items = sorted(session.items, key=lambda item: seconds[item.nodeid])
        ends = time.monotonic() + self.seconds
        for mutant in random.Random(0).sample(self.tried, len(self.tried)):
            if time.monotonic() > ends:
                break
            code = self._run(items, f"{self.name}.{mutant}")
            status = "timeout" if code == -signal.SIGALRM else "killed" if code else "survived"
            with self.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps([mutant, status]) + "\n")
        return True

    def _run(self, items: Sequence[pytest.Item], mutant: str, order: Path | None = None) -> int:
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.environ["MUTANT_UNDER_TEST"] = mutant
        signal.alarm(0 if order else LONGEST)
        took = {}
        for item, following in itertools.zip_longest(items, items[1:]):
            began = time.monotonic()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                os._exit(1)
            took[item.nodeid] = time.monotonic() - began
        if order is not None:
            order.write_text(json.dumps(took), "utf-8")
        os._exit(0)


def serve(module: str, folder: Path, seconds: float) -> None:
    """In a process of its own: try the changes."""
    os.chdir(folder)
    tried = json.loads((folder / "tried.json").read_text("utf-8"))
    trials = Trials(module, tried, folder / "results.jsonl", seconds)
    sys.exit(int(pytest.main([*OPTIONS, *TESTS[module]], plugins=[trials])))


def score(module: str, seconds: float, before: dict[str, Any] | None) -> dict[str, Any]:
    """Try the changes of a module, or those that survived before, and return the counts and what survives."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        diffs = mutated(module, folder)
        tried = [name for name in diffs if before is None or name in before["survivors"]]
        (folder / "tried.json").write_text(json.dumps(tried), "utf-8")
        results = folder / "results.jsonl"
        paths = os.pathsep.join(str(folder / name) for name in ("src", "tests"))
        command = [sys.executable, __file__, "--serve", str(folder), module, "--seconds", str(seconds)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, check=True)
        found = dict(json.loads(line) for line in results.read_text("utf-8").splitlines())
    counts = Counter(found.values())
    if before is not None:
        counts += Counter(killed=before["killed"], timeout=before["timeout"])
    return {
        "mutants": len(diffs),
        "run": counts.total(),
        **{status: counts[status] for status in ("killed", "timeout", "survived")},
        "score": round(1 - counts["survived"] / counts.total(), 3),
        "tests": list(TESTS[module]),
        "survivors": {name: diffs[name] for name in sorted(found) if found[name] == "survived"},
    }


def main(words: Sequence[str] | None = None) -> None:
    """Write the scores of modules into the file, beside those of others, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", choices=list(TESTS), metavar="module", help=", ".join(TESTS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each module")
    parser.add_argument("--again", action="store_true", help="only what survived the last time")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "mutation.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.serve is not None:
        serve(given.modules[0], given.serve, given.seconds)
        return
    given.out = given.out.resolve()
    os.chdir(ROOT)  # mutmut looks for src/ there
    record = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {"modules": {}}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    versions = {name: version(name) for name in ("mutmut", "torch", "pytest")} | {"python": platform.python_version()}
    for module in given.modules:
        found = score(module, given.seconds, record["modules"][module] if given.again else None)
        print(f"{module}: {found['run']} of {found['mutants']} tried, {found['survived']} survived")
        modules = {**record["modules"], module: {"commit": commit or None, "versions": versions, **found}}
        record = {"modules": dict(sorted(modules.items()))}
        given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
