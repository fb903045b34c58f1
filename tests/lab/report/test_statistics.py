"""Laws of a study's groups: they are the statistics of the runs, and a verdict needs a corrected test."""

import dataclasses
import math
import statistics
from pathlib import Path

import pytest
import scipy.stats

from rotateconv.errors import RunError
from rotateconv.lab.config import make_config
from rotateconv.lab.report.statistics import Group, contrast, contrasts, dense_of, make_groups
from rotateconv.lab.report.tables import group_table, validation_table
from rotateconv.lab.sample import Sample
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.study.study_record import read_comparison, read_run
from study_runs import ACCURACIES, write_comparison, write_run

CONTROLS = {"rotate4": ("rotate4-fixed",)}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunRecord, ...]:
    """Of a comparison, with a run that diverged."""
    return read_comparison(write_comparison(tmp_path / "digits")).runs


def groups_of(folder: Path, **accuracies: tuple[float, ...]) -> list[Group]:
    """Groups of runs on the digits, by the name of their convolution."""
    for conv, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            config = make_config("digits", changes={"conv": conv, "seed": seed})
            write_run(folder / f"{conv}-{seed}", config, accuracy)
    return make_groups([read_run(run) for run in sorted(folder.iterdir())])


def test_groups_are_the_statistics_of_the_runs(runs: tuple[RunRecord, ...]) -> None:
    groups = make_groups(runs)
    order = [group.label for group in groups]
    assert order == ["conv3x3", "rotate4", "conv3x3 x0.69", "rotate2", "rotate2p", "rotate4-fixed"]
    for (conv, width), accuracies in ACCURACIES.items():
        (group,) = [group for group in groups if (group.config.conv, group.config.width) == (conv, width)]
        found = group.accuracy
        assert found is not None
        mean = sum(accuracies) / 3
        assert found.mean == pytest.approx(mean)
        assert found.std == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in accuracies) / 2))
    assert groups[1].validation == Sample((90.5, 91.0, 91.5))
    moved = groups[1].curve("angle_movement_mean")
    assert [(pytest.approx(one.mean), one.std, one.n) for one in moved] == [(0.1, 0.0, 3), (0.2, 0.0, 3)]
    assert groups[0].curve("angle_movement_mean") == []
    assert [group.learns_angles for group in groups] == [False, True, False, True, False, False]
    assert [run.config.seed for run in groups[1].runs] == [0, 1, 2]


def test_a_difference_is_tested_as_welch_did(tmp_path: Path) -> None:
    ours, theirs = (90.5, 91.0, 92.4), (89.0, 89.1, 89.4)
    groups = groups_of(tmp_path, conv3x3=theirs, rotate4=ours)
    one = contrast(groups[1], groups[0])
    assert one is not None
    parts = [statistics.variance(values) / 3 for values in (ours, theirs)]
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    assert one.difference == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
    assert one.p_value == pytest.approx(2 * scipy.stats.t.sf(one.difference / error, freedom))
    half = scipy.stats.t.ppf(0.975, freedom) * error
    assert one.interval == pytest.approx((one.difference - half, one.difference + half))


def test_p_values_are_corrected_over_the_study_and_losses_stand_first(runs: tuple[RunRecord, ...]) -> None:
    found = contrasts(make_groups(runs), CONTROLS)
    pairs = [(one.group.label, one.other.label) for one in found]
    assert sorted(pairs) == [
        ("rotate2", "conv3x3"),
        ("rotate4", "conv3x3"),
        ("rotate4", "conv3x3 x0.69"),
        ("rotate4", "rotate4-fixed"),
    ]
    ordered = sorted(found, key=lambda one: one.p_value or 0.0)
    by_hand = [4 * (one.p_value or 0.0) / rank for rank, one in enumerate(ordered, 1)]
    assert [one.adjusted for one in ordered] == pytest.approx([min(by_hand[rank:]) for rank in range(4)])
    order = ("loses", "not decided", "one seed: not decided", "wins")
    verdicts = [order.index(one.verdict) for one in found]
    assert verdicts == sorted(verdicts)
    assert found[0].verdict == "loses"
    assert dict(zip(pairs, [one.verdict for one in found], strict=True))["rotate4", "conv3x3"] == "not decided"


def test_what_one_test_decides_many_may_not(tmp_path: Path) -> None:
    near = {"conv3x3": (90.0, 90.5, 91.0), "rotate4": (91.2, 91.6, 91.9)}
    (alone,) = contrasts(groups_of(tmp_path / "alone", **near), {})
    assert (alone.verdict, alone.adjusted) == ("wins", alone.p_value)
    rest = dict.fromkeys(("rotate2", "rotate2p", "rotate2b"), (90.1, 90.5, 91.0))
    among = contrasts(groups_of(tmp_path / "among", **near, **rest), {})
    (same,) = [one for one in among if one.group.label == "rotate4"]
    assert same.p_value == alone.p_value
    assert same.verdict == "not decided"


def test_without_a_deviation_nothing_is_decided(tmp_path: Path) -> None:
    (single,) = contrasts(groups_of(tmp_path / "single", conv3x3=(90.0, 91.0), rotate4=(99.0,)), {})
    assert (single.interval, single.p_value, single.verdict) == (None, None, "one seed: not decided")
    (equal,) = contrasts(groups_of(tmp_path / "equal", conv3x3=(90.0, 90.0), rotate4=(99.0, 99.0)), {})
    assert (equal.interval, equal.p_value, equal.verdict) == (None, None, "not decided")
    (half,) = contrasts(groups_of(tmp_path / "half", conv3x3=(90.0, 90.0, 90.0), rotate4=(98.9, 99.0, 99.1)), {})
    assert half.verdict == "wins"


