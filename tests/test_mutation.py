"""Laws of `make mutation`: what it knows of a function holds until that is changed, and nothing is tried twice."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "benchmarks" / "mutation.py"))
NAMES = ["x_f__mutmut_1", "x_f__mutmut_2", "xǁLineǁf__mutmut_1"]


@pytest.mark.parametrize("module", TOOL["MODULES"])
def test_every_module_has_tests(module: str) -> None:
    files = TOOL["tests_of"](module)
    assert files
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize(
    ("before", "letters"),
    [
        ({}, "..."),
        ({"x_f": "a ks", "xǁLineǁf": "b t"}, "kst"),
        ({"x_f": "a ks", "xǁLineǁf": "other t"}, "ks."),
        ({"x_f": "a k", "gone": "c k"}, "..."),
    ],
)
def test_what_is_known_of_the_same_function_is_kept(before: dict[str, str], letters: str) -> None:
    found = TOOL["resumed"](NAMES, {"x_f": "a", "xǁLineǁf": "b"}, before)
    assert found == dict(zip(NAMES, letters, strict=True))


@pytest.mark.slow
def test_tries_what_was_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutmut = pytest.importorskip("mutmut")
    monkeypatch.chdir(ROOT)
    module, folder, out = "nn/_kernel_cache.py", tmp_path / "copy", tmp_path / "record.json"
    folder.mkdir()
    diffs, hashes = (of[module] for of in TOOL["mutated"]([module], folder))
    counts = Counter(map(TOOL["function_of"], diffs))
    known = {function: f"{hashes[function]} {'k' * count}" for function, count in counts.items()}
    # `open_batches.append(None)`, which a batch notices when it is closed.
    function = "xǁKernelBatchǁ__init__"
    before = known | {function: known[function][:-1] + "."}
    record = {"modules": {module: {"versions": {"mutmut": mutmut.__version__}, "results": before}}}
    out.write_text(json.dumps(record), "utf-8")
    TOOL["main"]([module, "--out", str(out)])
    found = json.loads(out.read_text("utf-8"))["modules"][module]
    assert found["results"] == known
    assert (found["run"], found["killed"], found["score"]) == (len(diffs), len(diffs), 1.0)
