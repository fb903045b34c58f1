"""Laws of a study's plan: the dense model first, and beside each RotateConv model the dense one nearest to its size."""

import dataclasses
from typing import Any

import pytest

from rotateconv.errors import ConfigError
from rotateconv.lab.config import make_config
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.study.plan import BASELINE, Study, contrasts_from, plan
from rotateconv.models import build_model
from small import small_digits

CIFAR = dataclasses.replace(DataDescription.of(small_digits()), name="cifar10", input_shape=(3, 32, 32))


def study(*models: str) -> Study:
    return Study(make_config("digits"), models, ("rotate4", BASELINE, "rotate2", "rotate2p"), 3, True)


@pytest.mark.slow
def test_the_dense_model_stands_first_and_narrowed_ones_follow_what_they_match() -> None:
    entries = plan(study("resnet20", "densenet40"), CIFAR)
    found = [(e.config.model, e.config.conv, round(e.config.width, 4), e.equal_to) for e in entries]
    assert found[:6] == [
        ("resnet20", "conv3x3", 1.0, None),
        ("resnet20", "rotate4", 1.0, None),
        ("resnet20", "conv3x3", 11 / 16, "rotate4"),
        ("resnet20", "rotate2", 1.0, None),
        ("resnet20", "conv3x3", 8 / 16, "rotate2"),
        ("resnet20", "rotate2p", 1.0, None),  # its narrowed model is rotate2's
    ]
    assert found[6][:2] == ("densenet40", "conv3x3")
    assert all(entry.config.model == "densenet40" for entry in entries[6:])
    assert entries[2].run(1) == "resnet20-conv3x3-w0.6875-seed1"


@pytest.mark.parametrize("model", ["resnet20", "densenet40"])
def test_no_other_width_is_nearer_to_the_size_that_a_narrowed_model_shall_have(model: str) -> None:
    def size(conv: str, width: float) -> int:
        return sum(p.numel() for p in build_model(model, conv, 10, 3, width).parameters())

    narrowed = [entry for entry in plan(study(model), CIFAR) if entry.equal_to is not None]
    assert narrowed
    for entry in narrowed:
        assert entry.equal_to is not None
        target, step = size(entry.equal_to, 1.0), 1 / (16 if model == "resnet20" else 12)
        error = abs(size(BASELINE, entry.config.width) - target)
        for width in (entry.config.width - step, entry.config.width + step):
            assert error <= abs(size(BASELINE, width) - target)


def test_controls_without_an_angle_get_no_narrowed_model() -> None:
    base = Study(make_config("digits"), ("resnet20",), (BASELINE, "mask4", "separable"), 1, True)
    assert [entry.equal_to for entry in plan(base, CIFAR)] == [None, None, None]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": ()}, "models must be one name or more, each once, not none"),
        ({"convs": ("line", "line")}, "convs must be one name or more, each once, not line, line"),
        ({"seeds": 0}, "seeds must be a whole number from 1 to 1000, not 0"),
        ({"contrasts": {"rotate4": ("maks4",)}}, "contrasts names maks4, which is not in convs: choose from conv3x3"),
    ],
)
def test_a_study_without_runs_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(make_config("digits"), **values)


@pytest.mark.parametrize("value", [["rotate4"], {"rotate4": "mask4"}, {"rotate4": [4]}])
def test_contrasts_of_another_form_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"contrasts must be lists of names such as rotate4 = \[\"mask4\"\], not "):
        contrasts_from(value)
