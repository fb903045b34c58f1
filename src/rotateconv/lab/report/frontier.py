"""Accuracy against bytes of models trained with quantized numbers, rivals beside RotateConv layers of every kind."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rotateconv.lab.report.canvas import legend, make_figure, mark, save, scale_bytes
from rotateconv.lab.report.colors import layers_color
from rotateconv.lab.report.statistics import Contrast, Group, contrast, corrected
from rotateconv.lab.report.tables import difference, multiply_adds, number, spread
from rotateconv.lab.sample import Sample, mean_of
from rotateconv.lab.study.study_record import FileBytes
from rotateconv.lab.table import Table

BUDGETS = (5, 10, 15, 20, 28, 40, 60)
"""KiB of a packed file for which the best of each family are compared."""

FAMILIES: Mapping[str, Callable[[str], bool]] = {
    "RotateConv": lambda label: label.startswith(("rotate", "line")) or "taps" in label,
    "dense": lambda label: label.startswith("conv"),
    "others": lambda label: True,
}
"""How a family is recognized by the label of its layers; the first that holds."""


@dataclass(frozen=True)
class Point:
    """A group of runs with the files that were written of them.

    Attributes:
        group: Of one configuration, with all its seeds.
        packed: Bytes of the packed file, mean over the runs.
        compact: Of the compact ONNX file; None where there is none.
        slice_entropy: Bits that the codes of a slice hold, mean over the runs; None where it is not known.
        setting: Keys of training in which it differs from most others, as "lr=0.2".
    """

    group: Group
    packed: float
    compact: float | None
    slice_entropy: float | None = None
    setting: str = ""

    @property
    def family(self) -> str:
        """A key of `FAMILIES`."""
        return next(name for name, holds in FAMILIES.items() if holds(self.group.label))

    @property
    def layers(self) -> str:
        """What its layers are called, what they were fitted to if not to 3x3, shared angles, teacher and setting."""
        config = self.group.config
        own = ", its source as teacher" if config.width < 1 and config.teacher == config.source is not None else ""
        setting = own + (f", {self.setting}" if self.setting else "")
        if config.convert_taps is None:
            return f"{self.group.label}{setting}"
        fitted = "" if config.conv == "conv3x3" else f" of {config.conv}"
        groups = "" if config.convert_angle_groups is None else f", {config.convert_angle_groups} angle groups"
        return f"{self.group.label}{fitted}{groups}{setting}"

    @property
    def bits(self) -> str:
        """Of a weight, with the levels where they are not 2^bits - 1; of an angle and a profile where there are any.

        Then the bits that layers have of their own, by name.
        """
        bits = self.group.config.bits
        assert bits is not None
        levels = "" if bits.levels is None else f" ({bits.levels} levels)"
        profile = "" if bits.profile is None else f", {bits.profile} a profile"
        rotates = self.family == "RotateConv"
        own = "".join(f", {w}{f' + {a}' if rotates else ''} in {name}" for name, (w, a) in bits.layers)
        return f"{bits.weight}{levels}" + (f" + {bits.angle}{profile}" if rotates else "") + own

    def bits_called(self, *, in_words: bool = False) -> str:
        """The bits, and what dense kernels of so many are called where they were proposed."""
        paper = _PAPERS.get(self.bits) if self.family == "dense" else None
        unit = "" if not in_words else " bit" if self.bits == "1" else " bits"
        return f"{self.bits}{unit}" + (f" ({paper})" if paper else "")

    @property
    def accuracy(self) -> Sample:
        """On the test split."""
        assert self.group.accuracy is not None
        return self.group.accuracy

    @property
    def validation(self) -> float:
        """What a point is chosen by."""
        assert self.group.validation is not None
        return self.group.validation.mean


@dataclass(frozen=True)
class Rivalry:
    """The best RotateConv model within a budget, by validation accuracy, and the best of another family."""

    budget: int
    ours: Point
    theirs: Point
    contrast: Contrast


def make_points(groups: Sequence[Group], files: Mapping[str, FileBytes]) -> list[Point]:
    """Return a point per group whose runs were quantized and whose files were all measured, smallest first."""
    points = []
    for group in groups:
        found = [files[run.name] for run in group.runs if run.name in files]
        if group.config.bits is None or not found or len(found) < len(group.runs) or group.validation is None:
            continue
        packed = Sample(tuple(one.packed for one in found)).mean
        entropy = mean_of(one.slice_entropy for one in found)
        points.append(Point(group, packed, mean_of(one.compact for one in found), entropy))
    usual = {key: Counter(getattr(point.group.config, key) for point in points).most_common(1) for key in _SETTINGS}
    points = [dataclasses.replace(point, setting=_setting(point, usual)) for point in points]
    return sorted(points, key=lambda point: point.packed)


def _setting(point: Point, usual: Mapping[str, Sequence[tuple[object, int]]]) -> str:
    values = {key: getattr(point.group.config, key) for key in usual}
    return ", ".join(f"{key}={values[key]}" for key, ((most, _),) in usual.items() if values[key] != most)


_PAPERS = {"1": "BWN", "2": "TWN"}
"""Binary weights with a scale (XNOR-Net) and Ternary Weight Networks, by the bits of a weight."""
_SETTINGS = ("epochs", "lr", "angle_lr_scale", "convert_learn_angle", "qat_scales", "prune")


def rivalries(points: Sequence[Point]) -> list[Rivalry]:
    """Return who is best within each budget, chosen on the validation split; p-values are corrected over all of them.

    A point of several seeds is preferred to one of a single seed, which nothing could be decided with. Two that are the
    best within a smaller budget already are not compared again.
    """

    def best(family: str, budget: int) -> Point | None:
        fits = [point for point in points if point.family == family and point.packed <= budget * 1024]
        return max(fits, key=lambda point: (point.accuracy.n > 1, point.validation), default=None)

    found, compared = [], []
    for budget in BUDGETS:
        ours = best("RotateConv", budget)
        for family in FAMILIES:
            theirs = best(family, budget) if family != "RotateConv" else None
            # The same two again, within a larger budget, would be no other comparison.
            if ours is not None and theirs is not None and (ours, theirs) not in compared:
                compared.append((ours, theirs))
                one = contrast(ours.group, theirs.group)
                assert one is not None
                found.append(Rivalry(budget, ours, theirs, one))
    tested = corrected([one.contrast for one in found])
    return [dataclasses.replace(one, contrast=test) for one, test in zip(found, tested, strict=True)]


def points_table(points: Sequence[Point]) -> Table:
    """Return a row per point."""
    rows = []
    for point in points:
        group = point.group
        fastest = min(seconds for run in group.runs for seconds in run.curves.seconds)
        minutes = fastest * group.config.epochs / 60
        rows.append(
            (
                *(point.family, point.layers, point.bits_called(), number(point.packed), number(point.compact)),
                *(spread(point.accuracy), spread(group.validation), str(point.accuracy.n)),
                *(multiply_adds(group, 1) or "-", f"{minutes:.0f}"),
                "-" if point.slice_entropy is None else f"{point.slice_entropy:.2f}",
            )
        )
    head = ("family", "layers", "bits", "packed bytes", "compact ONNX", "test accuracy %", "validation accuracy %")
    return Table((*head, "n", "multiply-adds", "minutes", "entropy a slice, bits"), tuple(rows), 3)


def rivalry_table(found: Sequence[Rivalry]) -> Table:
    """Return a row per budget and rival family."""
    rows = []
    for one in found:
        sides = [
            cell
            for point in (one.ours, one.theirs)
            for cell in (
                f"{point.layers}, {point.bits_called(in_words=True)}, {number(point.packed)} B",
                spread(point.accuracy),
            )
        ]
        corrected_p = "-" if one.contrast.adjusted is None else f"{one.contrast.adjusted:.3f}"
        rows.append((f"{one.budget} KiB", *sides, one.contrast.verdict, difference(one.contrast), corrected_p))
    head = ("budget", "best RotateConv", "test %", "best rival of a family", "test %", "verdict")
    return Table((*head, "difference, points", "p, corrected"), tuple(rows), 1)


def draw_frontier(points: Sequence[Point], path: Path) -> None:
    """Draw test accuracy over bytes of the packed file: a color a kind of layers, a line through each family's best.

    The best so far by the validation split, as in the tables.
    """
    first = points[0].group
    names = " and ".join(dict.fromkeys(point.group.model for point in points))
    figure, (axes,) = make_figure(1, 1, 6.4, f"{first.runs[0].data.name}, {names}: trained with quantized numbers")
    axes.set(xlabel="kilobytes of the packed file (log scale)", ylabel="test accuracy (%)", xscale="log")
    styles = {"RotateConv": ("-", "o"), "dense": ("--", "s"), "others": (":", "^")}
    entries = []
    for family, (line, marker) in styles.items():
        own = [point for point in points if point.family == family]
        best: list[Point] = []
        for point in own:
            if not best or point.validation > best[-1].validation:
                best.append(point)
        if best:
            color = layers_color(best[-1].group.label)
            places = ([point.packed / 1e3 for point in best], [point.accuracy.mean for point in best])
            axes.plot(*places, line, color=color, linewidth=1.2)
        for point in own:
            color = layers_color(point.group.label)
            face = color if point.accuracy.n > 1 else "white"
            mark(axes, point.packed / 1e3, point.accuracy, color, marker, face)
            name = point.group.layers
            entries.append((f"{family}: {name}", color, color, marker))
    sizes = [point.packed / 1e3 for point in points]
    scale_bytes(axes, min(sizes) / 1.15, max(sizes) * 1.15)
    entries = list(dict.fromkeys(entries))
    entries.append(("white: one seed", "#777777", "white", "o"))
    legend(figure, entries)
    save(figure, path)
