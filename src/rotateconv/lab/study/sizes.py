"""Accuracy against bytes: finished runs, each packed with several numbers of bits, and the dense ones beside them."""

import dataclasses
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rotateconv.errors import InputError, RunError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.naming import architecture_name, layers_label
from rotateconv.lab.plain import Plain, from_json
from rotateconv.lab.sample import Sample
from rotateconv.lab.train.build import rotate_layers
from rotateconv.lab.train.load import calibration_batches, evaluate_model, load_run, pack_model
from rotateconv.lab.train.weights import state_bytes
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.quantize import quantize

FLOAT = 32
BITS = (FLOAT, 8, 6, 4, 3, 2)
"""Bits of a weight, unless others are asked for; 32 is the model as trained, in float32."""
_ANGLE_BITS = {8: 8, 7: 7, 6: 6, 5: 6, 4: 5, 3: 5, 2: 4}
"""Bits of an angle beside so many of a weight; 4 and 5 are the defaults of `pack`."""


@dataclass(frozen=True)
class SizeRow(Plain):
    """A model at so many bits.

    Attributes:
        label: Of the model.
        dense: Whether its kernels are dense ones, of any size.
        bits: Of a weight; 32 is float32.
        qat: Whether its training was quantization-aware.
        bytes: Of the file, mean over the runs.
        accuracies: On the test split in percent, one per run.
        above_dense: Points above the dense models at the same bytes; None for a dense model, or where there is none.
        runs: The names of their folders, in the order of the accuracies.
    """

    label: str
    dense: bool
    bits: int
    qat: bool
    bytes: float
    accuracies: tuple[float, ...]
    above_dense: float | None = None
    runs: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, bool, int, bool]:
        """What rows are told apart by."""
        return self.label, self.dense, self.bits, self.qat

    @property
    def accuracy(self) -> Sample:
        """The accuracies together."""
        return Sample(self.accuracies)


@dataclass(frozen=True)
class SizesTable:
    """Accuracy against bytes on a data set: sizes.json."""

    dataset: str
    rows: tuple[SizeRow, ...]

    @classmethod
    def from_json(cls, value: Sequence[object], where: str | Path) -> "SizesTable":
        """Return what `to_json` described; RunError for anything else."""
        dataset, rows = "", []
        for item in value:
            if not isinstance(item, dict) or not isinstance(item.get("dataset"), str):
                raise RunError(f"{where}: expected a row with a dataset, found {item!r}: write it again")
            dataset = item["dataset"]
            own = {key: found for key, found in item.items() if key not in _DERIVED}
            own["label"] = current_label(str(own.get("label")))
            rows.append(from_json(SizeRow, own, where))
        if not rows:
            raise RunError(f"{where} has no row: write it again with rotateconv compare --sizes")
        return cls(dataset, tuple(rows))

    def to_json(self) -> list[dict[str, object]]:
        """Return it as `json.dumps` takes it, with the statistics of each row for other readers."""
        return [
            {
                **dataclasses.asdict(row),
                "dataset": self.dataset,
                "accuracy_mean": row.accuracy.mean,
                "accuracy_std": row.accuracy.std,
                "n": row.accuracy.n,
            }
            for row in self.rows
        ]

    def merged(self, more: "SizesTable") -> "SizesTable":
        """Return it with the rows of more runs, as `merge_sizes` does; RunError for another data set."""
        if more.dataset != self.dataset:
            raise RunError(f"sizes on {self.dataset} and {more.dataset} make no table: record those of one data set")
        return SizesTable(self.dataset, tuple(merge_sizes(self.rows, more.rows)))


_DERIVED = ("dataset", "accuracy_mean", "accuracy_std", "n")
_OLD_LABEL = re.compile(
    r"(?P<model>\S+:\S+|\S+(?= with ))( with (?P<conv>\S+?))?( of width (?P<width>[\d.]+))?"
    r"(, converted to (?P<taps>\w+) taps)?"
)


def current_label(label: str) -> str:
    """Return what a model is called now that version 0.1 called so.

    Example:
        >>> current_label("resnet20 with conv3x3 of width 0.5"), current_label("mine:model, converted to free taps")
        ('resnet20, conv3x3 x0.50', 'mine:model, free taps')
    """
    old = _OLD_LABEL.fullmatch(label)
    if old is None:
        return label
    width = f" x{float(old['width']):.2f}" if old["width"] else ""
    layers = f"{old['taps']} taps" if old["taps"] else f"{old['conv'] or 'as built'}{width}"
    return f"{old['model']}, {layers}"


