"""A GPU computes what a CPU does, to rounding: models, their gradients, kernels made at once, whole runs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from layers import forward
from rotateconv import CONVS, build_model, convert, fuse
from rotateconv.errors import RunInterrupted
from rotateconv.lab.config import make_config
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import read_json
from rotateconv.lab.train.captured import WARM_UP
from rotateconv.lab.train.events import RunWarning
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.run_folder import read_records
from rotateconv.models import MODELS
from small import StopAt, Tiny, tiny_config

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("exact_float32"),
]


def run(model: nn.Module, images: Tensor, *, batched: bool) -> dict[str, Tensor]:
    """The output and every gradient, on the CPU."""
    output = forward(model, images, batched)
    output.square().mean().backward()
    found = {"output": output, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fail where an output or a gradient is not the other."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).norm() / tensor.norm().clamp(min=1e-12)
        assert error < 1e-7, (name, error)  # the kernels on a GPU round angle_grad_scale to float32


@pytest.mark.parametrize("batched", [False, True], ids=["layer by layer", "at once"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("conv", CONVS)
def test_a_model_has_the_output_and_gradients_of_the_cpu(conv: str, layout: torch.memory_format, batched: bool) -> None:
    # In float64, where ReLUs and hats do not switch by rounding; triton_numbers.py has float32.
    model = build_model("resnet20", conv, width=0.5).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = run(copy.deepcopy(model), images, batched=False)
    model = model.to("cuda").to(memory_format=layout)
    found = run(model, images.to("cuda").contiguous(memory_format=layout), batched=batched)
    check(found, expected)


@pytest.mark.parametrize("conv", ["rotate4", "rotate2p"])
def test_a_compiled_model_has_the_output_and_gradients_of_the_cpu(conv: str) -> None:
    model = build_model("resnet20", conv, width=0.25).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = run(copy.deepcopy(model), images, batched=False)
    model = model.to("cuda")
    model.compile()
    found = run(model, images.to("cuda"), batched=False)
    check(found, expected)


@pytest.mark.parametrize("conv", CONVS)
def test_a_fused_model_is_the_same_model(conv: str) -> None:
    model = build_model("resnet20", conv, width=0.5).to("cuda").eval()
    images = torch.randn(4, 3, 16, 16, device="cuda")
    with torch.no_grad():
        expected, found = model(images), fuse(model, fold_batchnorm=True)(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("taps", ["free", "profile"])
def test_layers_are_fitted_to_their_outputs_as_on_the_cpu(taps: str) -> None:
    model = build_model("resnet20", "conv3x3", width=0.25)
    batches, found = [torch.randn(64, 3, 16, 16) for _ in range(2)], {}
    for device in ("cpu", "cuda"):
        report = convert(copy.deepcopy(model).to(device), taps, data=[images.to(device) for images in batches])
        found[device] = [entry.output_residual for entry in report.converted]
    assert len(found["cpu"]) == 18
    # Of two angles that fit as well, rounding may choose another.
    torch.testing.assert_close(*map(torch.tensor, found.values()), rtol=0.05, atol=0)


@pytest.mark.parametrize("conv", ["conv3x3", "rotate4", "rotate2p", "rotate2p-g4"])
def test_a_run_learns_what_it_learns_on_the_cpu(
    conv: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("digits", changes={"epochs": 2, "width": 0.5, "conv": conv, "lr": 0.02})
    fit(config, tmp_path / "gpu", data=data)
    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate keeps the device of a process
    with monkeypatch.context() as patched:
        patched.setattr(torch.accelerator, "is_available", lambda: False)
        fit(config, tmp_path / "cpu", data=data)
    AcceleratorState._reset_state(reset_partial_state=True)
    records = zip(*(read_records(tmp_path / device) for device in ("gpu", "cpu")), strict=True)
    for gpu, cpu in records:
        assert gpu.train_loss == pytest.approx(cpu.train_loss, rel=2e-2)
        assert gpu.peak_gpu_memory_bytes > 0
    assert read_json(tmp_path / "gpu" / "environment.json")["gpu"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_near(precision: str, data: ImageData, tmp_path: Path) -> None:
    changes = {"epochs": 2, "width": 0.5, "conv": "rotate4", "lr": 0.02}
    losses = []
    for name in ("no", precision):
        fit(make_config("digits", changes={**changes, "precision": name}), tmp_path / name, data=data)
        losses.append(read_records(tmp_path / name)[-1].train_loss)
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)


def test_an_interrupted_run_goes_on(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    config = tiny_config(conv="rotate4", precision="fp16")
    fit(config, tmp_path / "whole", data=data)
    with pytest.raises(RunInterrupted):
        fit(config, tmp_path / "run", data=data, on_event=StopAt(6))
    fit(config, tmp_path / "run", data=data, resume=True)
    found, expected = (read_records(tmp_path / name) for name in ("run", "whole"))
    assert [record.step for record in found] == [record.step for record in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv": "conv3x3"},
        {"conv": "rotate4", "ema_decay": 0.9, "clip_grad_norm": 1.0},
        {"conv": "rotate2p", "precision": "bf16", "channels_last": True, "dropout": 0.2},
        {"conv": "rotate4", "optimizer": "adamw", "lr": 0.001, "nesterov": False, "angle_lr_scale": 10.0},
        {"conv": "rotate2p", "qat": True, "weight_bits": 3, "weight_levels": 8, "profile_bits": 4, "ema_decay": 0.9},
        {"conv": "rotate4", "qat": True, "qat_scales": "learned", "weight_bits": 2},
    ],
)
def test_a_captured_run_is_the_eager_one(
    changes: dict[str, Any], data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    listener = StopAt()
    for name in ("eager", "captured"):
        config = tiny_config(**{"lr": 0.02, **changes}, cuda_graph=name == "captured")
        fit(config, tmp_path / name, data=data, on_event=listener)
    assert not listener.all(RunWarning)
    for mine, other in zip(*(read_records(tmp_path / name) for name in ("captured", "eager")), strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-2)
        assert mine.validation_loss == pytest.approx(other.validation_loss, rel=2e-2)
        assert mine.learning_rates == other.learning_rates


def test_a_captured_step_launches_one_graph(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    replays: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
    fit(tiny_config(conv="rotate4"), tmp_path / "run", data=data)
    assert len(replays) == 9 - WARM_UP


def test_a_captured_run_that_is_interrupted_goes_on(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    config = tiny_config(conv="rotate4", dropout=0.2, ema_decay=0.9)
    fit(config, tmp_path / "whole", data=data)
    with pytest.raises(RunInterrupted):
        fit(config, tmp_path / "run", data=data, on_event=StopAt(6))
    fit(config, tmp_path / "run", data=data, resume=True)
    found, expected = (read_records(tmp_path / name)[-1] for name in ("run", "whole"))
    assert found.step == expected.step
    assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-2)


def test_a_model_that_looks_at_its_numbers_is_trained_eagerly(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Looks(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            scores = super().forward(images)
            return scores if scores.sum().item() > -1e9 else -scores

    monkeypatch.setitem(MODELS, "tiny", Looks)
    listener = StopAt()
    fit(tiny_config(conv="rotate4"), tmp_path / "run", data=data, on_event=listener)
    (warning,) = listener.all(RunWarning)
    assert warning.message.startswith("the step cannot be captured in a CUDA graph")