def test_the_narrowed_model_of_the_nearest_size_is_the_rival(runs: tuple[RunRecord, ...]) -> None:
    template = next(run for run in runs if run.name == "resnet20-conv3x3-w0.6875-seed0")
    more = []
    for width, size in ((0.5, 68_050), (0.25, 17_000)):
        config = dataclasses.replace(template.config, width=width)
        summary = dataclasses.replace(template.result, parameters=size)
        name = f"w{width}"
        more.append(dataclasses.replace(template, name=name, config=config, summary=summary, equal_to="rotate2"))

    def pairs(found: list[RunRecord]) -> set[tuple[str, str]]:
        return {(one.group.label, one.other.label) for one in contrasts(make_groups(found), {}) if one.other.equal_to}

    assert pairs([*runs, *more]) == {("rotate4", "conv3x3 x0.69"), ("rotate2", "conv3x3 x0.50")}
    assert pairs([*runs, more[1]]) == {("rotate4", "conv3x3 x0.69")}  # a model of another size is no rival


def narrow_runs(runs: tuple[RunRecord, ...], width: float) -> list[RunRecord]:
    """The same study, planned with another width."""
    return [
        dataclasses.replace(run, config=dataclasses.replace(run.config, width=run.config.width * width)) for run in runs
    ]


@pytest.mark.parametrize("width", [0.5, 0.25, 2.0])
def test_a_study_of_another_width_is_decided_as_that_of_full_width(runs: tuple[RunRecord, ...], width: float) -> None:
    def decided(found: list[Group]) -> list[tuple[object, ...]]:
        numbers = ((one.group, one.other, one.verdict, one.adjusted) for one in contrasts(found, CONTROLS))
        return [(group.layers, other.layers, other.equal_to, *rest) for group, other, *rest in numbers]

    full, narrow = make_groups(runs), make_groups(narrow_runs(runs, width))
    assert [group.layers for group in narrow] == [group.layers for group in full]
    assert [group.dense for group in narrow] == [True, *[False] * 5]
    assert [dense_of(group, narrow) for group in narrow] == [None, *narrow[:1] * 5]
    assert decided(narrow) == decided(full)
    assert len(decided(narrow)) == 4


def test_full_width_stays_the_baseline_where_it_is(runs: tuple[RunRecord, ...]) -> None:
    narrow = [dataclasses.replace(run, equal_to=None) for run in runs if run.equal_to]
    groups = make_groups([run for run in runs if not run.equal_to] + narrow)
    assert [group.label for group in groups[:2]] == ["conv3x3", "conv3x3 x0.69"]
    assert [dense_of(group, groups) for group in groups] == [None, *groups[:1] * 5]
    alone = [group for group in groups if group.label != "conv3x3"]
    assert [dense_of(group, alone) for group in alone] == [None] * 5  # of another width than the others


def test_settings_are_named_where_they_differ(tmp_path: Path) -> None:
    for name, changes in {"recipe": {}, "unscaled": {"angle_grad_scale": 1.0}, "fast": {"angle_lr_scale": 3.0}}.items():
        for conv, accuracy in (("conv3x3", 90.0), ("rotate4", 80.0 + len(name))):
            config = make_config("digits", changes={"conv": conv, **changes})
            write_run(tmp_path / name / "runs" / f"resnet20-{conv}-seed0", config, accuracy)
    names = ("recipe", "unscaled", "fast")
    groups = make_groups([run for name in names for run in read_comparison(tmp_path / name).runs])
    assert {group.setting for group in groups} == {"", "angle_grad_scale=1.0", "angle_lr_scale=3.0"}
    for group in groups:
        if group.label == "rotate4":
            against = dense_of(group, groups)
            assert against is not None
            assert against.setting == group.setting
    rows = [row for row in validation_table(groups).rows if row[1] == "rotate4"]
    assert [row[2] for row in rows] == ["angle_grad_scale=1.0", "as the recipe", "angle_lr_scale=3.0"]
    assert rows[0][3:] == ("88.00", "1")
    assert ("resnet20", "rotate4", "as the recipe", "121,242") in [row[:4] for row in group_table(groups).rows]


def test_a_converted_run_and_a_users_own_model_are_called_what_they_are(tmp_path: Path) -> None:
    write_run(tmp_path / "converted", make_config("digits", changes={"conv": "conv3x3", "convert_taps": "profile"}), 90)
    write_run(tmp_path / "own", make_config("digits", changes={"factory": "mine:model", "convert_taps": "free"}), 80)
    groups = make_groups([read_run(tmp_path / name) for name in ("converted", "own")])
    assert [(group.model, group.label) for group in groups] == [
        ("resnet20", "profile taps"),
        ("mine:model", "free taps"),
    ]
    assert not any(group.dense for group in groups)


def test_the_same_seed_twice_is_refused(runs: tuple[RunRecord, ...]) -> None:
    twice = next(run for run in runs if run.name == "resnet20-rotate4-seed1")
    with pytest.raises(RunError, match="resnet20-rotate4-seed1 and again have the same configuration and seed"):
        make_groups([*runs, dataclasses.replace(twice, name="again")])
