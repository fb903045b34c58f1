"""Laws of the recipe that takes a trained float run to few bits, the same for every kind of layer."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from registries import each_conv
from rotateconv import quantize
from rotateconv.errors import ConfigError, RunError, RunInterrupted
from rotateconv.lab import finish, fit
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.study.finish import finishing
from rotateconv.lab.train.events import RunWarning
from rotateconv.lab.train.load import calibration_batches, evaluate_model, load_run, pack_model
from rotateconv.lab.train.run_folder import INITIAL, WEIGHTS, read_config
from rotateconv.lab.train.weights import load_weights, read_weights_file
from rotateconv.quantization.bits import Bits
from small import StopAt, assert_same_run, tiny_config

BITS = {"weight_bits": 2, "angle_bits": 3, "dense_bits": 6}


pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def wide(tiny: None, tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    """A dense teacher of full width."""
    out = tmp_path_factory.mktemp("runs") / "wide"
    fit(tiny_config(conv="conv3x3", width=2.0), out, data=data)
    return out


def is_statistic(name: str) -> bool:
    """Whether a tensor is of what a batch norm has seen."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@each_conv
def test_every_kind_starts_from_its_own_float_model_and_is_kept_quantized(
    conv: str, wide: Path, tmp_path: Path, data: ImageData
) -> None:
    fit(tiny_config(conv=conv, epochs=4), tmp_path / "float", data=data)
    summary = finish(tmp_path / "float", tmp_path / "small", **BITS, teacher=wide, data=data)
    config = read_config(tmp_path / "small")
    first = read_config(tmp_path / "float")
    assert (config.source, config.teacher) == (str(tmp_path / "float"), str(wide))
    assert (config.epochs, config.lr, config.qat, config.bits) == (2, first.lr / 2, True, Bits(2, 3, 6))
    assert (config.conv, config.width, config.seed) == (first.conv, first.width, first.seed)
    trained, began = (read_weights_file(tmp_path / name) for name in (f"float/{WEIGHTS}", f"small/{INITIAL}"))
    assert trained.keys() == began.keys()
    assert all(torch.equal(began[name], tensor) for name, tensor in trained.items() if not is_statistic(name))
    model = load_run(tmp_path / "small").model
    again = quantize(model, 2, 3, dense_bits=6).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    found = evaluate_model(model, config.execution, DataDescription.of(data), data.test)
    assert found.accuracy == summary.test_accuracy


def test_the_norms_know_the_quantized_numbers_before_the_first_step(tmp_path: Path, data: ImageData) -> None:
    """A norm forgets a tenth a step: a short training would be judged by what the float weights gave."""
    fit(tiny_config(conv="rotate2p", epochs=4), tmp_path / "float", data=data)
    finish(tmp_path / "float", tmp_path / "small", **BITS, data=data)
    source = load_run(tmp_path / "float")
    batches = calibration_batches(source.model, source.config.execution, source.data, data.train)
    expected = quantize(source.model, 2, 3, dense_bits=6, calibration=batches).state_dict()
    began = read_weights_file(tmp_path / "small" / INITIAL)
    names = [name for name in began if name.endswith(("running_mean", "running_var"))]
    before = source.model.state_dict()
    assert any(not torch.allclose(before[name], began[name], rtol=0.01) for name in names)
    for name in names:
        torch.testing.assert_close(began[name], expected[name], rtol=0.02, atol=0.02)  # bfloat16 in the copy


def test_a_training_that_makes_it_worse_says_so(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="conv3x3", epochs=30, lr=0.05), tmp_path / "float", data=data)
    warned: dict[str, list[str]] = {}
    for name, lr in (("bad", 3.0), ("good", 1e-9)):
        events = StopAt()
        options = {"lr": lr, "epochs": 1, "clip_grad_norm": None}
        finish(tmp_path / "float", tmp_path / name, weight_bits=5, changes=options, data=data, on_event=events)
        warned[name] = [event.message for event in events.all(RunWarning) if "without training" in event.message]
    assert (len(warned["bad"]), warned["good"]) == (1, [])
    config = read_config(tmp_path / "bad")
    begun = load_run(tmp_path / "float").model
    load_weights(begun, read_weights_file(tmp_path / "bad" / INITIAL), "initial")
    found = evaluate_model(quantize(begun, 5), config.execution, DataDescription.of(data), data.validation)
    assert f"without training have {found.accuracy:.1f}: give a lower lr" in warned["bad"][0]


