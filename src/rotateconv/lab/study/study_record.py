"""The record of a study: what its runs found, from run folders, or as a few lines of JSON that can be committed.

The file `records.jsonl` has one line with what all runs share, and then one per run with the rest.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rotateconv._files import JSON_BYTES, parse_json, read_regular
from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.files import make_folder, read_json, read_json_list, write_bytes
from rotateconv.lab.keys import read_toml
from rotateconv.lab.naming import run_name
from rotateconv.lab.plain import Plain, from_json
from rotateconv.lab.study.angles import analysis_from_json
from rotateconv.lab.study.convert_record import ConversionRecord, conversion_from_json
from rotateconv.lab.study.plan import contrasts_from
from rotateconv.lab.study.run_record import PLACES, SHARED_KEYS, Curves, RunRecord, short
from rotateconv.lab.study.sizes import SizesTable
from rotateconv.lab.train.run_folder import (
    ANALYSIS,
    CONVERSION,
    SUMMARY,
    is_run,
    read_config,
    read_description,
    read_environment,
    read_records,
    read_summary,
)

RECORDS = "records.jsonl"
"""Name of a study's record."""
STUDY = "study.toml"
"""Name of a study's configuration, which `rotateconv compare --config` reads."""
SIZES = "sizes.json"
"""Name of a comparison's record of accuracy against bytes, which `compare --sizes` writes; a study may keep it."""
CONVERSIONS = "conversions.json"
"""Name of the record of conversions that a study may keep."""

FILES = "files.json"
"""Name of the record of the bytes of the files that were written of a study's runs, by their names."""

_SOURCES = ("source", "teacher")


@dataclass(frozen=True)
class FileBytes(Plain):
    """What was measured of the files of a run.

    Attributes:
        packed: Bytes of the packed file.
        compact: Of the compact ONNX file, None where none was written.
        slice_entropy: Of the codes of a kernel slice together, its weights and its angle, in bits; None where there are
            too many different slices to know.
    """

    packed: int
    compact: int | None = None
    slice_entropy: float | None = None


@dataclass(frozen=True)
class StudyRecord:
    """What a study found.

    Attributes:
        runs: With and without a result; none where nobody ran it.
        contrasts: As `Study.contrasts`.
        sizes: Accuracy against bytes, or None.
        conversions: What `rotateconv convert` found.
        files: Bytes of files, by the run's name.
    """

    runs: tuple[RunRecord, ...] = ()
    contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: SizesTable | None = None
    conversions: tuple[ConversionRecord, ...] = ()
    files: Mapping[str, FileBytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparisonRow(Plain):
    """What comparison.json says of a configuration.

    Attributes:
        model, conv, width, recipe, epochs: Of its configuration.
        equal_to: The convolution whose size a narrowed dense model has, or None.
        label: What its layers are called.
        dataset: That it was trained on.
        parameters, multiply_adds: Of the model; None where no run has a result.
        accuracy_mean, accuracy_std, n, accuracies: On the test split in percent, of the finished runs.
        seeds: Of the finished runs.
        validation_accuracies: Theirs; None where the validation images were trained on.
        difference, difference_interval, p_value: Against the dense model, by Welch's test; None without one.
        seconds_per_epoch: The median.
        runs: Folders of the finished runs, below that of the comparison.
        failed: Why a run has no result, by its seed.
        machines, versions: That the runs were made with.
        controls: Of `Study.contrasts`.
        names: Of the folders of all runs, by their seeds.
    """

    model: str
    conv: str
    width: float
    equal_to: str | None
    label: str = ""
    dataset: str = ""
    recipe: str = ""
    epochs: int = 0
    parameters: int | None = None
    multiply_adds: int | None = None
    accuracy_mean: float | None = None
    accuracy_std: float | None = None
    n: int = 0
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...] = ()
    validation_accuracies: tuple[float | None, ...] = ()
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p_value: float | None = None
    seconds_per_epoch: float | None = None
    runs: tuple[str, ...] = ()
    failed: dict[int, str]
    machines: tuple[str, ...] = ()
    versions: dict[str, str | None] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    names: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object, where: str | Path) -> "ComparisonRow":
        """Return a row of comparison.json, as any version wrote it; RunError for anything else."""
        known = {one.name for one in dataclasses.fields(cls)}
        own = {key: found for key, found in value.items() if key in known} if isinstance(value, Mapping) else value
        row = from_json(cls, own, where)
        if row.names:
            return row
        try:
            config = RunConfig(model=row.model, conv=row.conv, width=row.width)
            names = {seed: run_name(dataclasses.replace(config, seed=seed)) for seed in (*row.seeds, *row.failed)}
        except ConfigError as error:
            raise RunError(f"{where}: {error}: compare again") from None
        return dataclasses.replace(row, names=names)


