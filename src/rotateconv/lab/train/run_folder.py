"""The run folder: configuration, data, environment, one line per epoch, summary; files are whole or absent."""

import json
import math
import os
import shlex
from pathlib import Path
from typing import TypedDict

from rotateconv._files import JSON_BYTES, TEMPORARY, parse_json, read_regular
from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.config import RunConfig, changed_keys, from_json, to_json
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.files import disk_errors, read_json, write_bytes, write_json
from rotateconv.lab.plain import from_json as from_plain
from rotateconv.lab.plain import to_json as to_plain
from rotateconv.lab.train import trust
from rotateconv.lab.train.environment import Environment, EnvironmentHistory
from rotateconv.lab.train.lock import LOCK, OWNER
from rotateconv.lab.train.run_results import SAID_ELSEWHERE, EpochRecord, RunSummary

_LARGEST_IMAGE = 2**24  # numbers: 3 x 2,364 x 2,364

DATA = "data.json"
"""What the images were like."""
SUMMARY = "summary.json"
"""What makes a run a finished one."""

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
WEIGHTS = "model.safetensors"
"""A finished run's weights: the averaged ones if the run averaged, else the last ones."""

INITIAL = "initial.safetensors"
"""The weights that a run with a source started from: converted once, and read again by whoever asks."""

CONVERSION = "conversion.json"
"""What `rotateconv convert` adds to the folder of its run."""
CONVERSION_TABLE = "conversion.md"
"""The same for people to read."""
ANALYSIS = "analysis.json"
"""What `rotateconv analyse` adds to a run's folder."""

_FILES = (
    *("config.json", DATA, "environment.json", "metrics.jsonl", SUMMARY, WEIGHTS, INITIAL),
    *(CONVERSION, CONVERSION_TABLE, ANALYSIS, "analysis.png", "confusion.png"),
)


class HowToBegin(TypedDict):
    """Arguments of `fit` and `check_run`."""

    resume: bool
    overwrite: bool


def is_run(folder: Path) -> bool:
    """Whether a run began in the folder."""
    return (folder / "config.json").is_file()


def going_on(run: Path, overwrite: bool = False) -> HowToBegin:
    """Return how one goes on with the run in a folder, or begins it again, or begins it where there is none."""
    exists = is_run(run)
    return {"resume": exists and not overwrite, "overwrite": exists and overwrite}


