"""Laws of the analysis: its distances and tests are the textbook's, and a shuffle changes the angles alone."""

import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from rotateconv.errors import RunError
from rotateconv.lab.cli import app
from rotateconv.lab.data import images
from rotateconv.lab.study.angles import (
    analyse,
    analyse_angles,
    histogram,
    kuiper_probability,
    lines_of,
    shuffled,
    start_net,
    uniformity,
)
from rotateconv.lab.study.records import read_run
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.loop import fit
from rotateconv.lab.train.run_folder import Record, read_json, write_json
from rotateconv.models import MODELS
from rotateconv.nn.conv import RotateConv2d
from small import Tiny, small_digits, tiny_config

TURN = 2 * math.pi


def test_kuiper_by_hand() -> None:
    # F - u is largest just after the second point, u - F just before the fourth: 2/4 - 0.2 and 0.9 - 3/4.
    angles = torch.tensor([0.1, 0.2, 0.6, 0.9]) * TURN
    assert uniformity(angles, TURN)["kuiper"] == pytest.approx(0.3 + 0.15)


def test_kuiper_does_not_see_where_the_turn_begins() -> None:
    angles = torch.rand(200, dtype=torch.float64) ** 2 * TURN
    found = [uniformity(angles + shift, TURN)["kuiper"] for shift in (0.0, 1.0, 3.3, -TURN, 40.0)]
    assert found == pytest.approx([found[0]] * 5)


@pytest.mark.parametrize(("scaled", "probability"), [(1.620, 0.10), (1.747, 0.05), (1.862, 0.025), (2.001, 0.01)])
def test_kuiper_at_the_tabled_points(scaled: float, probability: float) -> None:
    assert kuiper_probability(scaled) == pytest.approx(probability, rel=0.01)


def test_kuiper_probability_falls_from_one() -> None:
    values = [kuiper_probability(0.02 * step) for step in range(300)]
    assert values[0] == 1.0
    assert values[-1] < 1e-20
    assert all(0 <= after <= before + 1e-9 for before, after in itertools.pairwise(values))


def test_uniform_angles_are_rejected_as_often_as_they_should_be() -> None:
    draws = [uniformity(torch.rand(80) * math.pi, math.pi)["probability"] for _ in range(1000)]
    for level in (0.05, 0.2, 0.5):
        share = sum(value < level for value in draws) / 1000
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 1000), level


def test_what_gathers_is_rejected_and_told_where() -> None:
    quarters = torch.randint(4, (2000,)) * (TURN / 4)
    for centre, sign in ((0.0, 1), (math.pi / 4, -1)):
        found = uniformity(quarters + centre + 0.2 * torch.randn(2000), TURN)
        assert found["probability"] < 1e-6
        assert sign * found["axes"] > 0.5
    even = uniformity(torch.rand(2000) * TURN, TURN)
    assert abs(even["axes"]) < 4 / math.sqrt(4000)


def test_a_histogram_counts_every_angle() -> None:
    angles = torch.tensor([0.0, 0.01, math.pi, -0.01, TURN, 3 * TURN - 1e-9])
    counts = histogram(angles, TURN)
    assert (sum(counts), counts[0], counts[18], counts[35]) == (6, 3, 1, 2)
    assert histogram(angles, math.pi)[0] == 4


def two_layers() -> nn.Sequential:
    return nn.Sequential(RotateConv2d(4, 6, 3), nn.ReLU(), RotateConv2d(6, 4, 3, taps="shared"))


