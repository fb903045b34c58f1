"""Laws of configurations: every preset is whole, round trips are exact, mistakes are named."""

import dataclasses
import json
import re
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt

from rotateconv.errors import ConfigError
from rotateconv.lab.config import PRESETS, RunConfig, differences, from_json, make_config, to_json
from rotateconv.lab.keys import expected, field_of, kinds_of
from rotateconv.lab.run_config import PANELS, QAT_KEYS
from rotateconv.lab.train.schedule import build_optimizer
from rotateconv.models import CONVS, MODELS, build_model
from rotateconv.quantization.bits import Bits

FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}

# A value of each field that differs from every preset's.
OTHER = {
    "recipe": "quick",
    "model": "resnet56",
    "conv": "rotate2p",
    "width": 0.3,
    "growth": 7,
    "dropout": 0.123,
    "factory": "package.module:function",
    "convert_taps": "shared",
    "convert_path": "square",
    "convert_angle_groups": 4,
    "convert_learn_angle": False,
    "convert_form": "separable",
    "convert_learn_profile": False,
    "convert_fit": "outputs",
    "convert_only": "layer3.*",
    "source": "runs/dense",
    "prune": 0.5,
    "data": "folder",
    "data_dir": "/a b/ü",
    "image_size": 48,
    "svhn_extra": True,
    "skip_bad_images": True,
    "max_image_pixels": 1000,
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "augment": "fast",
    "validation": False,
    "optimizer": "adamw",
    "lr": 1 / 3,
    "momentum": 0.8,
    "nesterov": True,
    "weight_decay": 1e-7,
    "angle_lr_scale": 3.0,
    "angle_grad_scale": 1.0,
    "angle_weight_decay": 1e-6,
    "angle_init": "axes",
    "profile_init": "bank",
    "epochs": 17,
    "batch_size": 33,
    "schedule": "cosine",
    "milestones": (0.1, 0.2, 0.7),
    "gamma": 0.2,
    "warmup": 0.07,
    "label_smoothing": 0.05,
    "clip_grad_norm": 2.0,
    "ema_decay": 0.99,
    "teacher": "runs/teacher",
    "teacher_weight": 0.25,
    "teacher_temperature": 3.0,
    "qat": True,
    "weight_bits": 3,
    "angle_bits": 6,
    "dense_bits": 7,
    "weight_levels": 8,
    "profile_bits": 5,
    "layer_bits": ("stages.2.*=2+3",),
    "qat_scales": "learned",
    "precision": "bf16",
    "channels_last": True,
    "compile": True,
    "cuda_graph": False,
    "seed": 2**62,
    "checkpoint_seconds": 5.0,
    "checkpoint_steps": 9,
}
# What has to change with a field for the combination to have a meaning.
COMPANIONS = {
    "svhn_extra": {"data": "svhn"},
    "skip_bad_images": {"data": "folder"},
    "mean": {"std": (1.0, 1.0, 1.0)},
    "std": {"mean": (0.0, 0.0, 0.0)},
    "convert_path": {"convert_taps": "free"},
    "convert_angle_groups": {"convert_taps": "free"},
    "convert_learn_angle": {"convert_taps": "free"},
    "convert_form": {"convert_taps": "shared", "convert_angle_groups": 4},
    "convert_learn_profile": {"convert_taps": "profile"},
    "convert_fit": {"convert_taps": "free"},
    "convert_only": {"convert_taps": "free"},
    "prune": {"source": "runs/dense"},
    "weight_bits": {"qat": True},
    "angle_bits": {"qat": True},
    "dense_bits": {"qat": True},
    "weight_levels": {"qat": True, "weight_bits": 3},
    "profile_bits": {"qat": True},
    "layer_bits": {"qat": True},
    "qat_scales": {"qat": True},
}


