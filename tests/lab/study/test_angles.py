"""Laws of the analysis: it measures what it says, and a shuffle changes the angles alone."""

import dataclasses
import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from commands import invoke
from rotateconv.errors import RunError
from rotateconv.lab.data import images
from rotateconv.lab.study.angles import (
    Movement,
    analyse,
    analyse_angles,
    histogram,
    mean_cos4,
    shuffled,
    starting_model,
)
from rotateconv.lab.study.study_record import read_run
from rotateconv.lab.train.build import rotate_layers
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import append_record, keep_records, read_records, read_summary
from rotateconv.models import MODELS
from rotateconv.nn.conv import RotateConv2d
from small import Tiny, small_digits, tiny_config

TURN = 2 * math.pi


def test_the_mean_of_cos4_is_what_the_caption_says() -> None:
    quarters = torch.randint(4, (2000,)) * (TURN / 4)
    for center, sign in ((0.0, 1), (math.pi / 4, -1)):
        assert sign * mean_cos4(quarters + center + 0.2 * torch.randn(2000)) > 0.5
    assert mean_cos4(quarters) == pytest.approx(1.0)
    draws = [mean_cos4(torch.rand(80) * TURN) for _ in range(1000)]
    assert statistics.fmean(draws) == pytest.approx(0.0, abs=4 / math.sqrt(160_000))
    assert statistics.stdev(draws) == pytest.approx(1 / math.sqrt(160), rel=0.1)


def test_a_histogram_counts_every_angle() -> None:
    angles = torch.tensor([0.0, 0.01, math.pi, -0.01, TURN, 3 * TURN - 1e-9])
    counts = histogram(angles, TURN)
    assert (sum(counts), counts[0], counts[18], counts[35]) == (6, 3, 1, 2)
    assert histogram(angles, math.pi)[0] == 4


def two_layers() -> nn.Sequential:
    return nn.Sequential(RotateConv2d(4, 6, 3), nn.ReLU(), RotateConv2d(6, 4, 3, taps="shared"))


def test_a_shuffle_permutes_the_angles_alone_and_ends() -> None:
    model = two_layers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, last = rotate_layers(model).values()
    with shuffled([first], torch.Generator().manual_seed(0)):
        assert not torch.equal(first.angle, before["0.angle"])
        assert torch.equal(first.angle.flatten().sort().values, before["0.angle"].flatten().sort().values)
        same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
        assert set(before) - set(same) == {"0.angle"}
        assert torch.equal(last.angle, before["2.angle"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_movement_is_the_distance_of_every_angle() -> None:
    start, end = two_layers(), two_layers()
    end.load_state_dict(start.state_dict())
    moved = torch.linspace(-1, 3, 24).view(6, 4)
    with torch.no_grad():
        end[0].angle += moved
    seen: list[Tensor] = []

    def accuracy() -> float:
        seen.append(torch.cat([layer.angle.detach().flatten() for layer in rotate_layers(end).values()]))
        return float(len(seen))

    found = analyse_angles(start, end, accuracy, draws=2)
    first, last = found.layers
    assert (first.name, last.name, found.period) == ("0", "2", TURN)
    assert first.movement.mean == pytest.approx(moved.abs().mean().item(), rel=1e-5)
    assert first.movement.max == pytest.approx(3.0, rel=1e-5)
    assert last.movement == Movement(0.0, 0.0)
    assert found.all.movement.mean == pytest.approx(moved.abs().sum().item() / 48, rel=1e-5)
    assert found.all.histogram is not None
    assert found.all.slices == sum(found.all.histogram.after) == 48
    # Twice each layer, twice both: the accuracies 1 to 6, of six different orders.
    shuffles = [layer.shuffled.mean for layer in (first, last, found.all)]
    assert shuffles == [1.5, 3.5, 5.5]
    assert [torch.equal(angles[:24], end[0].angle.flatten()) for angles in seen] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    assert [torch.equal(angles[24:], end[2].angle.flatten()) for angles in seen] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert not torch.equal(seen[0], seen[1])


def test_shared_taps_have_half_the_period() -> None:
    model = nn.Sequential(RotateConv2d(4, 6, 3, taps="shared"))
    assert analyse_angles(model, model, lambda: 0.0).period == math.pi


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", partial(Tiny, norm=False))
    monkeypatch.setattr(images, "load_data", lambda *args, **kwargs: small_digits())


def trained(folder: Path, **changes: Any) -> Path:
    fit(tiny_config(**changes), folder, data=small_digits())
    return folder


def test_the_start_of_a_run_is_built_again(small: None, tmp_path: Path) -> None:
    run = load_run(trained(tmp_path / "run", lr=1e-30, seed=3))
    start = rotate_layers(starting_model(run.config, run.data))["conv"]
    assert torch.equal(start.angle, rotate_layers(run.model)["conv"].angle)
    state = torch.get_rng_state()
    starting_model(run.config, run.data)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trained_run(small: None, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    found = analyse(run, small_digits(), draws=2)
    last = read_records(run)[-1]
    assert found.angles is not None
    assert last.angle_movement_mean is not None
    assert found.validation_accuracy == pytest.approx(last.validation_accuracy)
    assert found.angles.all.movement.mean == pytest.approx(last.angle_movement_mean, rel=1e-4)
    assert found.angles.all.movement.max == pytest.approx(last.angle_movement_max, rel=1e-4)
    assert last.angle_movement_mean > 0.001
    assert [layer.name for layer in found.angles.layers] == ["conv"]
    assert 0 < found.packed.bytes < 4 * read_summary(run).parameters
    assert not found.validation_seen
    assert analyse(run, small_digits(), draws=2) == found


def test_a_model_without_angles_is_packed_alone(small: None, tmp_path: Path) -> None:
    found = analyse(trained(tmp_path / "run", conv="conv3x3", validation=False), small_digits())
    assert found.angles is None
    assert found.validation_seen
    assert found.packed.bytes > 0


def test_another_start_or_other_images_are_refused(small: None, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    with pytest.raises(RunError, match="was trained on other images of digits: give it the same --data-dir"):
        analyse(run, small_digits(validation=39))
    *records, last = read_records(run)
    assert last.angle_movement_mean is not None
    keep_records(run, len(records))
    append_record(run, dataclasses.replace(last, angle_movement_mean=1.1 * last.angle_movement_mean))
    with pytest.raises(RunError, match=r"analyse it with the versions that its environment\.json names"):
        analyse(run, small_digits())


@pytest.mark.slow
def test_by_the_command(small: None, tmp_path: Path) -> None:
    for conv in ("rotate2p", "conv3x3"):
        trained(tmp_path / "study" / "runs" / conv, conv=conv)
    result = invoke(["analyse", str(tmp_path / "study"), "--draws", "1"])
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["conv3x3", "rotate2p"]
    run = tmp_path / "study" / "runs" / "rotate2p"
    assert (run / "analysis.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "study" / "runs" / "conv3x3" / "analysis.png").exists()
    assert (run / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((run / "analysis.json").read_text())
    recorded = read_run(run).analysis
    assert recorded is not None
    assert recorded.angles is not None
    assert recorded.angles.all.after.axes == pytest.approx(found["angles"]["all"]["after"]["axes"], rel=1e-5)
    again = invoke(["analyse", str(tmp_path)])
    assert again.exit_code == 2
    assert "there is no finished run in" in again.stderr
