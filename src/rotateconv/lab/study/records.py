"""The record of a study: what its runs found, from run folders, or as a few lines of JSON that can be committed.

A run is a plain dict here:

    run           name of its folder
    config        the configuration, without what says where files lie
    environment   versions, processor, cores, threads, GPU, commit
    data          description of the images
    summary       what the run found in the end, without the confusion matrix; None where it has no result
    metrics       {quantity: its values, one an epoch}
    equal_to      the convolution that a narrowed dense net is as large as, or None
    failed        why the run has no result, or None
    analysis      what `rotateconv.lab.study.angles` found, or None

The file `records.jsonl` has one line with what all runs share, and then one a run with the rest.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rotateconv.errors import RunError
from rotateconv.lab.config import RunConfig, to_json
from rotateconv.lab.study.comparison import Entry, read_rows
from rotateconv.lab.train.environment import OF_THE_CALL
from rotateconv.lab.train.run_folder import (
    ANALYSIS,
    CONVERSION,
    Record,
    disk_errors,
    read_config,
    read_json,
    read_records,
    write_bytes,
)

RECORDS = "records.jsonl"
"""Name of a study's record."""
STUDY = "study.toml"
"""Name of a study's configuration, which `rotateconv compare --config` reads."""
SIZES = "sizes.json"
"""Name of a comparison's record of accuracy against bytes, which `compare --sizes` writes; a study may keep it."""

CONVERSIONS = "conversions.json"
"""Name of the record of conversions that a study may keep."""

METRICS = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"),
    *("angle_movement_mean", "angle_movement_max", "seconds"),
)
_LAYERS = "angle_movement_layers"  # for the picture of an analysed run: many numbers, and nothing else shows them
_SHARED = ("config", "environment", "data")
_KEYS = {"run", *_SHARED, "summary", "metrics", "equal_to", "failed", "analysis"}
_DIGITS = 6  # of metrics and analysis: more than a picture or a table shows
_PLACES = ("data_dir", "checkpoint_seconds", "checkpoint_steps")
_SOURCES = ("source", "teacher")
# The configuration, the data and the metrics say it.
_SAID_ELSEWHERE = (
    *("recipe", "model", "conv", "lines", "width", "seed", "epochs"),
    *("dataset", "data", "last", "test_confusion"),
)


def find_studies(paths: Iterable[str | Path]) -> dict[str, list[Record]]:
    """Return the runs of every study, by its name; a study that nobody ran has none.

    Args:
        paths: each one a run folder, the folder of a comparison, or a folder in which, at any depth, studies lie:
            folders with a study.toml, a records.jsonl or both.

    Returns:
        Finished runs in the order of their names. A study is called as its folder, run folders together "runs".

    Raises:
        RunError: nothing of the kind, two studies of one name, or a damaged file.
    """
    studies: dict[str, list[Record]] = {}

    def add(name: str, runs: list[Record]) -> None:
        if name in studies:
            raise RunError(f"two studies are called {name}: report them apart, or give the folder that holds both")
        studies[name] = runs

    alone: list[Record] = []
    for path in map(Path, paths):
        if (path / "config.json").is_file():
            if not (path / "summary.json").is_file():
                raise RunError(f"the run in {path} is not finished: resume it, or leave it out")
            alone.append(read_run(path))
        elif (path / "runs").is_dir():
            add(path.resolve().name, read_comparison(path))
        else:
            folders = sorted({file.parent for name in (STUDY, RECORDS) for file in path.rglob(name)})
            if not folders:
                raise RunError(
                    f"{path} is no run, no comparison and has no study in it: no config.json, runs/, {STUDY}"
                )
            for folder in folders:
                add(_name(folder, path), read_study(folder))
    if alone:
        add("runs", alone)
    return studies


def find_sizes(paths: Iterable[str | Path]) -> dict[str, list[Record]]:
    """Return the rows of every `sizes.json` in the folder of a comparison or a study, by the name of that folder.

    Args:
        paths: as for `find_studies`.

    Raises:
        RunError: a file is damaged.
    """
    found: dict[str, list[Record]] = {}
    for path in map(Path, paths):
        for file in [path / SIZES] if (path / "runs").is_dir() else sorted(path.rglob(SIZES)):
            if file.is_file():
                try:
                    found[_name(file.parent, path)] = json.loads(file.read_text(encoding="utf-8"))
                except ValueError:
                    raise RunError(f"{file} is no JSON: write it again with rotateconv compare --sizes") from None
    return found


def find_conversions(paths: Iterable[str | Path]) -> dict[str, list[Record]]:
    """Return what `rotateconv convert` found, by the study that keeps it; of run folders together "runs".

    Args:
        paths: run folders, those without a conversion being passed over, and folders with studies in them.

    Raises:
        RunError: a file is damaged.
    """
    found: dict[str, list[Record]] = {}
    for path in map(Path, paths):
        if (path / CONVERSION).is_file():
            record = read_json(path / CONVERSION)
            found.setdefault("runs", []).append({**record, "source": Path(record["source"]).name})
        elif not (path / "config.json").is_file():
            for file in sorted(path.rglob(CONVERSIONS)):
                try:
                    found[_name(file.parent, path)] = json.loads(file.read_text(encoding="utf-8"))
                except ValueError:
                    raise RunError(f"{file} is no JSON: write it again with rotateconv report --records") from None
    return found


