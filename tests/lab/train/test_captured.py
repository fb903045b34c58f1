"""The captured step, with a recorder in place of a CUDA graph: the same runs, and what keeps a step from it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rotateconv.errors import RunInterrupted
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.train import captured
from rotateconv.lab.train import fit as training
from rotateconv.lab.train.checkpoint import load_checkpoint
from rotateconv.lab.train.events import RunWarning
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.run_folder import read_records
from rotateconv.lab.train.running_metrics import RunningMetrics
from rotateconv.lab.train.step import compute_step
from rotateconv.models import MODELS
from rotateconv.quantization import primitives
from small import StopAt, Tiny, assert_same_run, tiny_config


class Recorder:
    """A graph that records a function and runs it again: it reads the same tensors, and writes to the same."""

    count: list[str]

    def warm_up(self, work: Callable[[], Any]) -> Any:
        self.count.append("warm up")
        return work()

    def capture(self, work: Callable[[], None]) -> None:
        self.count.append("capture")
        self.work = work

    def replay(self) -> None:
        self.count.append("replay")
        step = cast("captured.CapturedStep", cast("partial[None]", self.work).func.__self__)
        before = getattr(step, "loss", None), getattr(step, "correct", None)
        self.work()
        if before[0] is not None and before[1] is not None:
            step.loss, step.correct = before[0].copy_(step.loss), before[1].copy_(step.correct)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a recorder was asked for, in runs that are captured by one."""
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    monkeypatch.setattr(captured, "CudaGraph", Recorder)
    monkeypatch.setattr(captured, "not_captured", lambda state: None)
    monkeypatch.setattr(Recorder, "count", [], raising=False)
    return Recorder.count


# A rate that float32 has, so that a tensor of it is the same number.
EXACT = {"lr": 0.0625, "schedule": "constant", "warmup": 0.0, "conv": "rotate4"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.2, "ema_decay": 0.75, "clip_grad_norm": 0.5},
        {"schedule": "steps", "gamma": 0.5, "milestones": (0.2, 0.6), "precision": "bf16", "channels_last": True},
        {"label_smoothing": 0.1, "conv": "rotate2p", "momentum": 0.0, "nesterov": False, "augment": "fast"},
        {"qat": True, "weight_bits": 2, "weight_levels": 4, "angle_bits": 3, "conv": "rotate2p"},
    ],
)
def test_gives_the_run_of_eager_steps(
    changes: dict[str, Any], tmp_path: Path, data: ImageData, calls: list[str]
) -> None:
    config = {**EXACT, **changes}
    fit(tiny_config(cuda_graph=False, **config), tmp_path / "eager", data=data)
    assert not calls
    fit(tiny_config(**config), tmp_path / "run", data=data)
    # Four batches an epoch, of which the last is smaller and not captured.
    assert calls == ["warm up"] * 3 + ["capture"] + ["replay"] * 6
    assert_same_run(tmp_path / "run", tmp_path / "eager")


def test_distils(tmp_path: Path, data: ImageData, calls: list[str]) -> None:
    fit(tiny_config(**EXACT, cuda_graph=False), tmp_path / "teacher", data=data)
    config = {**EXACT, "teacher": str(tmp_path / "teacher"), "seed": 1}
    fit(tiny_config(**config, cuda_graph=False), tmp_path / "eager", data=data)
    fit(tiny_config(**config), tmp_path / "run", data=data)
    assert "replay" in calls
    assert_same_run(tmp_path / "run", tmp_path / "eager")


def test_follows_the_learning_rate_and_keeps_it_a_number(tmp_path: Path, data: ImageData, calls: list[str]) -> None:
    config = {**EXACT, "schedule": "one-cycle", "warmup": 0.3, "ema_decay": 0.5}
    for name in ("eager", "run"):
        fit(tiny_config(**config, cuda_graph=name == "run"), tmp_path / name, data=data)
    assert "replay" in calls
    found, expected = (read_records(tmp_path / name) for name in ("run", "eager"))
    for mine, other in zip(found, expected, strict=True):
        assert mine.learning_rates == other.learning_rates
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-4)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert all(type(group["lr"]) is float for group in checkpoint.state["optimizer"]["param_groups"])
    assert checkpoint.state["n_averaged"] == 12


def test_what_a_step_returned_stays(
    tmp_path: Path, data: ImageData, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Tensor, float]] = []
    add = RunningMetrics.add

    def keep(self: RunningMetrics, loss: Tensor, correct: Tensor, samples: int) -> None:
        kept.append((loss, loss.item()))
        add(self, loss, correct, samples)

    monkeypatch.setattr(RunningMetrics, "add", keep)
    fit(tiny_config(**EXACT), tmp_path / "run", data=data)
    assert [loss.item() for loss, _ in kept] == [value for _, value in kept]
    assert calls.count("replay") == 6


