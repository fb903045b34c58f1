"""The score of `make mutation`, from what mutmut left in mutants/, into benchmarks/mutation.json.

    python benchmarks/mutation.py --tests "tests/kernels tests/nn" [--mutants mutants] [--out benchmarks/mutation.json]

A module is in the file if at least one of its mutants was run; those that were not are counted as such.
"""

import argparse
import json
import os
import platform
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path

# mutmut's exit codes of a mutant: 0 all tests passed, 1 and 3 one failed, 33 no test calls the function.
STATUS = {None: "not_run", 0: "survived", 1: "killed", 3: "killed", 33: "no_test", 36: "timeout"}


def summary(meta: Path) -> dict[str, object] | None:
    """The counts of one module and the names of what survived; None where nothing was run."""
    codes = json.loads(meta.read_text("utf-8"))["exit_code_by_key"]
    found = {name: STATUS.get(code, "other") for name, code in codes.items()}
    counts = Counter(found.values())
    if counts["not_run"] == len(found):
        return None
    run = len(found) - counts["not_run"]
    return {
        "mutants": len(found),
        "run": run,
        **{status: counts[status] for status in ("killed", "timeout", "survived", "no_test", "other")},
        "score": round((counts["killed"] + counts["timeout"]) / run, 3),
        "survivors": sorted(name.rpartition(".")[2] for name, status in found.items() if status == "survived"),
    }


def main() -> None:
    """Write the file and print a line per module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=Path, default=Path("mutants"))
    parser.add_argument("--tests", required=True, help="the tests that the mutants were run against")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/mutation.json"))
    given = parser.parse_args()
    source = given.mutants / "src" / "rotateconv"
    modules = {}
    for meta in sorted(source.rglob("*.py.meta")):
        if (found := summary(meta)) is not None:
            modules[meta.relative_to(source).as_posix().removesuffix(".meta")] = found
            print(f"{meta.name}: {found['killed']} of {found['run']} killed, {found['mutants']} in all")
    if not modules:
        parser.error(f"no mutant in {given.mutants} was run: run mutmut first")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    versions = {name: version(name) for name in ("mutmut", "torch", "pytest")}
    record = {
        "commit": commit or None,
        "tests": given.tests,
        "versions": versions | {"python": platform.python_version()},
        "cores": os.cpu_count(),
        "modules": modules,
    }
    given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
