"""Tables of a study: accuracies, settings, who is ahead of whom, angles, bytes, conversions."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rotateconv.lab.report.statistics import Contrast, Group, contrast, contrasts, dense_of
from rotateconv.lab.sample import Sample
from rotateconv.lab.study.convert_record import ConversionRecord
from rotateconv.lab.study.sizes import FLOAT, SizeRow
from rotateconv.lab.table import Table


@dataclass(frozen=True)
class Column:
    """A column of a table of groups: its head, and the cell of a group among all of them, None for unknown."""

    head: str
    cell: Callable[[Group, Sequence[Group]], str | None]
    word: bool = False


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, and 0 as +0.

    Example:
        >>> signed(-0.001), signed(1.239)
        ('+0.00', '+1.24')
    """
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def number(value: float | None) -> str:
    """Return a count, or "-"."""
    return "-" if value is None else f"{value:,.0f}"


def spread(sample: Sample | None) -> str:
    """Return mean ± standard deviation, or "-"."""
    if sample is None:
        return "-"
    return f"{sample.mean:.2f}" if sample.std is None else f"{sample.mean:.2f} ± {sample.std:.2f}"


def difference(one: Contrast | None) -> str:
    """Return a difference with its confidence interval, or "-"."""
    if one is None:
        return "-"
    if one.interval is None:
        return signed(one.difference)
    return f"{signed(one.difference)} [{signed(one.interval[0])}, {signed(one.interval[1])}]"


def count(group: Group) -> str:
    """Return the number of runs, of how many where some have no result."""
    return f"{len(group.runs)}" if not group.failed else f"{len(group.runs)} of {len(group.runs) + len(group.failed)}"


def multiply_adds(group: Group, digits: int = 2) -> str | None:
    """Return the multiply-adds of an image, or None."""
    found = group.runs[0].result.multiply_adds if group.runs else None
    return None if found is None else f"{found / 1e6:,.{digits}f} M"


def _seconds(group: Group, groups: Sequence[Group]) -> str | None:
    return None if group.seconds_per_epoch is None else f"{group.seconds_per_epoch:.3g}"


def _packed(group: Group, groups: Sequence[Group]) -> str | None:
    return None if group.packed_bytes is None else number(group.packed_bytes)


def _setting(group: Group, groups: Sequence[Group]) -> str | None:
    return (group.setting or "as the recipe") if any(other.setting for other in groups) else None


MODEL = Column("model", lambda group, _: group.model, word=True)
CONV = Column("conv", lambda group, _: group.label, word=True)
SETTING = Column("setting", _setting, word=True)
PARAMETERS = Column("parameters", lambda group, _: number(group.parameters))
PACKED = Column("packed bytes", _packed)
MULTIPLY_ADDS = Column("multiply-adds", lambda group, _: multiply_adds(group))
ACCURACY = Column("test accuracy %", lambda group, _: spread(group.accuracy))
VALIDATION = Column("validation accuracy %", lambda group, _: spread(group.validation))
DIFFERENCE = Column("difference to dense", lambda group, groups: difference(contrast(group, dense_of(group, groups))))
COUNT = Column("n", lambda group, _: count(group))
SECONDS = Column("s/epoch", _seconds)

STUDY = (MODEL, CONV, SETTING, PARAMETERS, PACKED, ACCURACY, DIFFERENCE, COUNT)
"""Columns of a study on a page: times are left out, its processors may have done other work."""
SUMMARY = (MODEL, CONV, PARAMETERS, PACKED, ACCURACY, COUNT)
"""Columns of the few rows that a visitor reads first."""
COMPARISON = (MODEL, CONV, SETTING, PARAMETERS, MULTIPLY_ADDS, ACCURACY, DIFFERENCE, COUNT, SECONDS)
"""Columns of a comparison that was just made."""


def group_table(groups: Sequence[Group], columns: Sequence[Column] = STUDY) -> Table:
    """Return a row per group; a column that is unknown for all of them is left out."""
    cells = {column: [column.cell(group, groups) for group in groups] for column in columns}
    shown = {column: found for column, found in cells.items() if any(cell is not None for cell in found)}
    rows = [tuple(cell or "-" for cell in row) for row in zip(*shown.values(), strict=True)]
    return Table(tuple(column.head for column in shown), tuple(rows), sum(column.word for column in shown))


def validation_table(groups: Sequence[Group]) -> Table:
    """Return validation accuracies, best first for each model: what settings are chosen by, the test set left alone."""

    def place(group: Group) -> tuple[str, str, float]:
        return group.model, group.label, -group.validation.mean if group.validation else 0.0

    return group_table(sorted(groups, key=place), (MODEL, CONV, SETTING, VALIDATION, COUNT))


