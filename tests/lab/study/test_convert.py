"""A trained model becomes one of RotateConv layers: laws of the library's side of `rotateconv convert`."""

import copy
import dataclasses
import functools
import io
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rotateconv import RotateConv2d, convert, quantize, recalibrate
from rotateconv.errors import ConfigError, RunError, RunInterrupted
from rotateconv.lab.config import RunConfig, changed
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import read_json
from rotateconv.lab.study.angles import starting_model
from rotateconv.lab.study.convert import check_normalization, convert_run, fine_tuning, stages_of
from rotateconv.lab.study.convert_record import conversion_from_json
from rotateconv.lab.study.events import BitsAllocated, LayerFitted, ModelFitted
from rotateconv.lab.train import build, pretrained
from rotateconv.lab.train.build import build_configured, build_from
from rotateconv.lab.train.checkpoint import list_checkpoints, load_checkpoint, weights_bytes
from rotateconv.lab.train.evaluate import evaluate
from rotateconv.lab.train.events import CheckpointSaved, RunWarning
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import calibration_batches, evaluate_model, load_run, pack_model
from rotateconv.lab.train.pretrained import load_source
from rotateconv.lab.train.run_folder import read_config, read_records, read_summary
from rotateconv.lab.train.weights import load_weights, read_weights_file
from rotateconv.models import CONVS
from rotateconv.nn import conv
from small import StopAt, assert_same_run, tiny_config

FACTORY = f"{__name__}:two_layers"


