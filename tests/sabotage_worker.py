"""What `test_sabotage` runs in a process of its own: pytest, once for every copy of the package it is given.

Importing torch takes longer than the tests, so it is imported once, and every run starts from a fork of that.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import hypothesis  # noqa: F401  # before the fork, like torch
import numpy as np  # noqa: F401
import pytest
import torch

OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def main(jobs: dict[str, tuple[str, list[str]]], results: Path) -> None:
    """Write the exit code of pytest for every job: the folder that holds its copy of the package, and its tests."""
    torch.set_num_threads(1)
    codes = {}
    for name, (folder, tests) in jobs.items():
        child = os.fork()
        if child == 0:
            code = 99  # not one of pytest's: the copy is not what would be tested
            try:
                sys.path.insert(0, folder)
                if str(importlib.import_module("rotateconv").__file__).startswith(folder):
                    code = pytest.main([*OPTIONS, *tests])
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    results.write_text(json.dumps(codes), "utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
