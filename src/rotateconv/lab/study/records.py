"""The record of a study: what its runs found, from run folders, or as a few lines of JSON that can be committed.

The file `records.jsonl` has one line with what all runs share, and then one per run with the rest.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rotateconv.errors import RunError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.study.angles import analysis_from_json
from rotateconv.lab.study.comparison import Entry, read_rows
from rotateconv.lab.study.conversions import ConversionRecord, conversion_from_json
from rotateconv.lab.study.run_record import PLACES, SHARED_KEYS, Curves, RunRecord, short
from rotateconv.lab.study.sizes import SizesTable
from rotateconv.lab.train.run_folder import (
    ANALYSIS,
    CONVERSION,
    SUMMARY,
    disk_errors,
    read_config,
    read_environment,
    read_json,
    read_json_list,
    read_records,
    read_summary,
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

_SOURCES = ("source", "teacher")


def find_studies(paths: Iterable[str | Path]) -> dict[str, list[RunRecord]]:
    """Return the runs of every study, by its name; a study that nobody ran has none.

    Args:
        paths: Each one a run folder, the folder of a comparison, or a folder in which, at any depth, studies lie:
            folders with a study.toml, a records.jsonl or both.

    Returns:
        Finished runs in the order of their names. A study is called as its folder, run folders together "runs".

    Raises:
        RunError: Nothing of the kind, two studies of one name, or a damaged file.
    """
    studies: dict[str, list[RunRecord]] = {}

    def add(name: str, runs: list[RunRecord]) -> None:
        if name in studies:
            raise RunError(f"two studies are called {name}: report them apart, or give the folder that holds both")
        studies[name] = runs

    alone: list[RunRecord] = []
    for path in map(Path, paths):
        if (path / "config.json").is_file():
            if not (path / SUMMARY).is_file():
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


def find_sizes(paths: Iterable[str | Path]) -> dict[str, SizesTable]:
    """Return every `sizes.json` in the folder of a comparison or a study, by the name of that folder.

    Args:
        paths: As for `find_studies`.

    Raises:
        RunError: A file is damaged.
    """
    found: dict[str, SizesTable] = {}
    for path in map(Path, paths):
        for file in [path / SIZES] if (path / "runs").is_dir() else sorted(path.rglob(SIZES)):
            if file.is_file():
                found[_name(file.parent, path)] = SizesTable.from_json(read_json_list(file), file)
    return found


def find_conversions(paths: Iterable[str | Path]) -> dict[str, list[ConversionRecord]]:
    """Return what `rotateconv convert` found, by the study that keeps it; of run folders together "runs".

    Args:
        paths: Run folders, those without a conversion being passed over, and folders with studies in them.

    Raises:
        RunError: A file is damaged.
    """
    found: dict[str, list[ConversionRecord]] = {}
    for path in map(Path, paths):
        if (path / CONVERSION).is_file():
            record = conversion_from_json(read_json(path / CONVERSION), path / CONVERSION)
            found.setdefault("runs", []).append(dataclasses.replace(record, source=Path(record.source).name))
        elif not (path / "config.json").is_file():
            for file in sorted(path.rglob(CONVERSIONS)):
                records = [conversion_from_json(value, file) for value in read_json_list(file)]
                found[_name(file.parent, path)] = records
    return found


def read_run(folder: Path, failed: str | None = None) -> RunRecord:
    """Return what a run found.

    Args:
        folder: Of the run.
        failed: Why it has no result; None for a finished run.

    Raises:
        RunError: A file is missing or damaged.
    """
    config = read_config(folder, trusting=True)
    defaults = RunConfig()
    changes: dict[str, Any] = {key: getattr(defaults, key) for key in PLACES}
    changes |= {key: Path(source).name for key in _SOURCES if (source := getattr(config, key)) is not None}
    path = folder / ANALYSIS
    analysis = analysis_from_json(short(read_json(path)), path) if path.is_file() else None
    return RunRecord(
        name=folder.resolve().name,
        config=dataclasses.replace(config, **changes),
        environment=read_environment(folder).of_no_call(),
        data=DataDescription.from_record(read_json(folder / "data.json")),
        summary=dataclasses.replace(read_summary(folder), test_confusion=None) if failed is None else None,
        curves=Curves.of(read_records(folder), layers=analysis is not None),
        failed=failed,
        analysis=analysis,
    )


def read_comparison(folder: Path) -> list[RunRecord]:
    """Return the finished runs of a comparison's folder, and those that `comparison.json` says diverged."""
    rows = read_rows(folder / "comparison.json") if (folder / "comparison.json").is_file() else []
    runs = [read_run(path.parent) for path in sorted((folder / "runs").glob(f"*/{SUMMARY}"))]
    equal_to: dict[str, str | None] = {}
    for row in rows:
        entry = Entry(RunConfig(model=row["model"], conv=row["conv"], width=row["width"]), row["equal_to"])
        for seed, why in row["failed"].items():
            # After the semicolon stands where the checkpoints are.
            runs.append(read_run(folder / "runs" / entry.run(int(seed)), failed=why.partition(";")[0]))
        equal_to |= {entry.run(int(seed)): row["equal_to"] for seed in (*row["seeds"], *row["failed"])}
    return [dataclasses.replace(run, equal_to=equal_to.get(run.name)) for run in runs]


def read_study(folder: Path) -> list[RunRecord]:
    """Return the runs of a study's record, none where nobody ran it.

    Raises:
        RunError: A line is damaged or of another format.
    """
    return _read(folder / RECORDS)


def add_runs(runs: Sequence[RunRecord], path: Path) -> list[RunRecord]:
    """Return the runs of a record with more of them, in the order of their names: seeds that came from elsewhere.

    Args:
        runs: More of them; one replaces the run of its name.
        path: The record's file; one that is not there has no run.

    Raises:
        RunError: A line is damaged or of another format, or two of `runs` have one name.
    """
    new = {run.name: run for run in runs}
    if len(new) < len(runs):
        twice = next(run.name for run in runs if run is not new[run.name])
        raise RunError(f"two of the runs are called {twice}: a record has each once, so leave one out")
    merged = {run.name: run for run in _read(path)} | new
    return [merged[name] for name in sorted(merged)]


def _read(path: Path) -> list[RunRecord]:
    if not path.is_file():
        return []
    try:
        shared, *runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        runs = [{**run, **{key: {**shared[key], **run[key]} for key in SHARED_KEYS}} for run in runs]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is no record of runs: write it again with rotateconv report --records") from None
    return [RunRecord.from_json(run, path) for run in runs]


def write_study(runs: Sequence[RunRecord], path: Path) -> None:
    """Write the record of a study, whole or not at all; `read_study` gives the same runs back.

    Raises:
        RunError: No run, or a disk that takes nothing.
    """
    if not runs:
        raise RunError(f"expected a finished run to write into {path}, found none")
    values = [run.to_json() for run in runs]
    shared = {key: _common([value[key] for value in values]) for key in SHARED_KEYS}
    lines = [shared]
    for value in values:
        own = {key: {k: v for k, v in value[key].items() if k not in shared[key]} for key in SHARED_KEYS}
        lines.append({**value, **own})
    text = "".join(
        json.dumps(line, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines
    )
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())


def _name(folder: Path, path: Path) -> str:
    """Return what a study is called: its folder, below the path that was given."""
    return folder.relative_to(path).as_posix() if folder != path else path.resolve().name


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the items that all of the mappings have."""
    first, *rest = values
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in rest)}