def measure_sizes(runs: Sequence[str | Path], data: ImageData, bits: Sequence[int] = BITS) -> list[SizeRow]:
    """Evaluate finished runs at several bits; runs that differ in the seed alone make one row.

    The norms of a model that is quantized after its training are recalibrated, as with `pack --calibrate`. A run of
    quantization-aware training has its own bits alone, and its statistics.

    Raises:
        RunError: A folder that is no finished run.
        InputError: A run of other data, or bits out of range.
    """
    description = DataDescription.of(data)
    loaded = [load_run(run) for run in runs]
    for run, trained in zip(runs, loaded, strict=True):
        if (trained.data.name, trained.data.classes) != (description.name, description.classes):
            raise InputError(
                f"{run} was trained on {trained.data.name}, not on {description.name}: compare models of one data set"
            )
    names = [Path(run).resolve().name for run in runs]
    jobs = [(name, run, width) for name, run in zip(names, loaded, strict=True) for width in _bits_of(run.config, bits)]
    found: dict[tuple[str, bool, int, bool], list[SizeRow]] = {}
    for name, trained, width in jobs:
        config = trained.config
        # Neither lines nor masks, codebooks or factors.
        dense = config.conv.startswith("conv") and not rotate_layers(trained.model)
        size, accuracy = _measure(trained.model, config, description, data, width)
        key = f"{architecture_name(config)}, {layers_label(config)}", dense, width, config.qat
        found.setdefault(key, []).append(SizeRow(*key, size, (accuracy,), runs=(name,)))
    return with_differences([_joined(rows) for rows in found.values()])


def merge_sizes(rows: Sequence[SizeRow], more: Sequence[SizeRow]) -> list[SizeRow]:
    """Return the rows with those of more runs, all compared with the dense ones anew.

    A row takes the place of one whose runs it has, all of them; with new runs alone it adds them.

    Raises:
        RunError: A row has some runs of one of the same model and bits, and not all.
    """
    merged = {row.key: row for row in rows}
    for row in more:
        old = merged.get(row.key)
        if old is None or set(old.runs) <= set(row.runs):
            merged[row.key] = row
        elif common := set(old.runs) & set(row.runs):
            raise RunError(
                f"{row.label} at {row.bits} bits was measured with {', '.join(old.runs)}: measure all of them again, "
                f"not {min(common)} alone, or only new ones"
            )
        else:
            merged[row.key] = _joined([old, row])
    return with_differences(list(merged.values()))


def _joined(rows: Sequence[SizeRow]) -> SizeRow:
    """Return the row of the runs of all the rows, which are of one model and number of bits."""
    accuracies = tuple(accuracy for row in rows for accuracy in row.accuracies)
    size = sum(row.bytes * len(row.accuracies) for row in rows) / len(accuracies)
    return SizeRow(*rows[0].key, size, accuracies, runs=tuple(run for row in rows for run in row.runs))


def with_differences(rows: Sequence[SizeRow]) -> list[SizeRow]:
    """Return the rows, the RotateConv models compared with the dense ones at the same bytes."""
    frontier = pareto([row for row in rows if row.dense])
    return [
        row if row.dense else dataclasses.replace(row, above_dense=_above(row, frontier))
        for row in sorted(rows, key=lambda row: (not row.dense, row.label, -row.bytes))
    ]


def pareto(rows: Sequence[SizeRow]) -> list[SizeRow]:
    """Return the rows that no smaller one equals in accuracy, the smallest first."""
    best: list[SizeRow] = []
    for row in sorted(rows, key=lambda row: (row.bytes, -row.accuracy.mean)):
        if not best or row.accuracy.mean > best[-1].accuracy.mean:
            best.append(row)
    return best


def _above(row: SizeRow, frontier: Sequence[SizeRow]) -> float | None:
    """Points above the line through the frontier; above its largest model the line goes on level."""
    smaller = [other for other in frontier if other.bytes <= row.bytes]
    larger = [other for other in frontier if other.bytes > row.bytes]
    if not smaller:
        return None
    low = smaller[-1]
    if not larger:
        return row.accuracy.mean - low.accuracy.mean
    share = math.log(row.bytes / low.bytes) / math.log(larger[0].bytes / low.bytes)
    return row.accuracy.mean - (low.accuracy.mean + share * (larger[0].accuracy.mean - low.accuracy.mean))


def _bits_of(config: RunConfig, bits: Sequence[int]) -> Sequence[int]:
    for width in bits:
        if width != FLOAT and width not in _ANGLE_BITS:
            raise InputError(f"bits of a weight must be {FLOAT} or from 1 to 8, not {width}")
    return bits if config.bits is None else [config.bits.weight]


def _measure(
    model: nn.Module, config: RunConfig, data: DataDescription, images: ImageData, width: int
) -> tuple[int, float]:
    """Return the bytes and the accuracy of a model at so many bits."""
    if width == FLOAT:
        return state_bytes(model), evaluate_model(model, config.execution, data, images.test).accuracy
    bits = config.bits or Bits(width, _ANGLE_BITS[width])
    batches = None if config.qat else calibration_batches(model, config.execution, data, images.train)
    quantized = quantize(model, **bits.arguments, calibration=batches).cpu()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.rotateconv")
        pack_model(quantized, data, file, bits)
        size = file.stat().st_size
    return size, evaluate_model(quantized, config.execution, data, images.test).accuracy
