"""Accuracy against bytes: finished runs, each packed with several numbers of bits, and the dense ones beside them."""

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rotateconv.config import RunConfig, net_name
from rotateconv.conv import RotateConv2d
from rotateconv.data.sets import ImageData
from rotateconv.quantize import quantize
from rotateconv.trained import DataDescription, calibration_batches, evaluate_split, load_run, pack_net

FLOAT = 32
BITS = (FLOAT, 8, 6, 4, 3, 2)
"""Of a weight, where nobody says others; 32 is the net as trained, in float32."""
_ANGLE_BITS = {8: 8, 7: 7, 6: 6, 5: 6, 4: 5, 3: 5, 2: 4}
"""Of an angle beside so many of a weight; 4 and 5 are what `pack` takes by itself."""


@dataclass(frozen=True)
class SizeRow:
    """A net at so many bits.

    Args:
        label: of the net.
        dense: whether it has no lines.
        bits: of a weight; 32 is float32.
        qat: whether it was trained with rounded numbers.
        bytes: of the file, mean over the runs.
        accuracies: on the test split in percent, one a run.
        above_dense: points above the dense nets at the same bytes; None for a dense net, or where there is none.
    """

    label: str
    dense: bool
    bits: int
    qat: bool
    bytes: float
    accuracies: tuple[float, ...]
    above_dense: float | None = None

    @property
    def accuracy(self) -> float:
        """The mean."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """The standard deviation, of two runs or more."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def measure_sizes(
    runs: Sequence[str | Path],
    data: ImageData,
    bits: Sequence[int] = BITS,
    on_row: Callable[[int, int], None] | None = None,
) -> list[SizeRow]:
    """Evaluate finished runs at several bits; runs that differ in the seed alone make one row.

    The norms of a net rounded after its training measure their statistics again, as with `pack --calibrate`. A run
    that was trained with rounded numbers has its own bits alone, and its statistics.

    Args:
        runs: their folders.
        data: the images that they were trained on; the test split is evaluated.
        bits: of a weight, each 32 or from 2 to 8.
        on_row: called as on_row(done, total) after every evaluation.

    Raises:
        RunError: a folder that is no finished run.
        ValueError: a run of other data, or bits out of range.
    """
    description = DataDescription.of(data)
    loaded = [load_run(run) for run in runs]
    for run, trained in zip(runs, loaded, strict=True):
        if (trained.data.name, trained.data.classes) != (description.name, description.classes):
            raise ValueError(
                f"{run} was trained on {trained.data.name}, not on {description.name}: compare nets of one data set"
            )
    jobs = [(trained, width) for trained in loaded for width in _bits_of(trained.config, bits)]
    found: dict[tuple[str, bool, int, bool], list[tuple[int, float]]] = {}
    for done, (trained, width) in enumerate(jobs, start=1):
        dense = not any(isinstance(module, RotateConv2d) for module in trained.model.modules())
        size, accuracy = _measure(trained.model, trained.config, description, data, width)
        found.setdefault((_label(trained.config), dense, width, trained.config.qat), []).append((size, accuracy))
        if on_row is not None:
            on_row(done, len(jobs))
    rows = [
        SizeRow(*key, statistics.fmean(size for size, _ in pairs), tuple(accuracy for _, accuracy in pairs))
        for key, pairs in found.items()
    ]
    return with_differences(rows)


def with_differences(rows: Sequence[SizeRow]) -> list[SizeRow]:
    """Return the rows, the nets with lines compared with the dense ones at the same bytes."""
    frontier = pareto([row for row in rows if row.dense])
    return [
        row if row.dense else SizeRow(**{**vars(row), "above_dense": _above(row, frontier)})
        for row in sorted(rows, key=lambda row: (not row.dense, row.label, -row.bytes))
    ]


def pareto(rows: Sequence[SizeRow]) -> list[SizeRow]:
    """Return the rows that no smaller one equals in accuracy, the smallest first."""
    best: list[SizeRow] = []
    for row in sorted(rows, key=lambda row: (row.bytes, -row.accuracy)):
        if not best or row.accuracy > best[-1].accuracy:
            best.append(row)
    return best


def _above(row: SizeRow, frontier: Sequence[SizeRow]) -> float | None:
    """Points above the line through the frontier; above its largest net the line goes on level."""
    smaller = [other for other in frontier if other.bytes <= row.bytes]
    larger = [other for other in frontier if other.bytes > row.bytes]
    if not smaller:
        return None
    low = smaller[-1]
    if not larger:
        return row.accuracy - low.accuracy
    share = math.log(row.bytes / low.bytes) / math.log(larger[0].bytes / low.bytes)
    return row.accuracy - (low.accuracy + share * (larger[0].accuracy - low.accuracy))


def _bits_of(config: RunConfig, bits: Sequence[int]) -> Sequence[int]:
    for width in bits:
        if width != FLOAT and width not in _ANGLE_BITS:
            raise ValueError(f"bits of a weight must be {FLOAT} or from 2 to 8, not {width}")
    return [config.weight_bits] if config.qat else bits


def _measure(
    model: nn.Module, config: RunConfig, data: DataDescription, images: ImageData, width: int
) -> tuple[int, float]:
    """Return the bytes and the accuracy of a net at so many bits."""
    if width == FLOAT:
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        return size, evaluate_split(model, config, data, images.test).accuracy
    angle, dense = (config.angle_bits, config.dense_bits) if config.qat else (_ANGLE_BITS[width], 8)
    batches = None if config.qat else calibration_batches(model, config, data, images.train)
    rounded = quantize(model, width, angle, dense_bits=dense, calibration=batches).cpu()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.rotateconv")
        pack_net(rounded, data, file, weight_bits=width, angle_bits=angle, dense_bits=dense)
        size = file.stat().st_size
    return size, evaluate_split(rounded, config, data, images.test).accuracy


def _label(config: RunConfig) -> str:
    """What rows are told apart by: the net, and whether it was converted."""
    plain = RunConfig(
        model=config.model,
        conv=config.conv,
        width=config.width,
        factory=config.factory,
        lines=config.lines,
    )
    return net_name(plain)