def read_run(folder: Path, failed: str | None = None) -> Record:
    """Return what a run found; RunError where a file is missing or damaged.

    Args:
        folder: of the run.
        failed: why it has no result; None for a finished run.
    """
    config = json.loads(to_json(read_config(folder)))
    for key in _SOURCES:
        config[key] = Path(config[key]).name if config[key] is not None else None
    records, environment = read_records(folder), read_json(folder / "environment.json")
    analysed = (folder / ANALYSIS).is_file()
    metrics = (*METRICS, _LAYERS) if analysed else METRICS
    summary = read_json(folder / "summary.json") if failed is None else None
    return {
        "run": folder.resolve().name,
        "config": {key: value for key, value in config.items() if key not in _PLACES},
        # The study's file is the command; paths of a machine say nothing on another.
        "environment": {key: value for key, value in environment.items() if key not in OF_THE_CALL},
        "data": read_json(folder / "data.json"),
        "summary": summary and {key: value for key, value in summary.items() if key not in _SAID_ELSEWHERE},
        "metrics": {key: _short([record.get(key) for record in records]) for key in metrics},
        "equal_to": None,
        "failed": failed,
        "analysis": _short(read_json(folder / ANALYSIS)) if analysed else None,
    }


def read_comparison(folder: Path) -> list[Record]:
    """Return the finished runs of a comparison's folder, and those that `comparison.json` says diverged."""
    rows = read_rows(folder / "comparison.json") if (folder / "comparison.json").is_file() else []
    runs = [read_run(path.parent) for path in sorted((folder / "runs").glob("*/summary.json"))]
    equal_to: dict[str, str | None] = {}
    for row in rows:
        entry = Entry(RunConfig(model=row["model"], conv=row["conv"], width=row["width"]), row["equal_to"])
        for seed, why in row["failed"].items():
            # After the semicolon stands where the checkpoints are.
            runs.append(read_run(folder / "runs" / entry.run(int(seed)), failed=why.partition(";")[0]))
        equal_to |= {entry.run(int(seed)): row["equal_to"] for seed in (*row["seeds"], *row["failed"])}
    return [{**run, "equal_to": equal_to.get(run["run"])} for run in runs]


def read_study(folder: Path) -> list[Record]:
    """Return the runs of a study's record, none where nobody ran it.

    Raises:
        RunError: a line is damaged or of another format.
    """
    return _read(folder / RECORDS)


def add_runs(runs: Sequence[Record], path: Path) -> list[Record]:
    """Return the runs of a record with more of them, in the order of their names: seeds that came from elsewhere.

    Args:
        runs: more of them; one replaces the run of its name.
        path: the record's file; one that is not there has no run.

    Raises:
        RunError: a line is damaged or of another format, or two of `runs` have one name.
    """
    new = {run["run"]: run for run in runs}
    if len(new) < len(runs):
        twice = next(run["run"] for run in runs if run is not new[run["run"]])
        raise RunError(f"two of the runs are called {twice}: a record has each once, so leave one out")
    merged = {run["run"]: run for run in _read(path)} | new
    return [merged[name] for name in sorted(merged)]


def _read(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        shared, *runs = [json.loads(line) for line in lines]
        runs = [{**run, **{key: {**shared[key], **run[key]} for key in _SHARED}} for run in runs]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is no record of runs: write it again with rotateconv report --records") from None
    for run in runs:
        if run.keys() != _KEYS:
            raise RunError(
                f"{path} has a run with {', '.join(sorted(run))}, not {', '.join(sorted(_KEYS))}: write it again"
            )
    return runs


def write_study(runs: Sequence[Record], path: Path) -> None:
    """Write the record of a study, whole or not at all; `read_study` gives the same runs back.

    Raises:
        RunError: no run, or a disk that takes nothing.
    """
    if not runs:
        raise RunError(f"expected a finished run to write into {path}, found none")
    shared = {key: _common([run[key] for run in runs]) for key in _SHARED}
    lines = [shared]
    for run in runs:
        own = {key: {k: v for k, v in run[key].items() if k not in shared[key]} for key in _SHARED}
        lines.append({**run, **own})
    text = "".join(
        json.dumps(line, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines
    )
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def _name(folder: Path, path: Path) -> str:
    """Return what a study is called: its folder, below the path that was given."""
    return folder.relative_to(path).as_posix() if folder != path else path.resolve().name


def _common(values: Sequence[Mapping[str, Any]]) -> Record:
    """Return the items that all of the mappings have."""
    first, *rest = values
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in rest)}


def _short(value: Any) -> Any:
    """Return a JSON value with its numbers rounded to what anybody reads."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list):
        return [_short(item) for item in value]
    return {key: _short(item) for key, item in value.items()} if isinstance(value, dict) else value
