"""Small changes of a module, made by mutmut, each of which a test should notice; the score goes into mutation.json.

    python benchmarks/mutation.py [kernels/line.py ...] [--seconds 600] [--again] [--out benchmarks/mutation.json]

`mutmut run` hands pytest every test that reached a function by name, thousands of them, which takes it longer than the
tests do. Here a process that has run the tests of a module once, so that all is imported, is forked for each change
and runs the tests that reach the changed function until one fails: first those that noticed another change of it, then
the fastest, ENOUGH seconds of them. What is in the record of a function that is still the same is not tried again, so
`--seconds` (of a random part of the changes) may be spent many times; --again tries those that survived, with all
tests.

Left out: changes of string literals, most of which are of messages; functions with a decorator, which mutmut passes by
(properties, `fit`, what is cached); the tests of torch.compile, which cannot trace mutmut's switch between a function
and its changes, and of kernels of 7 and 9, which go through the lines that those of 5 go through; the modules of
Triton, whose interpreter takes minutes for a change.
"""

import argparse
import ast
import functools
import itertools
import json
import operator
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rotateconv"
MODULES = [
    *(
        f"{path.parent.name}/{path.name}"
        for room in ("kernels", "nn")
        for path in sorted((SOURCE / room).glob("*.py"))
        if path.name != "__init__.py" and "triton" not in path.name
    ),
    "quantization/primitives.py",
]
RIVALS = ("models/test_convs.py", "nn/test_rivals.py")
FITS = ("kernels/test_fit.py", "kernels/test_fit_shared_angles.py")
MORE_TESTS = {
    "kernels/batch_options.py": ("nn/test_batched.py",),
    "kernels/fit_moments.py": FITS,
    "kernels/fit_profile.py": FITS,
    "kernels/fit_search.py": FITS,
    "kernels/fused_batch.py": ("nn/test_batched.py",),
    "kernels/fused_native.py": ("kernels/test_fused.py",),
    "kernels/fused_tensors.py": ("kernels/test_fused.py",),
    "kernels/line.py": ("kernels/test_laws.py",),
    "kernels/watched.py": ("kernels/test_fused.py", "kernels/test_fused_native.py"),
    "nn/_conv_base.py": ("nn/test_arguments.py", "nn/test_conv.py", "nn/test_rivals.py"),
    "nn/_kernel_cache.py": ("nn/test_batched.py",),
    "nn/arguments.py": ("nn/test_conv.py",),
    "nn/codebook.py": RIVALS,
    "nn/conv.py": ("nn/test_arguments.py", "nn/test_batched.py", "nn/test_init.py"),
    "nn/copying.py": ("quantization/test_quantize.py",),
    "nn/factored.py": RIVALS,
    "nn/masked.py": RIVALS,
    "nn/outline.py": ("quantization/test_pack_fixtures.py",),
    "quantization/primitives.py": ("quantization/test_quantize.py", "quantization/test_qat.py"),
}
"""Tests of a module beside those named like it."""
WITHOUT = ("test_compile", "the_compiler", "a_compiled", "graph")
OPTIONS = (
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-m",
    "not slow",
    "-k",
    " and ".join(f"not {word}" for word in WITHOUT),
)
LARGE = re.compile(r"[\[-][79]-")
"""In the name of a test of a large kernel."""
ENOUGH = 10.0
"""Seconds of tests for one change."""
PATIENCE = 5
"""Times what a test took, and a second more, after which a change counts as noticed, for nothing ends any more.

As all seconds of tests: of the processor, since the machine may be busy."""
DEADLOCK = 600
"""Seconds of a clock after which what does not compute counts so, too."""
MEMORY = 8 * 2**30
"""Bytes that a change may take."""
STATUS = {"k": "killed", "t": "timeout", "s": "survived", "u": "unreached"}
"""How a change ended, by its letter in the record; "." is one that was not tried."""


def tests_of(module: str) -> list[str]:
    """The files with the tests of a module."""
    room, name = module.removesuffix(".py").split("/")
    named = (ROOT / "tests" / room).glob(f"test_{name.lstrip('_')}*.py")
    return sorted(
        {*(f"tests/{room}/{path.name}" for path in named), *(f"tests/{x}" for x in MORE_TESTS.get(module, ()))}
    )