def two_layers() -> nn.Module:
    """A user's own model: built without arguments, from nothing of this library."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def no_model() -> str:
    return "no model"


def needs_an_argument(width: int) -> nn.Module:
    return nn.Linear(width, width)


pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def dense(tmp_path: Path, data: ImageData) -> Path:
    """A run of dense convolutions, and the source of the tests."""
    fit(tiny_config(conv="conv3x3", epochs=4), tmp_path / "dense", data=data)
    return tmp_path / "dense"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights_bytes(two_layers()))
    return path


def settings(source: Path, **changes: Any) -> RunConfig:
    config = fine_tuning(read_config(source), str(source))
    return dataclasses.replace(config, **{"convert_taps": "free", **changes})


def own_settings(source: Path, **changes: Any) -> RunConfig:
    # An untrained model is no better than chance, which stops a conversion unless the normalization is the user's word.
    config = tiny_config(factory=FACTORY, conv="conv3x3", mean=(0.3,), std=(0.4,), **changes)
    return dataclasses.replace(fine_tuning(config, str(source)), convert_taps=changes.get("convert_taps", "free"))


def test_fine_tuning_keeps_the_recipe_and_learns_from_the_source(dense: Path) -> None:
    before, after = read_config(dense), fine_tuning(read_config(dense), str(dense))
    assert (after.epochs, after.lr) == (before.epochs // 2, before.lr / 2)
    assert after.source == after.teacher == str(dense)
    assert fine_tuning(dataclasses.replace(before, epochs=1), "x").epochs == 1
    kept = ("model", "conv", "data", "augment", "batch_size", "optimizer", "weight_decay", "seed")
    assert all(getattr(before, key) == getattr(after, key) for key in kept)


@pytest.mark.parametrize("taps", ["free", "shared", "profile"])
def test_the_run_starts_from_the_fit_and_keeps_the_source(
    taps: Any, dense: Path, tmp_path: Path, data: ImageData
) -> None:
    before = {path.name: path.read_bytes() for path in dense.iterdir() if path.is_file()}
    events = StopAt()
    result = convert_run(settings(dense, convert_taps=taps), tmp_path / "run", data=data, on_event=events)
    assert {path.name: path.read_bytes() for path in dense.iterdir() if path.is_file()} == before

    expected = load_run(dense).model
    report = convert(expected, taps)
    calibrated = copy.deepcopy(expected)
    recalibrate(calibrated, Batches(data.train, len(data.train), mean=data.mean, std=data.std))
    description = DataDescription.of(data)
    accuracies = {
        key: evaluate_model(model, settings(dense).execution, description, split).accuracy
        for key, model, split in [
            ("source validation", load_run(dense).model, data.validation),
            ("fitted validation", expected, data.validation),
            ("source test", load_run(dense).model, data.test),
            ("fitted test", expected, data.test),
            ("calibrated validation", calibrated, data.validation),
            ("calibrated test", calibrated, data.test),
        ]
    }
    for key, accuracy in accuracies.items():
        model, split = key.split()
        assert getattr(getattr(result, f"{split}_accuracy"), model) == pytest.approx(accuracy)
    assert [entry.residual for entry in result.layers] == [entry.residual for entry in report.entries]
    assert result.parameters_before > result.parameters_after == report.parameters_after
    assert conversion_from_json(read_json(tmp_path / "run" / "conversion.json"), "conversion.json") == result
    assert f"{result.test_accuracy.fine_tuned:.2f}" in (tmp_path / "run" / "conversion.md").read_text()
    assert events.all(ModelFitted)[0].fitted == pytest.approx(accuracies["fitted validation"])

    final = load_run(tmp_path / "run").model
    assert isinstance(final.conv, RotateConv2d)
    assert final.conv.taps == taps
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["parameters"] == report.parameters_after
    assert getattr(result.test_accuracy, result.kept) == summary["test_accuracy"]


def test_layers_fitted_to_outputs_are_those_of_convert_with_training_images(
    dense: Path, tmp_path: Path, data: ImageData
) -> None:
    events = StopAt(1)
    config = settings(dense, convert_fit="outputs")
    with pytest.raises(RunInterrupted):
        convert_run(config, tmp_path / "run", data=data, on_event=events)
    expected = load_run(dense).model
    batches = [
        images for images, _ in calibration_batches(expected, config.execution, DataDescription.of(data), data.train)
    ]
    report = convert(expected, config.convert_taps, data=batches)
    (fitted,) = events.all(ModelFitted)
    assert fitted.report == report
    assert fitted.fitted == fitted.calibrated
    assert [(fit.done, fit.total) for fit in events.all(LayerFitted)] == [(1, 2), (2, 2)]
    start = read_weights_file(tmp_path / "run" / "initial.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in expected.state_dict().items())
    analysed = starting_model(config, DataDescription.of(data), tmp_path / "run").state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in analysed.items())


def test_stages_fit_to_outputs_too(weights: Path, tmp_path: Path, data: ImageData) -> None:
    config = dataclasses.replace(own_settings(weights), epochs=3, convert_fit="outputs")
    result = convert_run(config, tmp_path / "run", data=data, stages=2)
    assert result.stages == 2
    assert all(layer.output_residual is not None for layer in result.layers if layer.reason is None)


def test_training_begins_at_the_fitted_model(dense: Path, tmp_path: Path, data: ImageData) -> None:
    expected = load_run(dense).model
    convert(expected, "free")
    fit(settings(dense, lr=1e-9, epochs=1), tmp_path / "run", data=data)
    found = load_run(tmp_path / "run").model
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), parameter, rtol=0, atol=1e-6, msg=name)
    assert read_records(tmp_path / "run")[0].angle_movement_max < 1e-5  # from the fit, not from the first draw


def test_a_conversion_goes_on_where_it_was_stopped(dense: Path, tmp_path: Path, data: ImageData) -> None:
    config = settings(dense, epochs=3)
    whole = convert_run(config, tmp_path / "whole", data=data)
    with pytest.raises(RunInterrupted):
        convert_run(config, tmp_path / "again", data=data, on_event=StopAt(5))
    assert convert_run(config, tmp_path / "again", data=data) == whole
    assert_same_run(tmp_path / "again", tmp_path / "whole")
    assert convert_run(config, tmp_path / "again", data=data) == whole  # finished: nothing is trained again
    with pytest.raises(RunError, match=r"has convert_taps 'free', not 'shared': resume it unchanged"):
        convert_run(dataclasses.replace(config, convert_taps="shared"), tmp_path / "again", data=data)
    other = convert_run(
        dataclasses.replace(config, convert_taps="shared"), tmp_path / "again", data=data, overwrite=True
    )
    assert other.taps == "shared"


def test_another_run_in_the_folder_leaves_nothing_of_the_conversion(
    dense: Path, tmp_path: Path, data: ImageData
) -> None:
    run = tmp_path / "run"
    convert_run(settings(dense), run, data=data)
    for name in ("analysis.json", "analysis.png"):
        (run / name).write_text("{}")
    fit(tiny_config(epochs=1), run, data=data, overwrite=True)
    assert not {"conversion.json", "conversion.md", "analysis.json", "analysis.png"} & {
        path.name for path in run.iterdir()
    }


def test_stages_convert_the_nearest_fits_first(weights: Path, tmp_path: Path, data: ImageData) -> None:
    config = own_settings(weights, epochs=10)
    model = two_layers()
    load_weights(model, read_weights_file(weights), weights)
    report = convert(model, "free")
    nearest = min(report.converted, key=lambda entry: entry.residual or 0).name
    plan = stages_of(config, tmp_path / "run", report, 2)
    assert [(run, settings.convert_only, settings.epochs) for run, settings in plan] == [
        (tmp_path / "run-stage1", nearest, 2),
        (tmp_path / "run", None, 3),
    ]
    assert plan[1][1].source == str(tmp_path / "run-stage1")
    assert plan[1][1].teacher == str(weights)

    result = convert_run(config, tmp_path / "run", data=data, stages=2)
    assert (result.stages, result.epochs) == (2, 5)
    half = load_run(tmp_path / "run-stage1").model
    whole = load_run(tmp_path / "run").model
    names = [name for name, module in half.named_modules() if isinstance(module, RotateConv2d)]
    assert names == [nearest]
    assert sum(isinstance(module, RotateConv2d) for module in whole.modules()) == len(report.converted) == 2


@pytest.mark.parametrize("missing", ["source", "convert_taps"])
def test_a_conversion_needs_a_source_and_taps(missing: str, dense: Path, tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(ConfigError, match=f"needs a configuration with source and convert_taps: set {missing}"):
        convert_run(dataclasses.replace(settings(dense), **{missing: None}), tmp_path / "run", data=data)


@pytest.mark.parametrize(
    ("stages", "epochs", "sentence"),
    [
        (0, 4, "stages must be from 1 to 2, not 0: each needs a layer and an epoch, of 2 layers and 2 epochs"),
        (3, 4, "stages must be from 1 to 2, not 3"),
        (2, 1, "stages must be left out, not 2: each needs a layer and an epoch, of 2 layers and 1 epoch"),
    ],
)
def test_stages_need_a_layer_and_an_epoch_each(
    stages: int, epochs: int, sentence: str, weights: Path, tmp_path: Path, data: ImageData
) -> None:
    with pytest.raises(ValueError, match=sentence):
        convert_run(own_settings(weights, epochs=epochs), tmp_path / "run", data=data, stages=stages)
    assert not (tmp_path / "run").exists()


def test_a_users_own_model(weights: Path, tmp_path: Path, data: ImageData) -> None:
    config = own_settings(weights, epochs=2)
    result = convert_run(dataclasses.replace(config, convert_only="2"), tmp_path / "run", data=data)
    assert [entry.name for entry in result.layers if entry.reason is None] == ["2"]
    loaded = load_run(tmp_path / "run").model
    assert isinstance(loaded[2], RotateConv2d)
    assert result.model == FACTORY


def test_training_with_rounded_numbers_keeps_them(dense: Path, tmp_path: Path, data: ImageData) -> None:
    result = convert_run(settings(dense, qat=True, weight_bits=3, angle_bits=4), tmp_path / "run", data=data)
    model = load_run(tmp_path / "run").model
    again = quantize(model, 3, 4)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert result.bits == (3, 4, 8)
    accuracy = evaluate_model(model, settings(dense).execution, DataDescription.of(data), data.test).accuracy
    assert accuracy == read_json(tmp_path / "run" / "summary.json")["test_accuracy"]


@pytest.mark.parametrize("scales", ["searched", "learned"])
@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_quantized_training_resumes_bit_for_bit(
    tmp_path: Path, data: ImageData, scales: str, ema_decay: float | None
) -> None:
    config = tiny_config(
        conv="rotate2p", qat=True, weight_bits=2, epochs=2, qat_scales=scales, ema_decay=ema_decay, checkpoint_steps=1
    )
    averages: dict[str, torch.Tensor] = {}
    steps: list[int] = []

    def follow(event: object) -> None:
        if isinstance(event, CheckpointSaved) and event.step not in steps:
            steps.append(event.step)
            state = load_checkpoint(event.path.parent).state
            for name, size in state["scales"].items():
                averages[name] = 0.8 * averages[name] + 0.2 * size if name in averages else size
                if ema_decay is not None:
                    torch.testing.assert_close(state["average_scales"][name], averages[name])

    fit(config, tmp_path / "whole", data=data, on_event=follow)
    assert len(averages) == (3 if scales == "learned" else 0)
    with pytest.raises(RunInterrupted):
        fit(config, tmp_path / "again", data=data, on_event=StopAt(3))
    fit(config, tmp_path / "again", data=data, resume=True)
    assert_same_run(tmp_path / "again", tmp_path / "whole")
    # What is kept has the scales that the last pass would see, on the grid of a file.
    last = load_checkpoint(tmp_path / "whole" / "checkpoints")
    expected = build_configured(config.architecture, DataDescription.of(data))
    expected.load_state_dict(last.weights["model" if ema_decay is None else "average"])
    sizes = last.state["scales" if ema_decay is None else "average_scales"]
    kept = load_run(tmp_path / "whole").model.state_dict()
    for name, tensor in quantize(expected, 2, scales=sizes).state_dict().items():
        assert torch.equal(kept[name], tensor), name


def test_a_source_of_the_same_model_is_taken_as_it_is(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="rotate4"), tmp_path / "first", data=data)
    fit(tiny_config(conv="rotate4", source=str(tmp_path / "first"), lr=1e-9), tmp_path / "second", data=data)
    first, second = (load_run(tmp_path / name).model for name in ("first", "second"))
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(second.get_parameter(name), parameter, rtol=0, atol=1e-6)


def test_a_converted_model_is_trained_on_with_quantized_numbers(dense: Path, tmp_path: Path, data: ImageData) -> None:
    convert_run(settings(dense, convert_taps="profile"), tmp_path / "lines", data=data)
    config = fine_tuning(read_config(tmp_path / "lines"), str(tmp_path / "lines"))
    fit(dataclasses.replace(config, qat=True, lr=1e-9), tmp_path / "rounded", data=data)
    exact, rounded = (load_run(tmp_path / name).model for name in ("lines", "rounded"))
    for name, parameter in quantize(exact).named_parameters():
        torch.testing.assert_close(rounded.get_parameter(name), parameter, rtol=0, atol=1e-5)


@pytest.mark.parametrize("conv", ["codebook16", "pattern4", "lowrank4", "rotate2p-k5"])
def test_a_dense_source_goes_on_as_layers_fitted_to_its_kernels(
    conv: str, dense: Path, tmp_path: Path, data: ImageData
) -> None:
    config = dataclasses.replace(fine_tuning(read_config(dense), str(dense)), conv=conv, lr=1e-9, epochs=1)
    fit(config, tmp_path / "run", data=data)
    expected = load_run(dense).model.conv
    layer = CONVS[conv](8, 8, 3, stride=2, padding=1)
    layer.fit(expected.weight)
    found = load_run(tmp_path / "run").model.conv
    assert type(found) is type(layer)
    torch.testing.assert_close(found.kernel(), layer.kernel(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=rf"only a run of conv3x3 can go on as rotate4, and .* is of {conv}"):
        fit(dataclasses.replace(config, conv="rotate4", source=str(tmp_path / "run")), tmp_path / "other", data=data)


def test_a_pruned_run_keeps_its_zeros_also_when_it_goes_on(dense: Path, tmp_path: Path, data: ImageData) -> None:
    changes = {"prune": 0.75, "epochs": 2, "qat": True, "weight_bits": 4}
    config = dataclasses.replace(fine_tuning(read_config(dense), str(dense)), **changes)
    fit(config, tmp_path / "run", data=data)
    source, found = (load_run(run).model.conv.weight.detach() for run in (dense, tmp_path / "run"))
    small = source.abs() < source.abs().flatten().kthvalue(int(0.75 * source.numel())).values
    assert (found[small] == 0).all()
    assert (found[~small] != 0).float().mean() > 0.8  # four bits round a few more to 0
    with pytest.raises(RunInterrupted):
        fit(config, tmp_path / "again", data=data, on_event=StopAt(5))
    fit(config, tmp_path / "again", data=data, resume=True)
    assert torch.equal(load_run(tmp_path / "again").model.conv.weight, found)
    with pytest.raises(ConfigError, match="prune takes weights from a trained source: set source"):
        tiny_config(prune=0.5)


def test_a_source_of_another_model_is_refused(dense: Path, tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(conv="conv3x3", width=2.0, source=str(dense))
    with pytest.raises(ConfigError, match=r"do not fit the model: stem.weight is 8x1x3x3, expected 16x1x3x3; .*more"):
        fit(config, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()
    other = dataclasses.replace(data, classes=tuple("abcdefghij"))
    with pytest.raises(ConfigError, match=r"was trained with classes .*: give both the same data"):
        convert_run(settings(dense), tmp_path / "run", data=other)


def test_a_model_without_dense_convolutions_is_refused(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="rotate4", epochs=1), tmp_path / "lines", data=data)
    sentence = "lines was trained as rotate4 and has no dense layer to convert: train one with --conv conv3x3, or make"
    with pytest.raises(ConfigError, match=sentence):
        convert_run(settings(tmp_path / "lines"), tmp_path / "run", data=data)
    with pytest.raises(ConfigError, match=r"only: the model has no convolution 'layer9': did|only: .* choose from"):
        convert_run(settings(tmp_path / "lines", convert_only="layer9"), tmp_path / "run", data=data)


def test_a_run_that_is_converted_already_is_refused_by_naming_its_source(
    dense: Path, tmp_path: Path, data: ImageData
) -> None:
    convert_run(settings(dense, convert_taps="profile"), tmp_path / "lines", data=data)
    source = str(tmp_path / "lines")
    fit(dataclasses.replace(fine_tuning(read_config(tmp_path / "lines"), source), epochs=1), tmp_path / "on", data=data)
    for name in ("lines", "on"):
        sentence = f"{name} has profile taps already: give a model of dense convolutions, such as its source, {dense}$"
        for taps in ("profile", "shared"):
            with pytest.raises(ConfigError, match=sentence):
                convert_run(settings(tmp_path / name, convert_taps=taps), tmp_path / "run", data=data)
    shutil.rmtree(tmp_path / "lines")
    with pytest.raises(ConfigError, match=r"on has profile taps already: give a model of dense convolutions$"):
        convert_run(settings(tmp_path / "on"), tmp_path / "run", data=data)
    rest = settings(tmp_path / "on", convert_taps="profile", convert_only="stem,conv")
    found = convert_run(rest, tmp_path / "run", data=data)
    assert [layer.name for layer in found.layers if layer.reason is None] == ["stem"]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nothing", "expected package.module:function, not 'nothing'"),
        ("no.such.module:net", "cannot build a model with no.such.module:net: ModuleNotFoundError"),
        (f"{__name__}:nothing", "cannot build a model with .*: AttributeError"),
        (f"{__name__}:needs_an_argument", "cannot build a model with .*: TypeError: .*missing 1 required"),
        (f"{__name__}:no_model", "must return an nn.Module, not str"),
    ],
)
def test_functions_that_build_no_model(factory: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_from(factory)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model": w, "epoch": 3}])
@pytest.mark.parametrize(("prefix", "new"), [("", True), ("module.", True), ("", False)])
def test_weights_as_training_scripts_save_them(wrap: Any, prefix: str, new: bool, tmp_path: Path) -> None:
    model = two_layers()
    weights = wrap({prefix + name: tensor for name, tensor in model.state_dict().items()})
    torch.save(weights, tmp_path / "model.pt", _use_new_zipfile_serialization=new)
    found = read_weights_file(tmp_path / "model.pt")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


class Malicious:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_files_that_hold_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Malicious(), "code.pt")
    torch.save({"weight": [1.0]}, "list.pt")
    torch.save({}, "empty.pt")
    torch.save({"weight": torch.zeros(10**6)}, "plain.pt")
    with zipfile.ZipFile("plain.pt") as plain, zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert torch.load("bomb.pt", weights_only=True)["weight"].numel() == 10**6  # 4 MB of a file of 4 kB
    legacy = io.BytesIO()
    torch.save({"weight": torch.zeros(4)}, legacy, _use_new_zipfile_serialization=False)
    before, _, after = legacy.getvalue().partition(b"cpu")
    Path("legacy.pt").write_bytes(before + b"cpu" + after.replace(b"K\x04", b"J\xff\xff\xff\x7f", 1))  # 8 GB
    Path("array.pt").write_bytes(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")  # 2 GB
    Path("text.pt").write_text("no weights")
    Path("toml.pt").write_text("epochs = = 3")  # an IndexError of the unpickler
    Path("text.safetensors").write_text("no weights")
    for name, message in [
        ("code.pt", "cannot read code.pt: expected a safetensors file, or a state dict that torch.load reads with"),
        ("text.pt", "cannot read text.pt: expected a safetensors file"),
        ("text.safetensors", "cannot read text.safetensors: expected a safetensors file"),
        ("toml.pt", "cannot read toml.pt: expected a safetensors file"),
        ("missing.pt", "cannot read missing.pt: No such file or directory"),
        ("code.pt", r"; it holds a \S+: save model.state_dict\(\)$"),
        ("bomb.pt", "bomb.pt is a compressed archive, which torch.save does not write: save the weights anew"),
        ("legacy.pt", "it asks for far more memory than a file of its size holds"),
        ("array.pt", "it asks for far more memory than a file of its size holds"),
        ("list.pt", "list.pt holds no state dict"),
        ("empty.pt", "empty.pt holds no state dict"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            read_weights_file(name)
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_the_first_five_mismatches_are_named() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
    weights = model.state_dict()
    del weights["0.weight"]
    weights |= {"extra": torch.zeros(()), "1.weight": torch.zeros(3, 2)}
    for name in ("2.weight", "2.bias", "3.weight", "3.bias"):
        weights[name] = torch.zeros(5)
    with pytest.raises(ConfigError) as caught:
        load_weights(model, weights, "old.pt")
    assert str(caught.value) == (
        "the weights in old.pt do not fit the model: 0.weight is missing, expected 2x2; extra is one number, and the "
        "model has none; 1.weight is 3x2, expected 2x2; 2.weight is 5, expected 2x2; 2.bias is 5, expected 2; and 2 "
        "more"
    )


def test_a_model_that_takes_other_images_is_refused(tmp_path: Path, data: ImageData) -> None:
    (tmp_path / "model.safetensors").write_bytes(weights_bytes(two_layers()))
    description = DataDescription.of(data)
    config = own_settings(tmp_path / "model.safetensors")
    wide = dataclasses.replace(description, input_shape=(3, 8, 8))
    with pytest.raises(ConfigError, match="does not take images of 3x8x8: "):
        load_source(str(tmp_path / "model.safetensors"), config.factory, wide)
    few = dataclasses.replace(description, classes=("a", "b"))
    with pytest.raises(ConfigError, match=r"must give 2 numbers per image, one per class, not \(10,\)"):
        load_source(str(tmp_path / "model.safetensors"), config.factory, few)
    with pytest.raises(ConfigError, match=r"is a file of weights: say which function builds its model"):
        load_source(str(tmp_path / "model.safetensors"), None, description)


def test_the_teachers_part_of_the_loss_is_there(weights: Path, tmp_path: Path, data: ImageData) -> None:
    config = own_settings(weights, epochs=2)
    fit(config, tmp_path / "taught", data=data)
    fit(dataclasses.replace(config, teacher=None), tmp_path / "alone", data=data)
    losses = [read_records(tmp_path / name)[0].train_loss for name in ("taught", "alone")]
    assert losses[0] != losses[1]


def test_a_teacher_that_is_not_the_source_teaches(dense: Path, tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="conv3x3", epochs=1, seed=7), tmp_path / "teacher", data=data)
    for name, teacher in (("own", dense), ("other", tmp_path / "teacher")):
        convert_run(settings(dense, epochs=1, teacher=str(teacher)), tmp_path / name, data=data)
    losses = [read_records(tmp_path / name)[0].train_loss for name in ("own", "other")]
    assert losses[0] != losses[1]


def test_a_conversion_into_a_budget(dense: Path, tmp_path: Path, data: ImageData) -> None:
    config = changed(fine_tuning(read_config(dense), str(dense)), {"convert_taps": "profile", "qat": True})
    seen: list[object] = []
    convert_run(config, tmp_path / "run", data=data, budget=5_000, on_event=seen.append)
    trained = load_run(tmp_path / "run")
    (allocated,) = (event.allocation for event in seen if isinstance(event, BitsAllocated))
    assert trained.config.bits == allocated.bits
    assert allocated.bits.levels is not None
    pack_model(trained.model, trained.data, tmp_path / "file", allocated.bits, fold_norms=True)
    assert (tmp_path / "file").stat().st_size <= allocated.bytes <= 5_000


def test_evaluate_model_is_evaluate(dense: Path, data: ImageData) -> None:
    run = load_run(dense)
    images = (data.test.images.float() / 255 - torch.tensor(data.mean).view(1, -1, 1, 1)) / torch.tensor(data.std).view(
        1, -1, 1, 1
    )
    expected = evaluate(run.model, [(images, data.test.labels)], data.classes)
    found = evaluate_model(run.model, run.config.execution, run.data, data.test, batch_size=7)
    assert found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss)


def test_a_source_is_loaded_once_and_every_layer_is_fitted_once(
    dense: Path, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            outline = isinstance(made, nn.Module) and all(parameter.is_meta for parameter in made.parameters())
            counts[name] += not outline  # what only compares sizes is no model
            return made

        monkeypatch.setattr(owner, name, counted)

    count(build, "build_model")
    count(pretrained, "load_run")
    count(conv, "fit_line")
    config = settings(dense, convert_taps="free")
    result = convert_run(config, tmp_path / "run", data=data)
    converted = [layer for layer in result.layers if layer.residual is not None]
    # The models built are the source and, to be evaluated at the end, the finished run's.
    assert counts == {"load_run": 1, "build_model": 2, "fit_line": len(converted)}


@pytest.mark.parametrize("how", [{}, {"stages": 2}, {"budget": 5_000}], ids=["at once", "stages", "budget"])
def test_nothing_is_loaded_or_fitted_for_a_finished_conversion(
    how: dict[str, int], weights: Path, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_settings(weights, convert_taps="profile", epochs=4, qat="budget" in how)
    result = convert_run(config, tmp_path / "run", data=data, **how)
    with monkeypatch.context() as patched:
        patched.delattr("rotateconv.lab.study.convert.load_source")
        assert convert_run(config, tmp_path / "run", data=data, **how) == result
    with pytest.raises(RunError, match=r"the run in .* has .*: resume it unchanged, start again"):
        convert_run(config, tmp_path / "run", data=data, **{**how, "stages": 3 - how.get("stages", 1)})


def test_a_run_with_a_source_goes_on_without_it(dense: Path, data: ImageData, tmp_path: Path) -> None:
    moved = tmp_path / "source"
    shutil.copytree(dense, moved)
    config = settings(moved, convert_taps="free", teacher=None)
    fit(config, tmp_path / "whole", data=data)
    with pytest.raises(RunInterrupted):
        fit(config, tmp_path / "run", data=data, on_event=StopAt(1))
    shutil.rmtree(moved)
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        shutil.rmtree(checkpoint)  # as if it had been killed before the first one
    fit(config, tmp_path / "run", data=data, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_models_own_normalization_is_asked_for_and_then_taken(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = data.normalized_by((0.5,), (0.25,))
    config = tiny_config(factory=FACTORY, conv="conv3x3", epochs=40, lr=0.02)
    fit(config, tmp_path / "dense", data=own)
    weights = tmp_path / "dense" / "model.safetensors"
    own_weights = fine_tuning(config, str(weights), foreign=True)
    settings = dataclasses.replace(own_weights, convert_taps="free", epochs=1)
    assert settings.lr == pytest.approx(0.02 / 20)  # nobody knows what it was trained with
    assert fine_tuning(config, str(tmp_path / "dense")).lr == pytest.approx(0.02 / 2)  # of a run, its recipe says it
    wrong = data.normalized_by((0.0,), (0.1,))
    with pytest.raises(ConfigError, match=r"% with its norms recalibrated.* give (its own with )?--mean and --std$"):
        convert_run(settings, tmp_path / "run", data=wrong)
    assert not (tmp_path / "run").exists()
    said = dataclasses.replace(settings, mean=(0.0,), std=(0.1,))
    events = StopAt()
    convert_run(said, tmp_path / "said", data=wrong, on_event=events)
    assert len(events.all(RunWarning)) == 1
    events = StopAt()
    convert_run(settings, tmp_path / "run", data=own, on_event=events)
    assert events.all(RunWarning) == []


def test_a_model_that_knows_nothing_is_not_said_to_know_another_normalization(data: ImageData) -> None:
    config = dataclasses.replace(tiny_config(factory=FACTORY, conv="conv3x3"), source="net.pt")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    found = evaluate_model(plain, config.execution, DataDescription.of(data), data.validation)
    with pytest.raises(ConfigError, match=r"where guessing has 10\.0; check .* --mean and --std$") as error:
        check_normalization(config, plain, data, found, lambda warning: None)
    assert "norms" not in str(error.value)  # it has none


@pytest.mark.parametrize("qat", [False, True])
def test_a_fine_tuning_that_ruins_the_model_is_not_kept(data: ImageData, tmp_path: Path, qat: bool) -> None:
    fit(tiny_config(conv="conv3x3", epochs=30), tmp_path / "dense", data=data)  # which knows something
    config = settings(tmp_path / "dense", teacher=None, epochs=2, lr=3.0, clip_grad_norm=None, qat=qat)
    result = convert_run(config, tmp_path / "run", data=data)
    validation, test = result.validation_accuracy, result.test_accuracy
    untrained = "quantized" if qat else "calibrated"
    assert (validation.quantized is not None) == qat
    assert result.kept == untrained
    assert getattr(validation, untrained) > validation.fine_tuned
    kept = read_summary(tmp_path / "run")
    assert kept.test_accuracy == getattr(test, result.kept)
    trained = load_run(tmp_path / "run")
    found = evaluate_model(trained.model, config.execution, trained.data, data.test)
    assert found.accuracy == kept.test_accuracy
    if config.bits is not None:  # what is kept is what its file will hold
        packed = quantize(trained.model, **config.bits.arguments).state_dict()
        assert all(torch.equal(packed[name], tensor) for name, tensor in trained.model.state_dict().items())
    assert convert_run(config, tmp_path / "run", data=data) == result  # again: nothing is done, the same is said
    assert read_summary(tmp_path / "run") == kept
