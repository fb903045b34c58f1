"""What the bench found: bench.json, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rotateconv.errors import RunError
from rotateconv.lab.bench.cases import Kind, Mode, Precision
from rotateconv.lab.plain import Plain, from_json
from rotateconv.lab.train.environment import Environment

SCHEMA = 1
_RENAMED = {"net": "model", "fused net": "fused model"}  # kinds in older records


@dataclass(frozen=True)
class CaseRow(Plain):
    """A case without its forms; see `Case`."""

    name: str
    kind: Kind
    mode: Mode
    batch: int
    dtype: Precision
    compiled: bool
    model: str
    channels: int
    size: int
    kernel_size: int
    stride: int

    @property
    def how(self) -> str:
        """How it is timed."""
        return f"{self.mode}, {self.dtype}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class Row(CaseRow):
    """A form of a case, timed.

    Attributes:
        form, baseline: Names of the form, and of the first one of the case.
        seconds, seconds_low, seconds_high: Median and quartiles over so many `rounds`.
        ratio, ratio_low, ratio_high: The same of its time over the baseline's.
        multiply_adds: None where they cannot be counted.
        share_of_matrix_rate: Of what the machine does of them in a matrix product.
        peak_bytes, peak_ratio: Largest memory of its tensors, and that over the baseline's.
    """

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


@dataclass(frozen=True)
class LostRow(CaseRow):
    """A case that was not timed, and why."""

    error: str
    form: None = None
    baseline: None = None


@dataclass(frozen=True)
class TargetRow(CaseRow):
    """A target, and what was measured of it: None where nothing was."""

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
    """Where and when it was measured, and how busy the machine was in the minutes before."""

    device: str
    time: str
    load_average: tuple[float, float, float] | None


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
    """Return the record in a bench.json.

    Raises:
        RunError: It is something else.
    """
    if not (isinstance(value, Mapping) and value.get("schema") == SCHEMA):
        raise RunError(f"{where} is no record of this version's bench: run it again with --out")
    renamed = {
        key: [{**row, "kind": _RENAMED.get(row.get("kind"), row.get("kind"))} for row in value.get(key, ())]
        for key in ("rows", "targets")
    }
    return from_json(BenchRecord, {**value, **renamed}, where)
