"""What the runs of a study say together: a group per configuration, and which group is ahead of which."""

import dataclasses
import itertools
import math
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rotateconv.errors import RunError
from rotateconv.lab.config import PRESETS, RunConfig
from rotateconv.lab.naming import architecture_name, layers_label, layers_name
from rotateconv.lab.sample import Sample, mean_of
from rotateconv.lab.study.plan import BASELINE
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.models import CONVS

LEVEL = 0.05
"""Rate of false discoveries among the verdicts of a study; the intervals are of 1 - LEVEL."""

_OF_THE_MODEL = ("model", "conv", "width", "growth", "factory", "convert_taps")
_ALWAYS = ("recipe", "data")
_SAME_SIZE = 1.2  # a dense model narrowed to another's size is at most this much larger or smaller


@dataclass(frozen=True)
class Group:
    """A configuration with all its seeds.

    Attributes:
        config: Of its runs, but for the seed.
        equal_to: The convolution whose size a narrowed dense model has, or None.
        setting: The keys in which it differs from its recipe and others of the study do not, "" for none.
        runs: Finished ones, seed by seed.
        failed: Those without a result.
    """

    config: RunConfig
    equal_to: str | None
    setting: str
    runs: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...]

    @property
    def model(self) -> str:
        """What its architecture is called: its name, or the function that builds the user's own."""
        return architecture_name(self.config)

    @property
    def label(self) -> str:
        """What its layers are called."""
        return layers_label(self.config)

    @property
    def layers(self) -> str:
        """What its layers are called whatever their width."""
        return layers_name(self.config)

    @property
    def dense(self) -> bool:
        """Whether it is a dense model that was not narrowed to another's size: one to compare others with."""
        return self.layers == BASELINE and self.equal_to is None

    @property
    def keeps_fitted(self) -> bool:
        """Whether a run kept another model than its last epoch's, of which the curves then say nothing."""
        return any(run.result.keeps_fitted for run in self.runs)

    @property
    def learns_angles(self) -> bool:
        """Whether angles moved."""
        moved = self.curve("angle_movement_max")
        return bool(moved) and moved[-1].mean > 0

    @property
    def parameters(self) -> int | None:
        """Of the model; None where no run has a result."""
        return self.runs[0].result.parameters if self.runs else None

    @property
    def accuracy(self) -> Sample | None:
        """Test accuracy in percent of the models that were kept."""
        return Sample.of(run.result.test_accuracy for run in self.runs)

    @property
    def validation(self) -> Sample | None:
        """Validation accuracy in percent after the last epoch; None where it was trained on or its model not kept."""
        return None if self.keeps_fitted else Sample.of(run.curves.validation_accuracy[-1] for run in self.runs)

    @property
    def packed_bytes(self) -> float | None:
        """Of the packed file, mean over the analysed runs; None without one."""
        return mean_of(run.analysis.packed.bytes for run in self.runs if run.analysis)

    @property
    def seconds_per_epoch(self) -> float | None:
        """The median over the runs; None without one."""
        return statistics.median(run.result.seconds_per_epoch for run in self.runs) if self.runs else None

    def curve(self, quantity: str) -> list[Sample]:
        """Return a quantity of `Curves` epoch by epoch, as far as every run has it."""
        epochs = zip(*(getattr(run.curves, quantity) for run in self.runs), strict=True)
        return [sample for values in epochs if (sample := Sample.of(values)) is not None]


@dataclass(frozen=True)
class Contrast:
    """A group and one that it is compared with.

    Attributes:
        group, other: Of the same model and setting.
        difference: Of the mean test accuracies, group minus other, in points.
        interval: Of 95 % confidence by Welch's t-test; None where a group has a single run, or no run differs.
        p_value: Of that test against no difference; None likewise.
        adjusted: The p-value after Benjamini and Hochberg's correction over the study's contrasts; None likewise.
    """

    group: Group
    other: Group
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    adjusted: float | None = None

    @property
    def verdict(self) -> str:
        """Wins or loses where the corrected p-value is below `LEVEL`."""
        if self.adjusted is None:
            single = 1 in (len(self.group.runs), len(self.other.runs))
            return "one seed: not decided" if single else "not decided"
        if self.adjusted >= LEVEL:
            return "not decided"
        return "wins" if self.difference > 0 else "loses"