def find_studies(paths: Iterable[str | Path]) -> dict[str, StudyRecord]:
    """Return every study by its name.

    Args:
        paths: Each one a run folder, the folder of a comparison, the file of a study's runs, or a folder in which, at
            any depth, studies lie: folders with a study.toml, a records.jsonl or both.

    Returns:
        Finished runs in the order of their names. A study is called as its folder or file, run folders together "runs".

    Raises:
        RunError: Nothing of the kind, two studies of one name, or a damaged file.
    """
    studies: dict[str, StudyRecord] = {}

    def add(name: str, study: StudyRecord) -> None:
        if name in studies:
            raise RunError(f"two studies are called {name}: report them apart, or give the folder that holds both")
        studies[name] = study

    alone: list[Path] = []
    for path in map(Path, paths):
        if is_run(path):
            if not (path / SUMMARY).is_file():
                raise RunError(f"the run in {path} is not finished: resume it, or leave it out")
            alone.append(path)
        elif path.is_file():
            add(path.stem, StudyRecord(tuple(_read(path))))
        elif (path / "runs").is_dir():
            add(path.resolve().name, read_comparison(path))
        else:
            folders = sorted({file.parent for name in (STUDY, RECORDS) for file in path.rglob(name)})
            if not folders:
                raise RunError(
                    f"{path} is no run, no comparison and has no study in it: no config.json, runs/, {STUDY}, {RECORDS}"
                )
            for folder in folders:
                add(folder.relative_to(path).as_posix() if folder != path else path.resolve().name, read_study(folder))
    if alone:
        found = [conversion for path in alone if (conversion := _conversion(path)) is not None]
        add("runs", StudyRecord(tuple(map(read_run, alone)), conversions=tuple(found)))
    return studies


def read_study(folder: Path) -> StudyRecord:
    """Return what is recorded of a study; RunError or ConfigError where a file is damaged."""
    files = read_json(folder / FILES) if (folder / FILES).is_file() else {}
    return StudyRecord(
        tuple(_read(folder / RECORDS)),
        contrasts_from(read_toml(folder / STUDY).get("contrasts", {})) if (folder / STUDY).is_file() else {},
        read_sizes(folder),
        read_conversions(folder),
        {name: from_json(FileBytes, value, folder / FILES) for name, value in files.items()},
    )


def read_sizes(folder: Path) -> SizesTable | None:
    """Return accuracy against bytes as a folder keeps it, or None; RunError where the file is damaged."""
    file = folder / SIZES
    return SizesTable.from_json(read_json_list(file), file) if file.is_file() else None


def read_conversions(folder: Path) -> tuple[ConversionRecord, ...]:
    """Return the conversions that a folder keeps; RunError where the file is damaged."""
    file = folder / CONVERSIONS
    return tuple(conversion_from_json(value, file) for value in (read_json_list(file) if file.is_file() else ()))


def read_comparison(folder: Path) -> StudyRecord:
    """Return the finished runs of a comparison's folder, and those that `comparison.json` says have no result."""
    file = folder / "comparison.json"
    runs = [read_run(path.parent) for path in sorted((folder / "runs").glob(f"*/{SUMMARY}"))]
    rows = [ComparisonRow.from_json(row, file) for row in (read_json_list(file) if file.is_file() else ())]
    for row in rows:
        # After the semicolon stands where the checkpoints are.
        runs += [
            read_run(folder / "runs" / row.names[seed], failed=why.partition(";")[0])
            for seed, why in row.failed.items()
        ]
    equal_to = {name: row.equal_to for row in rows for name in row.names.values()}
    controls = {row.conv: row.controls for row in rows if row.equal_to is None and row.controls}
    found = tuple(dataclasses.replace(run, equal_to=equal_to.get(run.name)) for run in runs)
    return StudyRecord(found, controls, read_sizes(folder))


def read_run(folder: Path, failed: str | None = None) -> RunRecord:
    """Return what a run found, or why it failed; RunError where a file is missing or damaged."""
    path = folder / ANALYSIS
    analysis = analysis_from_json(short(read_json(path)), path) if path.is_file() else None
    return RunRecord(
        name=folder.resolve().name,
        config=portable(read_config(folder, trusting=True)),
        environment=read_environment(folder).of_no_call(),
        data=read_description(folder),
        summary=dataclasses.replace(read_summary(folder), test_confusion=None) if failed is None else None,
        curves=Curves.of(read_records(folder), layers=analysis is not None),
        failed=failed,
        analysis=analysis,
    )


def portable(config: RunConfig) -> RunConfig:
    """Return a configuration without what says where files lie, and models to start from by their names alone."""
    defaults = RunConfig()
    changes: dict[str, Any] = {key: getattr(defaults, key) for key in PLACES}
    changes |= {key: Path(source).name for key in _SOURCES if (source := getattr(config, key)) is not None}
    return dataclasses.replace(config, **changes)


def add_runs(runs: Sequence[RunRecord], path: Path) -> list[RunRecord]:
    """Return the runs of a record with more of them, in the order of their names: seeds that came from elsewhere.

    A run takes the place of the one of its name. RunError where the file, which need not be there, is damaged, or where
    two of `runs` have one name.
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
        shared, *runs = [parse_json(line) for line in read_regular(path, JSON_BYTES).splitlines()]
        runs = [{**run, **{key: {**shared[key], **run[key]} for key in SHARED_KEYS}} for run in runs]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is no record of runs: write it again with rotateconv record") from None
    return [RunRecord.from_json(run, path) for run in runs]


def write_study(runs: Sequence[RunRecord], path: Path) -> None:
    """Write the record of a study, whole or not at all, for `read_study`; RunError without a run."""
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
    make_folder(path.parent)
    write_bytes(path, text.encode())


def _conversion(run: Path) -> ConversionRecord | None:
    """Return what a run's conversion found, its source by name alone."""
    if not (run / CONVERSION).is_file():
        return None
    found = conversion_from_json(read_json(run / CONVERSION), run / CONVERSION)
    return dataclasses.replace(found, source=Path(found.source).name)


def _common(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the items that all of the mappings have."""
    first, *rest = values
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in rest)}