def test_a_shuffle_permutes_the_angles_alone_and_ends() -> None:
    net = two_layers()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, last = lines_of(net).values()
    with shuffled([first], torch.Generator().manual_seed(0)):
        assert not torch.equal(first.angle, before["0.angle"])
        assert torch.equal(first.angle.flatten().sort().values, before["0.angle"].flatten().sort().values)
        same = [name for name, tensor in net.state_dict().items() if torch.equal(tensor, before[name])]
        assert set(before) - set(same) == {"0.angle"}
        assert torch.equal(last.angle, before["2.angle"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_movement_is_the_distance_of_every_angle() -> None:
    start, end = two_layers(), two_layers()
    end.load_state_dict(start.state_dict())
    moved = torch.linspace(-1, 3, 24).view(6, 4)
    with torch.no_grad():
        end[0].angle += moved
    seen: list[Tensor] = []

    def accuracy() -> float:
        seen.append(torch.cat([layer.angle.detach().flatten() for layer in lines_of(end).values()]))
        return float(len(seen))

    found = analyse_angles(start, end, accuracy, draws=2)
    first, last = found["layers"]
    assert (first["name"], last["name"], found["period"]) == ("0", "2", TURN)
    assert first["movement"]["mean"] == pytest.approx(moved.abs().mean().item(), rel=1e-5)
    assert first["movement"]["max"] == pytest.approx(3.0, rel=1e-5)
    assert last["movement"] == {"mean": 0.0, "max": 0.0}
    assert found["all"]["movement"]["mean"] == pytest.approx(moved.abs().sum().item() / 48, rel=1e-5)
    assert found["all"]["slices"] == sum(found["all"]["histogram"]["after"]) == 48
    # Twice each layer, twice both: the accuracies 1 to 6, of six different orders.
    shuffles = [layer["shuffled"]["mean"] for layer in (first, last, found["all"])]
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
    net = nn.Sequential(RotateConv2d(4, 6, 3, taps="shared"))
    assert analyse_angles(net, net, lambda: 0.0)["period"] == math.pi


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", partial(Tiny, norm=False))
    monkeypatch.setattr(images, "load_data", lambda *args, **kwargs: small_digits())


def trained(folder: Path, **changes: Any) -> Path:
    fit(tiny_config(**changes), folder, data=small_digits())
    return folder


def test_the_start_of_a_run_is_built_again(small: None, tmp_path: Path) -> None:
    run = load_run(trained(tmp_path / "run", lr=1e-30, seed=3))
    start = lines_of(start_net(run.config, run.data))["conv"]
    assert torch.equal(start.angle, lines_of(run.model)["conv"].angle)
    state = torch.get_rng_state()
    start_net(run.config, run.data)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trained_run(small: None, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    found = analyse(run, small_digits(), draws=2)
    last = read_json(run / "summary.json")["last"]
    assert found["validation_accuracy"] == pytest.approx(last["validation_accuracy"])
    assert found["angles"]["all"]["movement"]["mean"] == pytest.approx(last["angle_movement_mean"], rel=1e-4)
    assert found["angles"]["all"]["movement"]["max"] == pytest.approx(last["angle_movement_max"], rel=1e-4)
    assert last["angle_movement_mean"] > 0.001
    assert [layer["name"] for layer in found["angles"]["layers"]] == ["conv"]
    assert 0 < found["packed"]["bytes"] < 4 * read_json(run / "summary.json")["parameters"]
    assert not found["validation_seen"]
    assert analyse(run, small_digits(), draws=2) == found


def test_a_net_without_angles_is_packed_alone(small: None, tmp_path: Path) -> None:
    found = analyse(trained(tmp_path / "run", conv="conv3x3", validation=False), small_digits())
    assert found["angles"] is None
    assert found["validation_seen"]
    assert found["packed"]["bytes"] > 0


def test_another_start_or_other_images_are_refused(small: None, tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    with pytest.raises(RunError, match="was trained on other images of digits: give it the same --data-dir"):
        analyse(run, small_digits(validation=39))
    summary: Record = read_json(run / "summary.json")
    summary["last"]["angle_movement_mean"] *= 1.1
    write_json(run / "summary.json", summary)
    with pytest.raises(RunError, match=r"analyse it with the versions that its environment\.json names"):
        analyse(run, small_digits())


def test_by_the_command(small: None, tmp_path: Path) -> None:
    for conv in ("rotate2p", "conv3x3"):
        trained(tmp_path / "study" / "runs" / conv, conv=conv)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "study"), "--analysis", "--draws", "1"])
    assert result.exit_code == 0, result.output
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["conv3x3", "rotate2p"]
    run = tmp_path / "study" / "runs" / "rotate2p"
    assert (run / "analysis.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "study" / "runs" / "conv3x3" / "analysis.png").exists()
    found = json.loads((run / "analysis.json").read_text())
    recorded = read_run(run)["analysis"]
    assert recorded["angles"]["all"]["after"]["kuiper"] == pytest.approx(
        found["angles"]["all"]["after"]["kuiper"], rel=1e-5
    )
    again = CliRunner().invoke(app, ["report", str(tmp_path), "--analysis"])
    assert again.exit_code == 2
    assert "--analysis needs a finished run: name its folder" in again.stderr