def test_it_goes_on_without_its_source(wide: Path, tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="rotate2p", epochs=4), tmp_path / "float", data=data)
    finish(tmp_path / "float", tmp_path / "whole", **BITS, teacher=wide, data=data)
    for name, step in (("early", 1), ("late", 6)):
        with pytest.raises(RunInterrupted):
            finish(tmp_path / "float", tmp_path / name, **BITS, teacher=wide, data=data, on_event=StopAt(step))
    finish(tmp_path / "float", tmp_path / "late", **BITS, teacher=wide, data=data, resume=True)
    assert_same_run(tmp_path / "late", tmp_path / "whole")
    shutil.rmtree(tmp_path / "float")
    fit(read_config(tmp_path / "early"), tmp_path / "early", data=data, resume=True)
    assert_same_run(tmp_path / "early", tmp_path / "whole")


def test_its_teacher_is_the_run_itself_unless_another_is_named(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(epochs=1), tmp_path / "float", data=data)
    config = finishing(tmp_path / "float", {"epochs": 5, "lr": 0.01})
    assert config.teacher == config.source == str(tmp_path / "float")
    assert (config.epochs, config.lr, config.qat_scales) == (5, 0.01, "searched")


def test_what_cannot_be_finished_is_refused(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(epochs=2)
    with pytest.raises(RunInterrupted):
        fit(config, tmp_path / "half", data=data, on_event=StopAt(2))
    with pytest.raises(RunError, match=r"half is not finished: go on with rotateconv train --resume .*half"):
        finishing(tmp_path / "half")
    fit(dataclasses.replace(config, epochs=1), tmp_path / "float", data=data)
    finish(tmp_path / "float", tmp_path / "small", data=data)
    with pytest.raises(ConfigError, match=r"small was trained with quantized numbers .* went on from, .*float"):
        finishing(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"conv stays what it is in .*float: leave it out"):
        finishing(tmp_path / "float", {"conv": "rotate2"})
    with pytest.raises(ConfigError, match=r"model.safetensors is a file: finish takes the folder of a run"):
        finishing(tmp_path / "float" / WEIGHTS)
    with pytest.raises(ConfigError, match="weight_bits must be a whole number from 1 to 8"):
        finish(tmp_path / "float", tmp_path / "other", weight_bits=9, data=data)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("conv", "tight", "loose"), [("rotate2p", 1_900, 2_300), ("conv3x3", 2_400, 3_200)])
def test_a_budget_is_kept_by_the_file_of_the_trained_model(
    conv: str, tight: int, loose: int, tmp_path: Path, data: ImageData
) -> None:
    fit(tiny_config(conv=conv, width=2.0, epochs=4), tmp_path / "float", data=data)
    found = {}
    for budget in (tight, loose):
        run = tmp_path / f"small{budget}"
        finish(tmp_path / "float", run, budget=budget, dense_bits=6, profile_bits=6, data=data)
        trained = load_run(run)
        found[budget] = trained.config.bits
        assert trained.config.bits is not None
        pack_model(trained.model, trained.data, tmp_path / "file", trained.config.bits, fold_norms=True)
        assert (tmp_path / "file").stat().st_size <= budget
        # The same call goes on with the run, and finds the same bits.
        assert finish(tmp_path / "float", run, budget=budget, dense_bits=6, profile_bits=6, data=data, resume=True)
    assert found[tight] != found[loose]
    with pytest.raises(ConfigError, match="budget chooses the bits of weights and angles: leave these out"):
        finish(tmp_path / "float", tmp_path / "other", budget=tight, weight_bits=2, data=data)
    with pytest.raises(ValueError, match="nothing fits in 500 bytes"):
        finish(tmp_path / "float", tmp_path / "other", budget=500, data=data)
    assert not (tmp_path / "other").exists()
