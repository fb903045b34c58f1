"""Accuracy against bytes: what is measured, how models are compared at equal bytes, and what is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rotateconv import quantize
from rotateconv.errors import RunError
from rotateconv.lab.config import make_config
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import read_json
from rotateconv.lab.naming import layers_label
from rotateconv.lab.report.comparison import write_sizes
from rotateconv.lab.report.tables import sizes_table
from rotateconv.lab.study.sizes import (
    SizeRow,
    SizesTable,
    current_label,
    measure_sizes,
    merge_sizes,
    pareto,
    with_differences,
)
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import evaluate_model, load_run
from small import Tiny, tiny_config


def row(
    label: str, size: float, *accuracies: float, dense: bool = False, bits: int = 4, runs: tuple[str, ...] = ()
) -> SizeRow:
    return SizeRow(label, dense, bits, False, size, accuracies, runs=runs)


DENSE = [row("a", 100, 50.0, dense=True), row("a", 400, 60.0, dense=True), row("b", 200, 40.0, dense=True)]


def test_the_frontier_leaves_out_what_a_smaller_model_equals() -> None:
    assert [found.bytes for found in pareto(DENSE)] == [100, 400]
    tied = [row("a", 100, 50.0, dense=True), row("b", 100, 51.0, dense=True), row("c", 150, 51.0, dense=True)]
    assert [found.label for found in pareto(tied)] == ["b"]
    assert pareto([]) == []


@pytest.mark.parametrize(
    ("size", "accuracy", "above"),
    [
        (200, 56.0, 1.0),  # halfway between 100 and 400 on a logarithmic scale: 55
        (100, 49.0, -1.0),
        (400, 60.5, 0.5),
        (1600, 61.0, 1.0),  # no larger dense model: level from the largest
        (99, 90.0, None),  # no dense model as small
    ],
)
def test_models_are_compared_at_equal_bytes(size: float, accuracy: float, above: float | None) -> None:
    found = with_differences([*DENSE, row("lines", size, accuracy)])[-1]
    assert found.label == "lines"
    assert found.above_dense == (None if above is None else pytest.approx(above))


def test_dense_models_stand_first_and_are_compared_with_none() -> None:
    found = with_differences([row("lines", 200, 56.0), *DENSE])
    assert [entry.dense for entry in found] == [True, True, True, False]
    assert [entry.above_dense for entry in found[:3]] == [None] * 3


def test_a_model_below_the_dense_ones_is_in_bold() -> None:
    below, above = with_differences([*DENSE, row("lines", 200, 54.0, 54.5), row("more", 200, 56.0)])[-2:]
    rows = sizes_table([below, above, DENSE[0]]).rows
    assert rows[0] == ("lines", "4", "200", "54.25 ± 0.35", "2", "**-0.75**")
    assert [row[-1] for row in rows[1:]] == ["+1.00", "-"]


@pytest.mark.parametrize(
    "config",
    [
        {"conv": "rotate2p"},
        {"conv": "conv3x3", "width": 0.6875},
        {"conv": "conv3x3", "convert_taps": "profile"},
        {"factory": "mine:model", "convert_taps": "free"},
        {"factory": "mine:model"},
    ],
)
def test_a_model_is_called_as_before_in_another_way(config: dict[str, Any]) -> None:
    found = make_config("digits", changes=config)
    old = found.factory or f"{found.model} with {found.conv}"
    old += "" if found.width == 1 else f" of width {found.width:g}"
    old += "" if found.convert_taps is None else f", converted to {found.convert_taps} taps"
    now = f"{found.factory or found.model}, {layers_label(found)}"
    assert current_label(old) == current_label(now) == now


def test_new_runs_join_a_row_and_all_lines_are_compared_anew() -> None:
    dense = [row("a", 100, 50.0, dense=True), row("a", 400, 60.0, dense=True, bits=8)]
    rows = with_differences([*dense, row("lines", 200, 54.0, 55.0, runs=("lines-0", "lines-1"))])
    assert merge_sizes(rows, []) == rows
    assert merge_sizes([], rows) == rows
    third = row("lines", 230, 58.0, runs=("lines-2",))
    eight = row("lines", 300, 60.0, bits=8, runs=("lines-2",))
    found = merge_sizes(rows, [third, eight])
    joined = row("lines", 210, 54.0, 55.0, 58.0, runs=("lines-0", "lines-1", "lines-2"))
    assert found == with_differences([*dense, joined, eight])
    better = row("b", 100, 80.0, dense=True, runs=("dense-0",))
    (above,) = [entry.above_dense for entry in merge_sizes(found, [better]) if entry.bytes == 210]
    assert above == pytest.approx(joined.accuracy.mean - 80)


def test_runs_measured_again_take_the_place_of_all_of_the_row_or_are_refused() -> None:
    there = [row("lines", 200, 54.0, 55.0, runs=("lines-0", "lines-1"))]
    again = [row("lines", 201, 56.0, 57.0, 58.0, runs=("lines-0", "lines-1", "lines-2"))]
    assert merge_sizes(there, again) == again
    with pytest.raises(RunError, match="lines at 4 bits was measured with lines-0, lines-1: measure all of them again"):
        merge_sizes(there, [row("lines", 201, 56.0, 57.0, runs=("lines-1", "lines-2"))])
    with pytest.raises(RunError, match="sizes on digits and mnist make no table"):
        SizesTable("digits", tuple(there)).merged(SizesTable("mnist", tuple(again)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("bytes"), "sizes.json: expected the key bytes, found none"),
        (lambda row: row.update(bits="four"), "sizes.json: bits must be a valid integer, found 'four'"),
        (lambda row: row.pop("dataset"), "sizes.json: expected a row with a dataset, found {'label'"),
    ],
)
def test_a_damaged_table_is_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    table = SizesTable("digits", (row("lines", 200, 54.0, runs=("lines-0",)),))
    assert SizesTable.from_json(json.loads(json.dumps(table.to_json())), "sizes.json") == table
    values = table.to_json()
    change(values[0])
    with pytest.raises(RunError, match=message):
        SizesTable.from_json(values, "sizes.json")
    with pytest.raises(RunError, match=r"sizes\.json has no row"):
        SizesTable.from_json([], "sizes.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        from rotateconv.models import MODELS

        patch.setitem(MODELS, "resnet20", Tiny)  # a name that pack and load_run find
        for name, changes in {
            "dense-0": {"conv": "conv3x3"},
            "dense-1": {"conv": "conv3x3", "seed": 1},
            "lines": {"conv": "rotate2p"},
            "rounded": {"conv": "rotate2p", "qat": True, "weight_bits": 3},
            "masked": {"conv": "mask4"},
        }.items():
            fit(tiny_config(model="resnet20", epochs=1, **changes), folder / name, data=data)
        yield [folder / name for name in ("dense-0", "dense-1", "lines", "rounded", "masked")]


@pytest.mark.slow
def test_every_row_is_what_its_bits_give(runs: list[Path], data: ImageData) -> None:
    rows = measure_sizes(runs, data, (32, 4))
    assert {found.label for found in rows if found.dense} == {"resnet20, conv3x3"}
    keys = [(found.label, found.bits, found.qat, len(found.accuracies)) for found in rows]
    assert sorted(keys) == sorted(
        [
            ("resnet20, conv3x3", 32, False, 2),
            ("resnet20, conv3x3", 4, False, 2),
            ("resnet20, rotate2p", 32, False, 1),
            ("resnet20, rotate2p", 4, False, 1),
            ("resnet20, rotate2p", 3, True, 1),
            ("resnet20, mask4", 32, False, 1),
            ("resnet20, mask4", 4, False, 1),
        ]
    )
    assert {found.runs for found in rows} == {("dense-0", "dense-1"), ("lines",), ("rounded",), ("masked",)}
    by_key = {(found.label.split()[-1], found.bits): found for found in rows}
    trained = load_run(runs[2])
    part = Batches(data.train, len(data.train), mean=data.mean, std=data.std)
    for bits, model in ((32, trained.model), (4, quantize(trained.model, 4, 5, calibration=part))):
        expected = evaluate_model(model, trained.config.execution, trained.data, data.test).accuracy
        assert by_key["rotate2p", bits].accuracies == (expected,)
    whole = sum(t.numel() * t.element_size() for t in trained.model.state_dict().values())
    assert by_key["rotate2p", 32].bytes == whole
    assert by_key["conv3x3", 32].bytes > by_key["conv3x3", 4].bytes
    assert by_key["rotate2p", 3].accuracy.mean == read_json(runs[3] / "summary.json")["test_accuracy"]
    tests = [read_json(run / "summary.json")["test_accuracy"] for run in runs[:2]]
    assert by_key["conv3x3", 32].accuracies == tuple(tests)


def test_files_hold_every_row(runs: list[Path], data: ImageData, tmp_path: Path) -> None:
    rows = measure_sizes(runs, data, (32, 8))
    write_sizes(SizesTable(data.name, tuple(rows)), tmp_path)
    records = json.loads((tmp_path / "sizes.json").read_text())
    assert SizesTable.from_json(records, "sizes.json") == SizesTable(data.name, tuple(rows))
    assert {"dataset", "accuracy_mean", "accuracy_std", "n", "above_dense", "qat"} <= records[0].keys()
    text = (tmp_path / "sizes.md").read_text()
    for found in sizes_table(rows).rows:
        assert f"| {' | '.join(found)} |" in text
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes(runs: list[Path], data: ImageData) -> None:
    with pytest.raises(ValueError, match="bits of a weight must be 32 or from 1 to 8, not 16"):
        measure_sizes(runs, data, (16,))
    other = ImageData("others", data.classes, data.train, data.validation, data.test, data.mean, data.std, data.flip)
    with pytest.raises(ValueError, match="was trained on digits, not on others: compare models of one data set"):
        measure_sizes(runs, other, (32,))


def test_the_models_are_not_changed(runs: list[Path], data: ImageData) -> None:
    before = load_run(runs[2]).model.state_dict()
    measure_sizes(runs[2:3], data, (2,))
    after = load_run(runs[2]).model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
