"""Laws of training: records hold what was found, and every option does what it says."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rotateconv.errors import ConfigError, RunError
from rotateconv.lab.config import PRESETS, RunConfig, make_config
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import read_json
from rotateconv.lab.train import loop as training
from rotateconv.lab.train.build import build_configured, rotate_layers
from rotateconv.lab.train.checkpoint import load_checkpoint
from rotateconv.lab.train.evaluate import evaluate
from rotateconv.lab.train.events import CheckpointSaved, EpochEnd, Event, RunEnd, RunStart, StepEnd
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import read_records, read_summary
from rotateconv.lab.train.step import training_loss
from rotateconv.models import MODELS
from small import BATCHES_AN_EPOCH, StopAt, Tiny, assert_same_run, small_digits, tiny_config

pytestmark = pytest.mark.usefixtures("tiny")


def test_records_and_summary_hold_what_was_found(tmp_path: Path, data: ImageData) -> None:
    config, listener = tiny_config(conv="rotate4"), StopAt()
    summary = fit(config, tmp_path / "run", data=data, on_event=listener)
    records = read_records(tmp_path / "run")
    assert summary == read_summary(tmp_path / "run") == listener.all(RunEnd)[0].summary
    assert records == [event.record for event in listener.all(EpochEnd)]
    assert [record.epoch for record in records] == [1, 2, 3]
    assert [record.step for record in records] == [4, 8, 12]
    for record in records:
        assert record.images_per_second == pytest.approx(101 / record.seconds)
        assert set(record.learning_rates) == {"weights", "no_decay", "angles"}
        assert 0 < record.angle_movement_mean < record.angle_movement_max
        assert record.peak_memory_bytes > 10**7
    trained = load_run(tmp_path / "run")
    test = Batches(data.test, 10, mean=data.mean, std=data.std)
    found = evaluate(trained.model, test, data.classes)
    assert summary.test_accuracy == found.accuracy
    assert summary.test_loss == pytest.approx(found.loss, rel=1e-5)
    assert summary.test_confusion == tuple(map(tuple, found.confusion.tolist()))
    assert summary.parameters == sum(p.numel() for p in trained.model.parameters())
    assert summary.multiply_adds == 8 * 64 * 9 + 8 * 8 * 16 * 9 + 8 * 10
    best = max(records, key=lambda record: record.validation_accuracy)
    assert (summary.best_epoch, summary.best_validation_accuracy) == (
        best.epoch,
        best.validation_accuracy,
    )
    start = listener.all(RunStart)[0]
    assert (start.steps, start.num_samples, start.parameters) == (12, 101, summary.parameters)


def test_the_movement_of_angles_is_measured_from_the_first_weights(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(conv="rotate4", seed=5)
    fit(config, tmp_path / "run", data=data)
    torch.manual_seed(5)
    start = build_configured(config.architecture, DataDescription.of(data)).conv.angle
    moved = (load_run(tmp_path / "run").model.conv.angle - start).abs()
    record = read_records(tmp_path / "run")[-1]
    assert record.angle_movement_mean == pytest.approx(moved.mean().item())
    assert record.angle_movement_max == pytest.approx(moved.max().item())
    assert record.angle_movement_layers == pytest.approx([moved.mean().item()])


def test_the_movement_of_layers_is_in_the_order_of_the_model(tmp_path: Path) -> None:
    config = make_config("digits", changes={"epochs": 1, "width": 0.25, "conv": "rotate4"})
    data = small_digits()
    fit(config, tmp_path / "run", data=data)
    torch.manual_seed(config.seed)
    start, end = build_configured(config.architecture, DataDescription.of(data)), load_run(tmp_path / "run").model
    moved = [
        (end.get_submodule(name).angle - layer.angle).abs().mean().item()
        for name, layer in rotate_layers(start).items()
    ]
    (record,) = read_records(tmp_path / "run")
    assert len(moved) == 18
    assert record.angle_movement_layers == pytest.approx(moved, rel=1e-4)


def test_a_model_without_angles_records_none(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="conv3x3", epochs=1), tmp_path / "run", data=data)
    (record,) = read_records(tmp_path / "run")
    assert (record.angle_movement_mean, record.angle_movement_max, record.angle_movement_layers) == (None,) * 3


def test_train_loss_and_accuracy_are_means_over_images(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(conv="conv3x3", lr=1e-30, warmup=0.0, epochs=1, augment="none", batch_size=101)
    fit(config, tmp_path / "run", data=data)
    record = read_records(tmp_path / "run")[0]
    torch.manual_seed(0)
    model = build_configured(config.architecture, DataDescription.of(data)).train()
    images, labels = next(iter(Batches(data.train, 101, mean=data.mean, std=data.std)))
    scores = model(images)
    assert record.train_loss == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    assert record.train_accuracy == pytest.approx(100 * (scores.argmax(1) == labels).sum().item() / 101)


def test_the_seed_decides_everything_and_the_caller_keeps_its_random_numbers(tmp_path: Path, data: ImageData) -> None:
    state = torch.get_rng_state()
    fit(tiny_config(dropout=0.2), tmp_path / "first", data=data)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    fit(tiny_config(dropout=0.2), tmp_path / "second", data=data)
    assert_same_run(tmp_path / "second", tmp_path / "first")
    other = fit(tiny_config(dropout=0.2, seed=1), tmp_path / "third", data=data)
    assert other.test_loss != read_summary(tmp_path / "first").test_loss


def test_the_average_is_the_exponential_average_of_all_steps(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(ema_decay=0.8, checkpoint_steps=1, epochs=2)
    averages: list[torch.Tensor] = []

    def follow(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and len(averages) < event.step:
            weights = load_checkpoint(event.path.parent).weights
            weight = weights["model"]["conv.weight"]
            averages.append(0.8 * averages[-1] + 0.2 * weight if averages else weight)
            torch.testing.assert_close(weights["average"]["conv.weight"], averages[-1])

    fit(config, tmp_path / "run", data=data, on_event=follow)
    assert len(averages) == 8
    trained = load_run(tmp_path / "run")
    torch.testing.assert_close(trained.model.conv.weight.detach(), averages[-1])
    found = evaluate(trained.model, Batches(data.test, 10, mean=data.mean, std=data.std), data.classes)
    assert read_json(tmp_path / "run" / "summary.json")["test_loss"] == pytest.approx(found.loss, rel=1e-5)


def test_gradients_are_clipped(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(
        clip_grad_norm=1e-6, momentum=0.0, nesterov=False, weight_decay=0.0, lr=1.0, schedule="constant", warmup=0.0
    )
    fit(dataclasses.replace(config, epochs=1), tmp_path / "run", data=data)
    torch.manual_seed(0)
    start = build_configured(config.architecture, DataDescription.of(data))
    end = load_run(tmp_path / "run").model
    pairs = zip(start.parameters(), end.parameters(), strict=True)
    moved = math.sqrt(sum(float((a - b).detach().double().square().sum()) for a, b in pairs))
    assert 0 < moved <= BATCHES_AN_EPOCH * 1.01e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_training_loss_is_its_formula(smoothing: float) -> None:
    scores, teacher, labels = torch.randn(6, 4), torch.randn(6, 4), torch.randint(4, (6,))
    config = RunConfig(teacher_weight=0.3, teacher_temperature=2.5, label_smoothing=smoothing)
    total = 0.0
    for s, t, label in zip(scores.double(), teacher.double(), labels.tolist(), strict=True):
        target = [(1 - smoothing) * (i == label) + smoothing / 4 for i in range(4)]
        hard = -sum(p * q for p, q in zip(target, s.log_softmax(0).tolist(), strict=True))
        p, q = (t / 2.5).softmax(0), (s / 2.5).softmax(0)
        total += 0.7 * hard + 0.3 * 2.5**2 * float((p * (p / q).log()).sum())
    assert training_loss(scores, labels, config, teacher).item() == pytest.approx(total / 6, rel=1e-5)
    plain = F.cross_entropy(scores, labels, label_smoothing=smoothing)
    assert training_loss(scores, labels, config) == plain


def test_a_student_follows_its_teacher_alone(tmp_path: Path, data: ImageData) -> None:
    """With all weight on the teacher, labels of another order change nothing but the recorded accuracies."""
    fit(tiny_config(epochs=4), tmp_path / "teacher", data=data)
    teacher = {"teacher": str(tmp_path / "teacher"), "teacher_weight": 1.0, "seed": 3}
    fit(tiny_config(**teacher), tmp_path / "student", data=data)
    labels = data.train.labels.flip(0)
    shuffled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    fit(tiny_config(**teacher), tmp_path / "blind", data=shuffled)
    fit(tiny_config(**{**teacher, "teacher_weight": 0.5}), tmp_path / "half", data=data)
    student, blind, half = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("student", "blind", "half")
    )
    assert student == blind
    assert student != half
    losses = [record.train_loss for record in read_records(tmp_path / "student")]
    assert losses[-1] < losses[0]


def test_a_teacher_of_other_data_is_refused(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(epochs=1), tmp_path / "teacher", data=data)
    other = dataclasses.replace(data, classes=tuple("abcdefghij"))
    config = tiny_config(teacher=str(tmp_path / "teacher"))
    with pytest.raises(ConfigError, match=r"was trained with classes .* this run has .*: give both the same data"):
        fit(config, tmp_path / "run", data=other)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="nothing is not there"):
        fit(tiny_config(teacher=str(tmp_path / "nothing")), tmp_path / "run", data=data)


def test_validation_off_trains_on_all_and_records_none(tmp_path: Path, data: ImageData) -> None:
    listener = StopAt()
    summary = fit(tiny_config(validation=False, epochs=1), tmp_path / "run", data=data, on_event=listener)
    assert listener.all(RunStart)[0].num_samples == 141
    assert listener.all(StepEnd)[-1].num_samples == 141
    assert read_records(tmp_path / "run")[0].validation_accuracy is None
    assert (summary.best_epoch, summary.best_validation_accuracy) == (None, None)


def test_the_test_split_is_evaluated_once(tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(model: Any, batches: Batches, classes: Any) -> Any:
        found = evaluate(model, batches, classes)
        seen.append(found.count)
        return found

    monkeypatch.setattr(training, "evaluate", counted)
    fit(tiny_config(), tmp_path / "run", data=data)
    assert seen == [40, 40, 40, 37]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet21"}, "unknown model 'resnet21'"),
        ({"conv": "rotate5"}, "rotate5"),
        ({"model": "resnet20", "dropout": 0.5}, "resnet20 has no dropout"),
    ],
)
def test_mistakes_are_found_before_a_folder_is_made(
    tmp_path: Path, data: ImageData, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        fit(tiny_config(**changes), tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs fp16")
def test_fp16_needs_a_gpu(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(ConfigError, match="precision=fp16 does not run on this cpu: choose bf16 or no"):
        fit(tiny_config(precision="fp16"), tmp_path / "run", data=data)


def test_a_precision_that_the_device_refuses_is_told(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(mixed_precision: str, cpu: bool) -> None:
        raise ValueError(f"{mixed_precision} needs another device")

    monkeypatch.setattr("rotateconv.lab.train.build_state.Accelerator", refuse)
    with pytest.raises(ConfigError, match="precision=bf16 does not run here: bf16 needs another device"):
        fit(tiny_config(precision="bf16"), tmp_path / "run", data=data)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_autocast_reaches_the_model_in_training_and_evaluation(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen = set()

    class Probe(Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.stem(images)
            if images.device.type != "meta":  # where costs are counted
                seen.add((self.training, features.dtype, features.is_contiguous(memory_format=torch.channels_last)))
            return super().forward(images)

    monkeypatch.setitem(MODELS, "tiny", Probe)
    fit(tiny_config(precision=precision, channels_last=True, ema_decay=0.5), tmp_path / "run", data=data)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert seen == {(True, dtype, True), (False, dtype, True)}
    assert load_run(tmp_path / "run").model.stem.weight.dtype == torch.float32


@pytest.mark.slow
def test_memory_is_flat_over_epochs(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(epochs=30, batch_size=4), tmp_path / "run", data=data)
    peaks = [record.peak_memory_bytes for record in read_records(tmp_path / "run")]
    assert peaks[-1] - peaks[4] < 4 * 2**20


def test_every_preset_trains_a_step(tmp_path: Path, data: ImageData) -> None:
    for name in PRESETS:
        changes = {"model": "tiny", "data": "digits", "epochs": 1, "batch_size": 51}
        summary = fit(make_config(name, changes=changes), tmp_path / name, data=data)
        assert summary.steps == read_records(tmp_path / name)[-1].step


def test_given_normalization_reaches_the_run(tmp_path: Path) -> None:
    config = tiny_config(epochs=1, mean=(0.25,), std=(0.5,))
    fit(config, tmp_path / "run", data=load_images(config.images))
    assert read_json(tmp_path / "run" / "data.json")["mean"] == [0.25]
    assert load_run(tmp_path / "run").data.std == (0.5,)