def make_groups(runs: Sequence[RunRecord]) -> list[Group]:
    """Return a group per configuration, in the order of models, settings and `CONVS`, narrowed ones last.

    RunError where a configuration has the same seed twice.
    """
    found: dict[RunConfig, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(_seedless(run.config), []).append(run)
    keys = sorted(field.name for field in dataclasses.fields(RunConfig) if field.name not in _OF_THE_MODEL)
    varying = [key for key in keys if len({getattr(config, key) for config in found}) > 1]
    groups = []
    for config, group in found.items():
        group.sort(key=lambda run: run.config.seed)
        for one, following in itertools.pairwise(group):
            if one.config.seed == following.config.seed:
                raise RunError(
                    f"{one.name} and {following.name} have the same configuration and seed: leave one of them out"
                )
        done = tuple(run for run in group if run.summary is not None)
        failed = tuple(run for run in group if run.summary is None)
        groups.append(Group(config, group[0].equal_to, _setting(config, varying), done, failed))
    models = list(dict.fromkeys(group.model for group in groups))
    convs = list(CONVS)

    def place(group: Group) -> tuple[int, str, int, str, bool, float]:
        conv = group.equal_to or group.layers
        known = convs.index(conv) if conv in convs else len(convs)
        return models.index(group.model), group.setting, known, conv, group.equal_to is not None, -group.config.width

    return sorted(groups, key=place)


def contrast(group: Group, other: Group | None) -> Contrast | None:
    """Return the difference of two groups' test accuracies; None without two groups that have one."""
    if other is None or group.accuracy is None or other.accuracy is None:
        return None
    ours, theirs = group.accuracy, other.accuracy
    difference = ours.mean - theirs.mean
    if None in (ours.std, theirs.std) or not (ours.std or theirs.std):  # one run, or no run differs from another
        return Contrast(group, other, difference, None, None)
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        # SciPy warns of a sample whose values are all equal; the other one's are not.
        warnings.filterwarnings("ignore", message="Precision loss occurred", category=RuntimeWarning)
        test = ttest_ind(ours.values, theirs.values, equal_var=False)
        low, high = test.confidence_interval(1 - LEVEL)
    return Contrast(group, other, difference, (float(low), float(high)), float(test.pvalue))


def dense_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """Return the dense model that a group is compared with: same model and setting, full width, else the group's.

    A model narrowed to another's size counts as of that one's width. None for the dense model itself.
    """
    beside = _beside(group, groups)
    sized = [other for other in beside if other.equal_to is None and other.layers == group.equal_to]
    for width in (1.0, *(one.config.width for one in sized or [group])):
        for other in beside:
            if other.dense and other.config.width == width:
                return None if other is group else other
    return None


def contrasts(groups: Sequence[Group], controls: Mapping[str, Sequence[str]]) -> list[Contrast]:
    """Return how every group with learned angles does: against the dense model, that of its size, and its controls.

    The p-values are corrected over all of them; lost ones come first, then what is not decided, each by the difference.

    Args:
        groups: Of one study.
        controls: Layers of the groups that show whether a part of one does anything, by its layers.
    """
    found = []
    for group in groups:
        if not group.learns_angles:
            continue
        beside = _beside(group, groups)
        same = [other for other in beside if other.config.width == group.config.width]
        wanted = [other for other in same if other.layers in controls.get(group.layers, ())]
        for other in (dense_of(group, groups), same_size(group, beside), *wanted):
            one = contrast(group, other)
            if one is not None:
                found.append(one)
    order = ("loses", "not decided", "one seed: not decided", "wins")
    return sorted(corrected(found), key=lambda one: (order.index(one.verdict), one.difference))


def corrected(found: Sequence[Contrast]) -> list[Contrast]:
    """Return contrasts with p-values corrected for their number.

    Reference:
        Benjamini and Hochberg, "Controlling the False Discovery Rate" (1995).
    """
    from scipy.stats import false_discovery_control

    tested = [one.p_value for one in found if one.p_value is not None]
    adjusted = iter(false_discovery_control(tested) if tested else ())
    return [dataclasses.replace(one, adjusted=None if one.p_value is None else float(next(adjusted))) for one in found]


def _seedless(config: RunConfig) -> RunConfig:
    """Return a configuration that all seeds share: a source or teacher of the same seed goes by its name without it."""
    ends = re.compile(rf"-s(eed)?{config.seed}$")
    names: dict[str, Any] = {
        key: ends.sub("", name) for key in ("source", "teacher") if (name := getattr(config, key)) is not None
    }
    return dataclasses.replace(config, seed=0, **names)


def _beside(group: Group, groups: Sequence[Group]) -> list[Group]:
    return [other for other in groups if (other.model, other.setting) == (group.model, group.setting)]


def same_size(group: Group, groups: Sequence[Group]) -> Group | None:
    """Return the narrowed dense model whose number of parameters is nearest to a group's."""

    def ratio(other: Group) -> float:
        if group.parameters is None or other.parameters is None or other.equal_to is None:
            return math.inf
        return max(other.parameters / group.parameters, group.parameters / other.parameters)

    nearest = min(groups, key=ratio)
    return nearest if ratio(nearest) <= _SAME_SIZE else None


def _setting(config: RunConfig, varying: Sequence[str]) -> str:
    """Return those of the varying keys that are not as the recipe has them."""
    recipe = PRESETS.get(config.recipe, RunConfig())
    changed = [(key, getattr(config, key)) for key in varying]
    return ", ".join(f"{key}={value}" for key, value in changed if key in _ALWAYS or value != getattr(recipe, key))