def contrast_table(groups: Sequence[Group], controls: Mapping[str, Sequence[str]]) -> Table | None:
    """Return who is ahead of whom, and by how much, losses first; None where there is nothing to compare."""
    found = contrasts(groups, controls)
    several = any(group.setting for group in groups)
    rows = []
    for one in found:
        setting = [one.group.setting or "as the recipe"] if several else []
        against = one.other.label + (f" (dense, {one.group.label}'s size)" if one.other.equal_to else "")
        tests = ["-" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in (one.p_value, one.adjusted)]
        rows.append((one.group.model, one.group.label, against, *setting, one.verdict, difference(one), *tests))
    head = ("model", "conv", "against", *(["setting"] if several else []), "verdict")
    return Table((*head, "difference, points", "p", "p, corrected"), tuple(rows), len(head)) if rows else None


def movement_table(groups: Sequence[Group]) -> Table | None:
    """Return how far the learned angles of each group moved; None where there are none."""
    rows = []
    for group in groups:
        if group.learns_angles and not group.keeps_fitted:
            mean, largest = (group.curve(f"angle_movement_{name}")[-1].mean for name in ("mean", "max"))
            setting = f" ({group.setting})" if group.setting else ""
            rows.append((group.model, group.label + setting, f"{mean:.3f}", f"{largest:.2f}", count(group)))
    head = ("model", "conv", "mean movement, rad", "largest movement, rad", "n")
    return Table(head, tuple(rows), 2) if rows else None


_ANGLE_HEADS = ("packed", "cos 4θ before", "cos 4θ after", "its deviation", "n")


def shuffle_table(groups: Sequence[Group]) -> Table | None:
    """Return how the angles of analysed runs lie and what shuffling costs, means over a group; None without one."""
    mean = statistics.fmean
    rows = []
    for group in groups:
        analyses = [run.analysis for run in group.runs if run.analysis and run.analysis.angles]
        angles = [analysis.angles for analysis in analyses if analysis.angles]
        if not angles:
            continue
        layers = zip(*(found.layers for found in angles), strict=True)
        kept = {same[0].name: mean(layer.shuffled.mean for layer in same) for same in layers}
        worst = min(kept, key=kept.__getitem__)
        accuracies = (
            mean(analysis.validation_accuracy for analysis in analyses),
            mean(found.all.shuffled.mean for found in angles),
            kept[worst],
            mean(analysis.packed.validation_accuracy for analysis in analyses),
        )
        axes = (mean(found.all.before.axes for found in angles), mean(found.all.after.axes for found in angles))
        deviation = (2 * angles[0].all.slices) ** -0.5
        numbers = (*(f"{value:.2f}" for value in accuracies), *(signed(value, 4) for value in axes))
        rows.append((group.model, group.label, worst, *numbers, f"{deviation:.4f}", str(len(angles))))
    head = ("model", "conv", "layer that loses most", "validation %", "all shuffled", "that layer shuffled")
    return Table((*head, *_ANGLE_HEADS), tuple(rows), 3) if rows else None


def sizes_table(rows: Sequence[SizeRow], strong: str = "**") -> Table:
    """Return accuracy against bytes; a RotateConv model that is below the dense ones between two of `strong`."""
    cells = []
    for row in rows:
        above = "-" if row.above_dense is None else signed(row.above_dense)
        if row.above_dense is not None and row.above_dense < 0:
            above = f"{strong}{above}{strong}"
        bits = "float32" if row.bits == FLOAT else f"{row.bits}{', trained' if row.qat else ''}"
        cells.append((row.label, bits, number(row.bytes), spread(row.accuracy), str(row.accuracy.n), above))
    return Table(("model", "bits", "bytes", "test accuracy %", "n", "above dense"), tuple(cells), 2)


def conversion_table(conversions: Sequence[ConversionRecord]) -> Table:
    """Return a row per converted model: test accuracy of its source, of the fit, and after fine-tuning."""
    rows = []
    for one in conversions:
        test = one.test_accuracy
        accuracies = (test.source, test.fitted, test.calibrated, test.fine_tuned)
        gained = signed(test.fine_tuned - test.source)
        rows.append(
            (
                *(one.dataset, one.model, one.taps, "float32" if one.bits is None else str(one.bits[0])),
                f"{one.parameters_before:,} to {one.parameters_after:,}",
                *("-" if value is None else f"{value:.2f}" for value in accuracies),
                f"**{gained}**" if gained.startswith("-") else gained,
                str(one.epochs),
            )
        )
    head = ("data", "model", "taps", "bits", "parameters", "trained", "fitted", "recalibrated", "fine-tuned")
    return Table((*head, "difference", "epochs"), tuple(rows), 4)
