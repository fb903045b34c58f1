"""RotateConfig: which options exclude each other, and that all that do not survive every way that a layer can go."""

import copy
import json
import pickle
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rotateconv import RotateConfig, RotateConv2d, build_model, convert, load_packed, pack, quantize
from rotateconv.convert.convert import convert_architecture, convert_to
from rotateconv.convert.layers import added_layers, put_layers, rotate_configs

CHOICES: dict[str, tuple[Any, ...]] = {
    "taps": ("free", "shared", "profile"),
    "path": ("circle", "square"),
    "angle_groups": (None, 1, 2),
    "learn_angle": (True, False),
    "form": ("auto", "dense", "separable"),
    "learn_profile": (True, False),
}
EVERY = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]


def is_legal(options: dict[str, Any]) -> bool:
    separable = options["angle_groups"] is not None and options["taps"] != "free"
    return (options["form"] != "separable" or separable) and (options["learn_profile"] or options["taps"] == "profile")


LEGAL = [RotateConfig(**options) for options in EVERY if is_legal(options)]


def test_legal_and_illegal_combinations() -> None:
    assert 0 < len(LEGAL) < len(EVERY)
    for options in EVERY:
        if not is_legal(options):
            with pytest.raises(ValueError, match=r'^(learn_profile=False|form="separable") needs '):
                RotateConfig(**options)


@pytest.mark.parametrize("config", LEGAL, ids=str)
def test_options_survive_every_round_trip(config: RotateConfig, tmp_path: Path) -> None:
    options = vars(config)
    layer = RotateConv2d(4, 8, 3, **options)
    assert layer.config == config
    assert {name: getattr(layer, name) for name in options} == options
    assert eval(repr(layer), {"RotateConv2d": RotateConv2d}).config == config
    assert RotateConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(layer)).config == copy.deepcopy(layer).config == config
    conv = layer.fuse()
    assert RotateConv2d.like(conv, config).config == config
    assert RotateConv2d.from_conv(conv, **options).config == config
    assert quantize(layer).config == config

    def own() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))

    model, architecture = own(), own()
    convert(model, **options)
    convert_architecture(architecture, config)
    assert rotate_configs(model) == rotate_configs(architecture) == {"1": config}
    pack(model, tmp_path / "own")
    assert rotate_configs(load_packed(tmp_path / "own", model=own())) == {"1": config}


@pytest.mark.slow
@pytest.mark.parametrize("config", LEGAL[::3], ids=str)
def test_options_survive_in_a_model_of_build_model(config: RotateConfig, tmp_path: Path) -> None:
    model = build_model("resnet20", "conv3x3", width=0.25)
    convert_architecture(model, config)
    pack(model, tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed")
    assert len(rotate_configs(model)) == 18
    assert rotate_configs(loaded) == rotate_configs(model)
    assert loaded.build_arguments == model.build_arguments


@pytest.mark.parametrize("config", LEGAL[::5], ids=str)
def test_options_survive_on_the_hub(config: RotateConfig, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from rotateconv.hub import RotateConvNet

    model = build_model("resnet20", "rotate2p-g4", width=0.25)
    put_layers(model, {"stages.1.0.conv2": config})
    RotateConvNet.from_model(model).save_pretrained(tmp_path)
    loaded = RotateConvNet.from_pretrained(tmp_path)
    assert rotate_configs(loaded.model) == rotate_configs(model)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(images), model.eval()(images))


def test_another_form_of_a_layer_is_packed(tmp_path: Path) -> None:
    model = build_model("resnet20", "rotate2p-g4", width=0.25)
    name = "stages.0.0.conv1"
    separable = RotateConfig("profile", angle_groups=4, form="separable")
    put_layers(model, {name: separable})
    assert added_layers(model, build_model("resnet20", "rotate2p-g4", width=0.25)) == {name: separable}
    pack(model, tmp_path / "model")
    assert load_packed(tmp_path / "model").get_submodule(name).form == "separable"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"taps": "rotate4"}, "taps must be one of 'free', 'shared', 'profile', got 'rotate4'"),
    ({"taps": ["free"]}, "taps must be one of 'free', 'shared', 'profile', got ['free']"),
    ({"path": "ellipse"}, "path must be one of 'circle', 'square', got 'ellipse'"),
    ({"form": "fast"}, "form must be one of 'auto', 'dense', 'separable', got 'fast'"),
    ({"angle_groups": 0}, "angle_groups must be a positive integer, got 0"),
    ({"angle_groups": "2"}, "angle_groups must be a positive integer, got '2'"),
    ({"learn_angle": 1}, "learn_angle must be True or False, got 1"),
    ({"taps": "profile", "learn_profile": None}, "learn_profile must be True or False, got None"),
    ({"learn_profile": False}, "learn_profile=False needs taps=\"profile\", got taps='free': leave it out"),
    (
        {"form": "separable"},
        'form="separable" needs angle_groups, taps="shared" or taps="profile", got angle_groups=None and taps=\'free\'',
    ),
    (
        {"line": "free", "taps": "free"},
        "the options of a RotateConv2d are taps, path, angle_groups, learn_angle, form, learn_profile, got line, taps",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RotateConfig.from_dict(options)


def test_what_is_no_mapping() -> None:
    with pytest.raises(ValueError, match=r"the options of a RotateConv2d are taps, .*, got list"):
        RotateConfig.from_dict(["taps"])  # type: ignore[arg-type]


def test_what_a_layer_refuses() -> None:
    grouped = RotateConfig("shared", angle_groups=4, form="separable")
    with pytest.raises(ValueError, match="out_channels must be divisible by angle_groups, got out_channels=6 and"):
        RotateConv2d.like(nn.Conv2d(4, 6, 3), grouped)
    with pytest.raises(ValueError, match='form="separable" needs groups=1, got groups=2'):
        RotateConv2d.like(nn.Conv2d(4, 8, 3, groups=2), grouped)


def test_convert_leaves_what_cannot_have_the_options() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2))
    report = convert_to(model, RotateConfig("shared", angle_groups=4, form="separable"))
    assert [entry.reason for entry in report.entries] == ["the stem", None, '2 groups, where form="separable" needs 1']


def test_files_have_the_youngest_options_only_where_they_say_something() -> None:
    assert list(RotateConfig().to_dict()) == ["taps", "path", "angle_groups", "learn_angle"]
    held = RotateConfig("profile", angle_groups=np.int64(2), form="dense", learn_profile=False)
    assert json.loads(json.dumps(held.to_dict())) == {
        "taps": "profile",
        "path": "circle",
        "angle_groups": 2,
        "learn_angle": True,
        "form": "dense",
        "learn_profile": False,
    }


def test_layers_that_cannot_be_put() -> None:
    model = nn.Sequential(nn.ReLU(), RotateConv2d(2, 4))
    with pytest.raises(ValueError, match=r"^0 should be a convolution to make a RotateConv2d of, not a ReLU$"):
        put_layers(model, {"0": RotateConfig()})
    kept, state = model[1], torch.get_rng_state()
    put_layers(model, {"1": RotateConfig()})
    assert model[1] is kept
    put_layers(model, {"1": RotateConfig("shared")})
    assert model[1].taps == "shared"
    assert torch.equal(torch.get_rng_state(), state)