@pytest.mark.parametrize("step", [2, 5, 8])
def test_an_interrupted_run_goes_on_exactly(step: int, tmp_path: Path, data: ImageData, calls: list[str]) -> None:
    config = tiny_config(**EXACT, dropout=0.2, ema_decay=0.75)
    fit(config, tmp_path / "whole", data=data)
    with pytest.raises(RunInterrupted):
        fit(config, tmp_path / "run", data=data, on_event=StopAt(step))
    groups = load_checkpoint(tmp_path / "run" / "checkpoints").state["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is float for group in groups)
    fit(config, tmp_path / "run", data=data, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_step_that_cannot_be_captured_runs_eagerly(
    tmp_path: Path, data: ImageData, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tiny_config(**EXACT, cuda_graph=False), tmp_path / "eager", data=data)

    def refuse(self: Recorder, work: Callable[[], None]) -> None:
        raise RuntimeError("not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Recorder, "capture", refuse)
    listener = StopAt()
    fit(tiny_config(**EXACT), tmp_path / "run", data=data, on_event=listener)
    (warning,) = listener.all(RunWarning)
    assert warning.message == (
        "the step cannot be captured in a CUDA graph (not permitted when stream is capturing): it runs eagerly"
    )
    assert_same_run(tmp_path / "run", tmp_path / "eager")


def test_on_a_cpu_it_says_so_where_it_was_asked_for(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for wanted, count in ((True, 1), (None, 0), (False, 0)):
        listener = StopAt()
        fit(tiny_config(epochs=1, cuda_graph=wanted), tmp_path / f"{wanted}", data=data, on_event=listener)
        messages = [warning.message for warning in listener.all(RunWarning)]
        expected = "cuda_graph=true has no effect here: the run is on the cpu, and only a CUDA GPU captures; every step"
        assert len(messages) == count
        assert all(message.startswith(expected) for message in messages)


class OnGpu:
    """A state as it is on a GPU, for what keeps it from being captured."""

    def __init__(self, **changes: Any) -> None:
        self.config = tiny_config(**{key: value for key, value in changes.items() if key != "processes"})
        self.accelerator = self
        self.device = torch.device("cuda")
        self.num_processes = changes.get("processes", 1)
        self.scaler = object() if self.config.precision == "fp16" else None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"precision": "bf16", "ema_decay": 0.9, "clip_grad_norm": 1.0}, None),
        ({"precision": "fp16"}, "precision=fp16 looks at every step"),
        ({"processes": 2}, "the run has 2 processes"),
        ({"qat": True}, None),
        ({"compile": True}, "compile=true compiles the model"),
    ],
)
def test_what_keeps_a_step_from_being_captured(changes: dict[str, Any], reason: str | None) -> None:
    found = captured.not_captured(cast("captured.TrainingState", OnGpu(**changes)))
    assert (found is None) if reason is None else (found or "").startswith(reason)


def test_a_model_of_the_users_is_captured_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "CudaGraph", Recorder)
    for wanted, is_captured in ((None, False), (True, True), (False, False)):
        state = cast("captured.TrainingState", OnGpu(factory="mine:model", cuda_graph=wanted))
        chosen = captured.choose_step(state, lambda event: pytest.fail("nothing to report"))
        assert isinstance(chosen, captured.CapturedStep) == is_captured
        assert is_captured or chosen is compute_step


class ReadsNothing(TorchDispatchMode):
    """Refuses what makes a GPU wait: a number read, a tensor made of Python's numbers on the device or looked into."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema_decay": 0.9},
        {"clip_grad_norm": 1.0},
        {"precision": "bf16"},
        {"qat": True, "weight_bits": 3, "weight_levels": 8, "profile_bits": 4, "conv": "rotate2p"},
        {"qat": True, "qat_scales": "learned", "ema_decay": 0.9, "weight_bits": 1},
        {"qat": True, "conv": "codebook16", "weight_bits": 2},
        {"qat": True, "conv": "pattern4", "weight_bits": 1},
    ],
)
def test_a_step_reads_no_number_from_the_device(
    changes: dict[str, Any], tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    steps: list[int] = []

    def watched(state: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        steps.append(1)
        with ReadsNothing():
            return compute_step(state, images, labels)

    monkeypatch.setattr(training, "choose_step", lambda *_: watched)
    monkeypatch.setattr(primitives, "_is_captured", lambda values: True)
    fit(tiny_config(**{"epochs": 1, "conv": "rotate4", **changes}), tmp_path / "run", data=data)
    assert len(steps) == 4