def as_text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def test_the_registry_holds_the_published_recipes() -> None:
    assert set(PRESETS) == {
        *("resnet-cifar", "densenet-cifar", "densenet-svhn"),
        *("mnist", "modern", "quick", "digits"),
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_whole(name: str) -> None:
    preset = PRESETS[name]
    assert preset.recipe == name
    assert preset.model in MODELS
    assert preset.conv in CONVS
    assert make_config(name) == preset
    assert from_json(to_json(preset)) == preset
    model = build_model(preset.model, preset.conv, width=0.25, growth=preset.growth, dropout=preset.dropout)
    optimizer = build_optimizer(model, preset.optimization)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet-cifar", {"optimizer": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "lr": 0.1}),
        ("resnet-cifar", {"batch_size": 128, "milestones": (0.5, 0.75), "gamma": 0.1, "augment": "paper"}),
        ("densenet-cifar", {"nesterov": True, "batch_size": 64, "epochs": 300, "lr": 0.1, "weight_decay": 1e-4}),
        ("densenet-cifar", {"milestones": (0.5, 0.75), "schedule": "steps", "dropout": 0.0}),
        ("densenet-svhn", {"epochs": 40, "dropout": 0.2, "augment": "none", "batch_size": 64, "data": "svhn"}),
        ("modern", {"nesterov": True, "weight_decay": 5e-4, "schedule": "cosine", "epochs": 200}),
        ("modern", {"label_smoothing": 0.0}),
        ("quick", {"schedule": "one-cycle", "augment": "fast"}),
        ("mnist", {"data": "mnist"}),
        ("digits", {"data": "digits"}),
    ],
)
def test_presets_have_the_numbers_of_their_sources(name: str, expected: dict[str, object]) -> None:
    assert {key: getattr(PRESETS[name], key) for key in expected} == expected