def check_run(run: Path, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Raise RunError unless `run` may be created, overwritten or continued as asked; change nothing."""
    if resume and overwrite:
        raise RunError("expected one of resume and overwrite, not both: overwrite starts again from nothing")
    exists = is_run(run)
    if resume and not exists:
        raise RunError(f"there is no run to resume in {run}: no config.json; leave resume out to start one")
    if resume:
        if changed := changed_keys(read_config(run, factory=config.factory), config):
            raise RunError(
                f"the run in {run} has {changed}: resume it unchanged, start again (--overwrite) or choose another "
                "folder (--out)"
            )
    elif exists and not overwrite:
        again = f"go on with it (--resume {shlex.quote(str(run))}), start again (--overwrite)"
        raise RunError(f"{run} holds a run already: {again} or choose another folder (--out)")
    elif not exists and run.exists() and not (run.is_dir() and all(_ours(path) for path in run.iterdir())):
        raise RunError(f"{run} exists and is no run folder: choose another folder (--out)")


def create_run(run: Path, config: RunConfig, data: DataDescription) -> None:
    """Begin a run: remove what an overwritten one left, write data, environment and, last, configuration."""
    with disk_errors(run):
        for name in _FILES:
            (run / name).unlink(missing_ok=True)
        run.mkdir(parents=True, exist_ok=True)
    write_json(run / DATA, to_plain(data))
    write_json(run / "environment.json", EnvironmentHistory.of(Environment.now()).to_json())
    write_bytes(run / "config.json", to_json(config).encode())


def note_resumption(run: Path, step: int) -> None:
    """Note in environment.json where a run goes on, after so many steps, in another environment than before."""
    history = read_environment(run)
    now = history.resumed(step, Environment.now())
    if now != history:
        write_json(run / "environment.json", now.to_json())


def read_environment(run: Path) -> EnvironmentHistory:
    """Return the environments that a run went through; RunError where their file is missing or damaged."""
    path = run / "environment.json"
    return EnvironmentHistory.from_json(read_json(path), path)


def read_description(run: Path) -> DataDescription:
    """Return what a run was trained on; RunError where its file is missing or damaged."""
    found = from_plain(DataDescription, read_json(run / DATA), run / DATA)
    channels = found.input_shape[0]
    if not (
        found.classes
        and min(found.input_shape) > 0
        and math.prod(found.input_shape) <= _LARGEST_IMAGE
        and (len(found.mean), len(found.std)) == (channels, channels)
        and min(found.std) > 0
    ):
        raise RunError(f"{run / DATA} describes no images: restore the file")
    return found


def read_config(run: Path, *, factory: str | None = None, trusting: bool = False) -> RunConfig:
    """Return the configuration of a run folder, which may be anybody's.

    It may name the function that builds its model where the user has named it before, or now (`factory`), or where the
    caller only shows the configuration and never builds its model (`trusting`).

    Raises:
        RunError: there is none, or it names a function that the user never named (`rotateconv.lab.train.trust`).
        ConfigError: it is damaged.
    """
    path = run / "config.json"
    try:
        config = from_json(read_regular(path, JSON_BYTES).decode("utf-8"))
    except OSError:
        if not run.exists():
            raise RunError(f"{run} is not there: name the folder of a run") from None
        inside = sorted(run.glob("runs/*/config.json"))
        hint = f"; it is a comparison: name one of its runs, such as {inside[0].parent}" if inside else ""
        hint = "; rotateconv unpack shows what is in a packed file" if run.is_file() else hint
        raise RunError(f"{run} is no run folder: it has no readable config.json{hint}") from None
    except (ConfigError, UnicodeDecodeError) as error:
        why = error if isinstance(error, ConfigError) else "the configuration is no JSON"
        raise ConfigError(f"{path}: {why}: restore the file or write it again") from None
    if config.factory is not None and config.factory != factory and not trusting:
        trust.check(config.factory, path)
    return config


def append_record(run: Path, record: EpochRecord) -> None:
    """Add one line to metrics.jsonl and see it on the disk."""
    with disk_errors(run), (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())


def read_records(run: Path) -> list[EpochRecord]:
    """Return the lines of metrics.jsonl; a last line that a crash cut off is left out."""
    path = run / "metrics.jsonl"
    try:
        lines = read_regular(path, JSON_BYTES).split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line)
        except ValueError:
            raise RunError(f"line {number} of {path} is no JSON: remove it or restore the file") from None
        records.append(from_plain(EpochRecord, value, f"line {number} of {path}"))
    return records


def keep_records(run: Path, epochs: int) -> None:
    """Cut metrics.jsonl back to its first `epochs` lines, to go on there; RunError if there are fewer."""
    records = read_records(run)
    kept = records[:epochs]
    if [record.epoch for record in kept] != list(range(1, epochs + 1)):
        found = ", ".join(str(record.epoch) for record in kept) or "none"
        raise RunError(f"{run / 'metrics.jsonl'} must have the epochs 1 to {epochs}, not {found}: overwrite the run")
    write_bytes(run / "metrics.jsonl", "".join(map(_line, kept)).encode())


def _line(record: EpochRecord) -> str:
    return json.dumps(to_plain(record), allow_nan=False) + "\n"


def write_summary(run: Path, summary: RunSummary) -> None:
    """Write summary.json, which makes the run a finished one."""
    write_json(run / SUMMARY, to_plain(summary))


def read_summary(run: Path) -> RunSummary:
    """Return what a finished run found; RunError where summary.json is missing or damaged."""
    found = {key: value for key, value in read_json(run / SUMMARY).items() if key not in SAID_ELSEWHERE}
    return from_plain(RunSummary, found, run / SUMMARY)


def _ours(path: Path) -> bool:
    """Whether a creation that was cut off can have left this file."""
    return path.name in (*_FILES, LOCK, OWNER) or (path.name.startswith(".") and TEMPORARY in path.suffixes)