def mutated(modules: Sequence[str], folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, Mapping[str, str]]]:
    """Copy the package and the tests, modules with their changes; return these, and each function's hash, by module."""
    from mutmut.mutation import file_mutation, mutators

    kinds = [pair for pair in mutators.mutation_operators if pair[1] is not mutators.operator_string]
    file_mutation.mutation_operators = kinds  # type: ignore[attr-defined]
    for name in ("tests", "pyproject.toml", "docs", "experiments", "benchmarks", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    diffs, hashes = {}, {}
    for module in modules:
        path = folder / "src/rotateconv" / module
        made = file_mutation.mutate_file_contents(str(path), path.read_text("utf-8"))
        path.write_text(made.code, "utf-8")
        bodies = {}
        for node in ast.walk(ast.parse(made.code)):
            if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
                name, node.name = node.name, "f"
                bodies[name] = " ".join(ast.unparse(node).split())
        diffs[module] = {
            name: _change(bodies[f"{function_of(name)}__mutmut_orig"], bodies[name]) for name in made.mutant_names
        }
        hashes[module] = made.hash_by_function_name
    return diffs, hashes


def _change(before: str, after: str) -> str:
    """What differs, between a little of what does not."""
    old, new = (re.findall(r"\w+|\W", text) for text in (before, after))
    first = sum(1 for _ in itertools.takewhile(bool, map(operator.eq, old, new)))
    last = sum(1 for _ in itertools.takewhile(bool, map(operator.eq, old[: first - 1 : -1], new[: first - 1 : -1])))
    changed = " -> ".join("".join(words[first : len(words) - last]) for words in (old, new))
    return f"{''.join(old[:first])[-40:]}[{changed}]{''.join(old[len(old) - last :])[:20]}"


def resumed(names: Sequence[str], hashes: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """The letter of each change: that of the last time where its function is the same, else "."."""
    found: dict[str, str] = {}
    for function, own in itertools.groupby(names, key=function_of):
        changes = list(own)
        code, _, letters = before.get(function, "").partition(" ")
        same = code == hashes[function] and len(letters) == len(changes)
        found.update(zip(changes, letters if same else "." * len(changes), strict=True))
    return found


def function_of(name: str) -> str:
    """The function that a change is of, as mutmut writes it."""
    return name.rpartition("__mutmut_")[0]


class Trials:
    """A plugin of pytest that runs the collected tests once for each change, in a fork of their process."""

    def __init__(self, folder: Path, seconds: float, enough: float) -> None:
        self.folder, self.seconds, self.enough = folder, seconds, enough

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try one change after the other, and note how each ended, a line of JSON for each."""
        reached, took = self._first_run([item for item in session.items if not LARGE.search(item.nodeid)])
        while code := self._run(self._chosen(list(took), took, Counter()), "none.none", took):
            if code != 1:
                sys.exit("the tests end their process without any change, the second time")
            noticed_by = (self.folder / "noticed").read_text("utf-8")
            print(f"left out, for it fails without any change, the second time: {noticed_by}", file=sys.stderr)
            took = {item: seconds for item, seconds in took.items() if item.nodeid != noticed_by}
        tried = json.loads((self.folder / "tried.json").read_text("utf-8"))
        noticed: dict[str, Counter[str]] = defaultdict(Counter)
        ends = time.monotonic() + self.seconds
        for mutant in random.Random(0).sample(tried, len(tried)):
            if time.monotonic() > ends:
                break
            function = function_of(mutant)
            reaching = [item for item in took if function in reached[item]]
            items = self._chosen(reaching, took, noticed[function])
            code = self._run(items, mutant, took)
            if code == 1:
                noticed[function][(self.folder / "noticed").read_text("utf-8")] += 1
            letter = "u" if not items else "t" if -code in (signal.SIGPROF, signal.SIGALRM) else "k" if code else "s"
            with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps([mutant, letter]) + "\n")
        return True

    def _first_run(self, items: Sequence[pytest.Item]) -> tuple[dict[pytest.Item, set[str]], dict[pytest.Item, float]]:
        """The functions that each test reaches, and its seconds; what is imported and compiled stays."""
        from mutmut.mutation import trampoline

        cached = [
            value
            for name, module in list(sys.modules.items())
            if name.startswith(("rotateconv.kernels", "rotateconv.nn", "rotateconv.quantization"))
            for value in vars(module).values()
            if isinstance(value, functools._lru_cache_wrapper)
        ]
        reached: dict[pytest.Item, set[str]] = {}
        took = {}
        os.environ["MUTANT_UNDER_TEST"] = "stats"
        for item, following in itertools.zip_longest(items, items[1:]):
            for function in cached:  # what a test left would hide a change from the next
                function.cache_clear()
            hits: list[str] = []
            trampoline.record_trampoline_hit = lambda name, caller=None, to=hits: to.append(name)  # type: ignore
            began = time.process_time()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                print(f"left out, for it fails without any change: {item.nodeid}", file=sys.stderr)
                continue
            took[item] = time.process_time() - began
            reached[item] = set(hits)
        for function in cached:
            function.cache_clear()
        return reached, took

    def _chosen(
        self, items: Sequence[pytest.Item], took: Mapping[pytest.Item, float], noticed: Counter[str]
    ) -> list[pytest.Item]:
        """First those that noticed most, then the fastest, until their seconds are enough."""
        ordered = sorted(items, key=lambda item: (-noticed[item.nodeid], took[item]))
        until = itertools.accumulate(map(took.__getitem__, ordered))
        return [item for item, total in zip(ordered, until, strict=True) if total - took[item] < self.enough]

    def _run(self, items: Sequence[pytest.Item], mutant: str, took: Mapping[pytest.Item, float]) -> int:
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.environ["MUTANT_UNDER_TEST"] = mutant
        signal.alarm(DEADLOCK)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for item, following in itertools.zip_longest(items, items[1:]):
            signal.setitimer(signal.ITIMER_PROF, PATIENCE * (1 + took[item]))
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                (self.folder / "noticed").write_text(item.nodeid, "utf-8")
                os._exit(1)
        os._exit(0)


def serve(modules: Sequence[str], folder: Path, seconds: float, again: bool) -> None:
    """In a process of its own: try the changes."""
    os.chdir(folder)
    trials = Trials(folder, seconds, float("inf") if again else ENOUGH)
    sys.exit(
        int(
            pytest.main(
                [*OPTIONS, *sorted({file for module in modules for file in tests_of(module)})], plugins=[trials]
            )
        )
    )


def score(
    modules: Sequence[str], seconds: float, again: bool, before: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Try the changes that were not tried yet, or those that survived, and return counts and survivors by module."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        diffs, hashes = mutated(modules, folder)
        letters = {
            f"{dotted(module)}.{name}": letter
            for module in modules
            for name, letter in resumed(list(diffs[module]), hashes[module], before[module].get("results", {})).items()
        }
        if tried := [name for name, letter in letters.items() if letter in ("su" if again else ".")]:
            (folder / "tried.json").write_text(json.dumps(tried), "utf-8")
            (folder / "results.jsonl").touch()
            paths = os.pathsep.join(str(folder / name) for name in ("src", "tests"))
            command = [sys.executable, __file__, "--serve", str(folder), *modules, "--seconds", str(seconds)]
            command += ["--again"] * again
            subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, check=True)
            letters.update(map(json.loads, (folder / "results.jsonl").read_text("utf-8").splitlines()))
    return {
        module: counted(
            {name: letters[f"{dotted(module)}.{name}"] for name in diffs[module]}, hashes[module], diffs[module]
        )
        for module in modules
    }


def dotted(module: str) -> str:
    """Its name, for a file's."""
    return f"rotateconv.{module.removesuffix('.py').replace('/', '.')}"


def counted(letters: Mapping[str, str], hashes: Mapping[str, str], diffs: Mapping[str, str]) -> dict[str, Any]:
    """The record of a module."""
    counts = Counter(STATUS[letter] for letter in letters.values() if letter != ".")
    functions: dict[str, str] = defaultdict(str)
    for name, letter in letters.items():
        functions[function_of(name)] += letter
    return {
        "mutants": len(diffs),
        "run": counts.total(),
        **{status: counts[status] for status in STATUS.values()},
        "score": round((counts["killed"] + counts["timeout"]) / max(1, counts.total()), 3),
        "results": {function: f"{hashes[function]} {ended}" for function, ended in functions.items()},
        "survivors": {name: diffs[name] for name, letter in letters.items() if letter == "s"},
    }


def main(words: Sequence[str] | None = None) -> None:
    """Write the scores of modules into the file, beside those of others, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="module", help=f"of all: {', '.join(MODULES)}")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of all modules together")
    parser.add_argument("--again", action="store_true", help="only what survived")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "mutation.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if unknown := set(given.modules) - set(MODULES):
        parser.error(f"expected modules of {', '.join(MODULES)}, got {', '.join(sorted(unknown))}")
    if given.serve is not None:
        serve(given.modules, given.serve, given.seconds, given.again)
        return
    given.out = given.out.resolve()
    os.chdir(ROOT)  # mutmut looks for src/ there
    record = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {"modules": {}}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    versions = {name: version(name) for name in ("mutmut", "torch", "pytest")} | {"python": platform.python_version()}
    chosen = given.modules or MODULES
    # Another mutmut may make and number the changes in another way.
    known = {name: old for name, old in record["modules"].items() if old["versions"]["mutmut"] == versions["mutmut"]}
    found = score(chosen, given.seconds, given.again, {module: known.get(module, {}) for module in chosen})
    for module, one in found.items():
        print(f"{module}: {one['run']} of {one['mutants']} tried, {one['score']:.1%} noticed")
        record["modules"][module] = {"commit": commit or None, "versions": versions, **one}
    record = {"modules": dict(sorted(record["modules"].items()))}
    given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