def test_64k_steps_of_128_images_are_the_epochs_of_resnet_cifar() -> None:
    steps_an_epoch = -(-45_000 // PRESETS["resnet-cifar"].batch_size)
    assert PRESETS["resnet-cifar"].epochs == round(64_000 / steps_an_epoch)


def test_the_table_of_other_values_covers_every_field() -> None:
    assert set(OTHER) == set(FIELDS)


@pytest.mark.parametrize("key", FIELDS)
def test_every_field_is_reached_by_override_program_toml_and_json(key: str, tmp_path: Path) -> None:
    values = {**COMPANIONS.get(key, {}), key: OTHER[key]}
    recipe = values.pop("recipe", "resnet-cifar")
    if key == "optimizer":
        values["momentum"] = 0.9
    by_program = make_config(recipe, changes=values)
    assert getattr(by_program, key) == OTHER[key]
    assert make_config(recipe, overrides=[f"{k}={as_text(v)}" for k, v in values.items()]) == by_program
    lines = [f"{k} = {list(v) if isinstance(v, tuple) else as_toml(v)}" for k, v in values.items()]
    (tmp_path / "run.toml").write_text("\n".join([f'recipe = "{recipe}"', *lines]))
    assert make_config(file=tmp_path / "run.toml") == by_program
    assert from_json(to_json(by_program)) == by_program
    changed = {k for k in by_program.__dataclass_fields__ if differences(PRESETS["resnet-cifar"], by_program).get(k)}
    assert key in changed


def as_toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else as_text(value)


# But for bits and scales: they have a meaning with qat alone, which has its own.
@pytest.mark.parametrize("key", [key for key in FIELDS if NoneType in kinds_of(RunConfig, key) and key not in QAT_KEYS])
def test_none_empties_every_optional_field(key: str) -> None:
    given = {key: OTHER[key], **COMPANIONS.get(key, {})}
    overrides = [f"{other}=none" for other in ("mean", "std") if key in ("mean", "std")] or [f"{key}=none"]
    assert getattr(make_config("digits", changes=given, overrides=overrides), key) is None


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('recipe = "modern"\nlr = 0.2\nepochs = 3\nseed = 1\n')
    config = make_config(file=file, changes={"epochs": 4, "seed": 2}, overrides=["seed=3"])
    assert (config.recipe, config.lr, config.epochs, config.seed) == ("modern", 0.2, 4, 3)
    assert make_config("quick", file=file).recipe == "quick"


def test_a_whole_number_serves_as_a_float_and_equals_it() -> None:
    assert type(RunConfig(lr=1).lr) is float
    assert RunConfig(lr=1, milestones=[0.5]) == RunConfig(lr=1.0, milestones=(0.5,))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lrr=1"], "unknown key 'lrr': did you mean 'lr'"),
        (["batchsize=1"], "did you mean 'batch_size'"),
        (["dropot=1"], "unknown key 'dropot': did you mean 'dropout'[?]$"),
        (["zzzz=1"], "unknown key 'zzzz': docs/configuration.md lists all$"),
        (["lr"], "^--set must be KEY=VALUE, such as lr=0.1, not 'lr'$"),
        (["milestones=0.7,0.5"], r"milestones must be rising fractions between 0 and 1, not \(0.7, 0.5\)"),
        (["milestones=0.5,1"], "milestones must be rising"),
        (["optimizer=adamw"], "nesterov needs optimizer=sgd with momentum above 0, not optimizer=adamw"),
        (["momentum=0"], "nesterov needs .* with momentum=0: set nesterov=false"),
        (["svhn_extra=true"], "svhn_extra belongs to data=svhn, not data=digits"),
        (["mean=0.5"], "mean and std belong together: give both, or none"),
        (["convert_only=layer3.*"], "convert_only says what dense convolutions become: set convert_taps too"),
        (["convert_path=square"], "convert_path says what"),
        (["convert_taps=free", "convert_form=separable"], 'form="separable" needs angle_groups'),
        (["skip_bad_images=true"], "skip_bad_images belongs to data=folder, not data=digits"),
        (["qat_scales=learned"], r"qat_scales is of training with qat: set qat=true \(--qat\) too, or leave it out"),
        (["weight_bits=3"], r"weight_bits is of training with qat: set qat=true \(--qat\) too, or leave it out"),
        (
            ["qat=true", "weight_bits=2", "weight_levels=8"],
            "weight_levels must be from 3 to 4 with 2 bits, got 8",
        ),
        (
            ["qat=true", "weight_bits=8", "weight_levels=254"],
            "weight_levels must be 255 with 8 bits",
        ),
        (["weight_levels=3"], "weight_levels is of training with qat"),
        (
            ["qat=true", "weight_levels=16", "prune=0.5", "source=runs/dense"],
            "prune needs a zero among the weights, which 1 bit",
        ),
        (["qat=false", "dense_bits=8"], "dense_bits is of training with qat"),
        (["qat=true", "layer_bits=layer3"], "layer_bits must be NAME=BITS or NAME=BITS.ANGLEBITS .* not 'layer3'"),
        (["qat=true", "layer_bits=layer3=9"], "layer_bits of layer3: a weight's must be a whole number from 1 to 8"),
        (["qat=true", "layer_bits=layer3=2+1"], "layer_bits of layer3: an angle's must be a whole number from 2 to 8"),
    ],
)
def test_mistakes_are_told_in_one_sentence(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_config("digits", overrides=overrides)
    assert "\n" not in str(caught.value)


OF_ANOTHER_TYPE = {
    int: ["few", "1.5", "true"],
    float: ["fast", "nan", "inf", "true"],
    bool: ["yes", "1"],
    tuple: ["half", "1,x", "nan"],
    Literal: ["papr"],
}
OUTSIDE = {Gt: (0, -1), Ge: (-1,), Lt: (0, 1), Le: (1,)}  # steps from a bound to what it shuts out


def bad_values() -> list[tuple[str, str]]:
    """For every key with a type or a range: texts outside of it, made from how it is declared."""
    found = []
    for name in FIELDS:
        for kind in kinds_of(RunConfig, name):
            texts = [] if str in get_args(kind) else OF_ANOTHER_TYPE.get(get_origin(kind) or kind, [])
            found += [(name, text) for text in texts]
        for bound in field_of(RunConfig, name).metadata:
            edge = getattr(bound, type(bound).__name__.lower(), 0)
            found += [(name, str(edge + step)) for step in OUTSIDE.get(type(bound), ())]
    return found


def test_there_are_bad_values() -> None:
    assert {("lr", "0"), ("weight_bits", "9"), ("augment", "papr"), ("seed", "-1")} <= set(bad_values())


@pytest.mark.parametrize(("name", "text"), bad_values())
def test_every_key_says_what_it_takes(name: str, text: str) -> None:
    message = rf"^{name} must be {re.escape(expected(RunConfig, name))}, not '?{re.escape(text[:3])}"
    with pytest.raises(ConfigError, match=message) as caught:
        make_config("digits", overrides=[f"{name}={text}"])
    assert "\n" not in str(caught.value)


def test_ranges_in_words() -> None:
    words = {name: expected(RunConfig, name) for name in FIELDS}
    assert words["weight_decay"] == "a number of at least 0"
    assert words["dropout"] == "a number from 0 to below 1"
    assert words["ema_decay"] == "a number between 0 and 1, or none"
    assert words["angle_bits"] == "a whole number from 2 to 8, or none"
    assert words["seed"] == "a whole number from 0 to 9,223,372,036,854,775,807"
    assert words["convert_taps"] == "one of free, shared, profile, or none"
    assert words["mean"] == "numbers with commas between, or none"
    assert words["qat"] == "true or false"


def test_every_key_says_what_it_is_for() -> None:
    assert [name for name in FIELDS if len(field_of(RunConfig, name).description or "") < 6] == []
    assert list(PANELS) == [name for name in FIELDS if name in PANELS]  # headings in the keys' order, at real keys


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("lr = 0")
    with pytest.raises(ConfigError, match=r"^.*run.toml: lr must be a number above 0, not 0$"):
        make_config(file=file)
    file.write_text("lrr = 1")
    with pytest.raises(ConfigError, match=r"^.*run.toml: unknown key 'lrr': did you mean 'lr'"):
        make_config(file=file)
    file.write_text("lr = 0")
    assert make_config(file=file, changes={"lr": 0.5}).lr == 0.5


@pytest.mark.parametrize("qat", [False, True])
def test_configurations_of_version_0_1_0_load(qat: bool) -> None:
    old = {"recipe": "quick", "lines": "free", "line_path": "square", "line_groups": 4, "only": "a,b", "qat": qat}
    config = from_json(json.dumps({**old, "weight_bits": 4, "angle_bits": 3, "dense_bits": 8}))
    assert (config.convert_taps, config.convert_path, config.convert_only) == ("free", "square", "a,b")
    assert config.convert_angle_groups == 4
    assert config.bits == (Bits(4, 3, 8) if qat else None)
    assert config.qat_scales == ("searched" if qat else None)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=re.escape("unknown recipe 'resnet': did you mean 'resnet-cifar'")):
        make_config("resnet")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*missing.toml: No such file"):
        make_config(file=missing)
    broken = tmp_path / "broken.toml"
    broken.write_text("lr = = 3")
    with pytest.raises(ConfigError, match=r"broken.toml is no TOML: .*line 1"):
        make_config(file=broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the configuration is no JSON"),
        ("[1]", "expected a JSON object with the configuration's keys, not list"),
        ('{"lr": "fast"}', "lr must be a number above 0, not 'fast'"),
        ('{"learning_rate": 1}', "unknown key 'learning_rate'"),
    ],
)
def test_foreign_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(text)


def test_a_configuration_cannot_change() -> None:
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError, match="lr"):
        config.lr = 1.0  # type: ignore[misc]
