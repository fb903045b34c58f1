"""What the bench found: bench.json, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from rotateconv.errors import RunError
from rotateconv.lab.bench.cases import Case
from rotateconv.lab.plain import Plain, from_json
from rotateconv.lab.train.environment import Environment

SCHEMA = 1
_RENAMED = {"net": "model", "fused net": "fused model"}  # kinds in records of before 0.1.0, whose rows hold their case
_KEYS = {field.name for field in fields(Case)}


@dataclass(frozen=True)
class Row(Plain):
    """A form of a case, timed.

    Attributes:
        form, baseline: Names of the form, and of the first one of the case.
        seconds, seconds_low, seconds_high: Median and quartiles over so many `rounds`.
        ratio, ratio_low, ratio_high: The same of its time over the baseline's.
        multiply_adds: None where they cannot be counted.
        share_of_matrix_rate: Of what the machine does of them in a matrix product.
        peak_bytes, peak_ratio: Largest memory of its tensors, and that over the baseline's.
    """

    case: Case
    form: str
    baseline: str
    seconds: float
    seconds_low: float
    seconds_high: float
    rounds: int
    ratio: float
    ratio_low: float
    ratio_high: float
    multiply_adds: int | None
    share_of_matrix_rate: float | None
    peak_bytes: int
    peak_ratio: float

    def __str__(self) -> str:
        text = f"{self.form:<20} {1e3 * self.seconds:10.3f} ms"
        if self.form == self.baseline:
            return text
        return f"{text}   {self.ratio:6.2f} of {self.baseline} ({self.ratio_low:.2f} to {self.ratio_high:.2f})"


@dataclass(frozen=True)
class LostRow(Plain):
    """A case that was not timed, and why."""

    case: Case
    error: str

    def __str__(self) -> str:
        return self.error


@dataclass(frozen=True)
class TargetRow(Plain):
    """A target, and what was measured of it: None where nothing was."""

    case: Case
    form: str
    baseline: str
    quantity: str
    wanted: str
    value: float | None
    low: float | None
    high: float | None
    reached: bool | None


@dataclass(frozen=True, kw_only=True)
class Conditions(Environment):
    """Where and when it was measured, and how busy the machine was in the minutes before.

    Attributes:
        kernels: How they were made on a CPU; older records do not say.
    """

    device: str
    time: str
    load_average: tuple[float, float, float] | None
    kernels: str | None = None


@dataclass(frozen=True)
class BenchRecord(Plain):
    """A run of the bench; `matrix_rate` is in multiply-adds per second, by dtype."""

    schema: int
    environment: Conditions
    matrix_rate: dict[str, float]
    rows: tuple[Row | LostRow, ...]
    targets: tuple[TargetRow, ...]

    @property
    def timed(self) -> list[Row]:
        """The rows that hold times."""
        return [row for row in self.rows if isinstance(row, Row)]


def record_from_json(value: object, where: str | Path) -> BenchRecord:
    """Return the record in a bench.json; RunError for anything else."""
    if not (isinstance(value, Mapping) and value.get("schema") == SCHEMA):
        raise RunError(f"{where} is no record of this version's bench: run it again with --out")
    rows = {key: [_with_case(row) for row in value.get(key, ())] for key in ("rows", "targets")}
    return from_json(BenchRecord, {**value, **rows}, where)


def _with_case(row: Mapping[str, object]) -> Mapping[str, object]:
    if "case" in row:
        return row
    case = {key: _RENAMED.get(str(value), value) for key, value in row.items() if key in _KEYS}
    dropped = {"name", *_KEYS, *(("form", "baseline") if "error" in row else ())}
    return {"case": {**case, "forms": []}, **{key: value for key, value in row.items() if key not in dropped}}
