"""What the runs of a study say together: a row a configuration, and who beats whom."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rotateconv.errors import RunError
from rotateconv.lab.config import PRESETS, RunConfig
from rotateconv.lab.study.comparison import BASELINE
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.models import CONVS

_NET = ("model", "conv", "width", "growth")
_ALWAYS = ("recipe", "data")
_SAME_SIZE = 1.2  # a dense net narrowed to another's size is at most this much larger or smaller
# The nets that are judged, each beside the dense net, that of equal size, and what shows whether a part of it does
# anything.
_CONTROLS: dict[str, tuple[str, ...]] = {
    "rotate4": ("rotate4-fixed", "mask4", "line", "separable", "rotate4-g4"),
    "rotate2": (),
    "rotate2b": ("rotate2",),
    "rotate2p": ("rotate2", "rotate2b", "rotate2p-fixed", "separable", "rotate2p-g4"),
    "rotate4-g4": (),
    "rotate2p-g4": ("separable",),
    "rotate4-k5": ("rotate4",),
    "rotate2p-k5": ("rotate2p",),
}


@dataclass(frozen=True)
class Spread:
    """Values of runs that differ in the seed alone.

    Args:
        mean: of the values.
        std: their standard deviation with n - 1, None for one value.
        n: how many.
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Return mean and deviation, or None without values or where one is missing."""
        found = list(values)
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Row:
    """A configuration with all its seeds.

    Args:
        model, conv, width: the net.
        equal_to: the convolution that a narrowed dense net is as large as, or None.
        setting: the keys in which the row differs from its recipe and others of the table do not, "" for none.
        runs: finished ones, seed by seed.
        failed: those without a result.
    """

    model: str
    conv: str
    width: float
    equal_to: str | None
    setting: str
    runs: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...]

    @property
    def label(self) -> str:
        """What the table calls the convolution."""
        return self.conv if self.width == 1 else f"{self.conv} x{self.width:.2f}"

    @property
    def parameters(self) -> int | None:
        """Of the net; None where no run has a result."""
        return self.runs[0].result.parameters if self.runs else None

    @property
    def accuracy(self) -> Spread | None:
        """Test accuracy in percent after the last epoch."""
        return Spread.of(run.result.test_accuracy for run in self.runs)

    @property
    def validation(self) -> Spread | None:
        """Validation accuracy in percent after the last epoch; None where the runs trained on that split."""
        return Spread.of(run.curves.validation_accuracy[-1] for run in self.runs)

    def curve(self, quantity: str) -> list[Spread]:
        """Return a quantity of `METRICS` epoch by epoch, as far as every run has it."""
        epochs = zip(*(getattr(run.curves, quantity) for run in self.runs), strict=True)
        spreads = [Spread.of(values) for values in epochs]
        return [spread for spread in spreads if spread is not None]


@dataclass(frozen=True)
class Contrast:
    """A row and one that it is compared with.

    Args:
        row, other: of the same model and setting.
        difference: of the mean test accuracies, row minus other, in points.
        error: standard error √(s₁²/n₁ + s₂²/n₂), None where one has a single run.
    """

    row: Row
    other: Row
    difference: float
    error: float | None

    @property
    def verdict(self) -> str:
        """Who is ahead, by the rule of two standard errors."""
        if self.error is None:
            return "one seed: not decided"
        if abs(self.difference) <= 2 * self.error:
            return "not decided"
        return "loses" if self.difference < 0 else "wins"


def make_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """Return a row a configuration: models as they come, settings, then `CONVS`, narrowed nets after what they match.

    Raises:
        RunError: a configuration has the same seed twice.
    """
    groups: dict[RunConfig, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(dataclasses.replace(run.config, seed=0), []).append(run)
    keys = sorted(field.name for field in dataclasses.fields(RunConfig) if field.name not in _NET)
    varying = [key for key in keys if len({getattr(config, key) for config in groups}) > 1]
    rows = []
    for config, group in groups.items():
        group.sort(key=lambda run: run.config.seed)
        for one, next_one in itertools.pairwise(group):
            if one.config.seed == next_one.config.seed:
                raise RunError(
                    f"{one.name} and {next_one.name} have the same configuration and seed: leave one of them out"
                )
        rows.append(
            Row(
                model=config.model,
                conv=config.conv,
                width=config.width,
                equal_to=group[0].equal_to,
                setting=_setting(config, varying),
                runs=tuple(run for run in group if run.summary is not None),
                failed=tuple(run for run in group if run.summary is None),
            )
        )
    models = list(dict.fromkeys(row.model for row in rows))
    convs = list(CONVS)

    def place(row: Row) -> tuple[Any, ...]:
        conv = row.equal_to or row.conv
        known = convs.index(conv) if conv in convs else len(convs)
        return models.index(row.model), row.setting, known, row.equal_to is not None, row.width

    return sorted(rows, key=place)


def contrast(row: Row, other: Row | None) -> Contrast | None:
    """Return the difference of two rows' test accuracies; None without two rows that have one."""
    if other is None or row.accuracy is None or other.accuracy is None:
        return None
    ours, theirs = row.accuracy, other.accuracy
    error = None
    if ours.std is not None and theirs.std is not None:
        error = math.sqrt(ours.std**2 / ours.n + theirs.std**2 / theirs.n)
    return Contrast(row, other, ours.mean - theirs.mean, error)


def dense_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the dense net that a row is compared with: same model and setting, full width."""
    for other in rows:
        same = (other.model, other.setting, other.conv, other.equal_to) == (row.model, row.setting, BASELINE, None)
        if same and other is not row:
            return other
    return None


def contrasts(rows: Sequence[Row]) -> list[Contrast]:
    """Return how every net with learned angles does: against the dense net, the dense net of its size, the controls.

    Lost ones come first, then those that are not decided, each by the difference.
    """
    found = []
    for row in rows:
        if row.conv not in _CONTROLS:
            continue
        same = [other for other in rows if (other.model, other.setting) == (row.model, row.setting)]
        controls = [other for other in same if other.conv in _CONTROLS[row.conv]]
        for other in (dense_of(row, rows), _same_size(row, same), *controls):
            one = contrast(row, other)
            if one is not None:
                found.append(one)
    order = ("loses", "not decided", "one seed: not decided", "wins")
    return sorted(found, key=lambda one: (order.index(one.verdict), one.difference))


def _same_size(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the narrowed dense net whose number of parameters is nearest to a row's."""
    size = row.parameters
    narrowed = [other for other in rows if other.equal_to is not None and other.parameters is not None]
    if size is None or not narrowed:
        return None

    def ratio(other: Row) -> float:
        assert other.parameters is not None
        return max(other.parameters / size, size / other.parameters)

    nearest = min(narrowed, key=ratio)
    return nearest if ratio(nearest) <= _SAME_SIZE else None


def _setting(config: RunConfig, varying: Sequence[str]) -> str:
    """Return those of the varying keys that are not as the recipe has them."""
    recipe = PRESETS.get(config.recipe, RunConfig())
    changed = [(key, getattr(config, key)) for key in varying]
    return ", ".join(f"{key}={value}" for key, value in changed if key in _ALWAYS or value != getattr(recipe, key))
