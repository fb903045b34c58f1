"""Laws of the learning-rate schedules, against torch's own schedulers where it has them."""

import dataclasses
import math
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from rotateconv import RotateConv2d
from rotateconv.lab.config import PRESETS, RunConfig
from rotateconv.lab.train.schedule import build_optimizer, factor, set_learning_rate

SCHEDULES = get_args(get_type_hints(RunConfig)["schedule"])
STEPS = 40


def torch_factors(scheduler: type, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = scheduler(optimizer, **options)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def factors(config: RunConfig, steps: int = STEPS) -> list[float]:
    return [factor(step, steps, config.optimization) for step in range(steps)]


def test_constant_is_one() -> None:
    assert factors(RunConfig(schedule="constant")) == [1.0] * STEPS


def test_steps_is_torchs_multi_step() -> None:
    expected = torch_factors(torch.optim.lr_scheduler.MultiStepLR, milestones=[10, 30], gamma=0.2)
    config = RunConfig(schedule="steps", milestones=(0.25, 0.75), gamma=0.2)
    assert factors(config) == pytest.approx(expected, rel=1e-12)


def test_cosine_is_torchs_cosine_annealing() -> None:
    expected = torch_factors(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS)
    assert factors(RunConfig(schedule="cosine")) == pytest.approx(expected, rel=1e-9)


def test_one_cycle_rises_and_falls_in_two_straight_lines() -> None:
    config = RunConfig(schedule="one-cycle", warmup=0.25)
    found = [*factors(config), factor(STEPS, STEPS, config.optimization)]
    rise = [b - a for a, b in pairwise(found[:11])]
    fall = [b - a for a, b in pairwise(found[10:])]
    assert found[0] == 0.04
    assert found[10] == 1.0
    assert found[-1] == 0.0
    assert rise == pytest.approx([0.96 / 10] * 10)
    assert fall == pytest.approx([-1 / 30] * 30)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.4])
def test_every_schedule_stretches_to_the_run(schedule: str, warmup: float) -> None:
    config = RunConfig(schedule=schedule, warmup=warmup)
    short, long = factors(config, 20), factors(config, 60)
    assert long[::3] == pytest.approx(short, abs=1e-12)
    assert all(0 < value <= 1 for value in long)
    after = [value for step, value in enumerate(long) if step >= warmup * 60]
    assert after == sorted(after, reverse=True)
    assert after[0] == 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_moves_at_every_step(name: str) -> None:
    assert all(math.isfinite(value) and value > 0 for value in factors(PRESETS[name], 1000))


@pytest.mark.parametrize("optimizer", get_args(get_type_hints(RunConfig)["optimizer"]))
def test_groups_follow_the_schedule_together(optimizer: str) -> None:
    model = nn.Sequential(RotateConv2d(2, 4), nn.BatchNorm2d(4))
    config = RunConfig(optimizer=optimizer, lr=0.3, weight_decay=0.01, angle_lr_scale=2.0, momentum=0.7)
    built = build_optimizer(model, config.optimization)
    groups = {group["name"]: group for group in built.param_groups}
    assert any(p is model[0].angle for p in groups["angles"]["params"])
    assert groups["weights"]["weight_decay"] == 0.01
    assert groups["angles"]["weight_decay"] == 0
    decayed = build_optimizer(model, dataclasses.replace(config, angle_weight_decay=0.02).optimization)
    assert [group["weight_decay"] for group in decayed.param_groups if group["name"] == "angles"] == [0.02]
    set_learning_rate(built, 0.5)
    assert groups["weights"]["lr"] == pytest.approx(0.15)
    assert groups["angles"]["lr"] == pytest.approx(0.3)
    set_learning_rate(built, 1.0)  # from the initial rate, not from the last
    assert groups["angles"]["lr"] == pytest.approx(0.6)


def test_optimizers_take_momentum_and_nesterov() -> None:
    model = nn.Linear(2, 2)
    config = RunConfig(momentum=0.7, nesterov=True)
    sgd = build_optimizer(model, config.optimization).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"], sgd["dampening"]) == (0.7, True, 0)
    adamw = build_optimizer(model, dataclasses.replace(config, nesterov=False, optimizer="adamw").optimization)
    assert adamw.param_groups[0]["betas"] == (0.7, 0.999)
