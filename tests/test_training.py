"""Laws of training: resuming is exact, options do what they say, a stop of any kind loses nothing."""

import dataclasses
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rotateconv import RotateConv2d, training
from rotateconv.checkpoint import list_checkpoints, load_checkpoint, read_weights
from rotateconv.config import PRESETS, ConfigError, RunConfig, make_config
from rotateconv.data.loader import Batches
from rotateconv.data.sets import ImageData
from rotateconv.evaluation import evaluate
from rotateconv.models import MODELS
from rotateconv.runs import RunError, read_json, read_records
from rotateconv.trained import DataDescription, build_net, load_run
from rotateconv.training import DivergedError, RunInterrupted, fit, training_loss
from small import Tiny, small_digits

TIMES = ("seconds", "validation_seconds", "images_per_second", "peak_memory_bytes", "seconds_per_epoch")
BATCHES_AN_EPOCH = 4  # 101 images in batches of 32


@pytest.fixture(scope="module")
def data() -> ImageData:
    return small_digits()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", Tiny)


def tiny_config(**changes: Any) -> RunConfig:
    values = {"model": "tiny", "epochs": 3, "batch_size": 32, "lr": 0.05, "augment": "paper", **changes}
    return make_config("digits", changes=values)


def without_times(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: without_times(value) for key, value in record.items() if key not in TIMES}
    return record


def assert_same_run(found: Path, expected: Path) -> None:
    assert without_times(read_json(found / "summary.json")) == without_times(read_json(expected / "summary.json"))
    records = zip(read_records(found), read_records(expected), strict=True)
    assert all(without_times(a) == without_times(b) for a, b in records)
    ours, theirs = (read_weights((run / "model.safetensors").read_bytes()) for run in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    last, reference = (load_checkpoint(run / "checkpoints") for run in (found, expected))
    for model, weights in reference.weights.items():
        assert all(torch.equal(last.weights[model][name], tensor) for name, tensor in weights.items())
    for key in ("step", "epoch", "loader", "n_averaged", "scaler"):
        assert last.state[key] == reference.state[key]
    assert torch.equal(last.state["processes"][0]["rng"], reference.state["processes"][0]["rng"])
    moments, expected_moments = (run.state["optimizer"]["state"] for run in (last, reference))
    for index, values in expected_moments.items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(moments[index][key]), torch.as_tensor(value)), (index, key)


class StopAt:
    """An event callback that acts like Ctrl-C after one step, and keeps what it hears."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, values: dict[str, Any]) -> None:
        self.events.append((name, values))
        if name == "step" and values["step"] == self.step:
            raise KeyboardInterrupt

    def named(self, name: str) -> list[dict[str, Any]]:
        return [values for found, values in self.events if found == name]


EVERYTHING = {
    "dropout": 0.3,
    "ema_decay": 0.9,
    "clip_grad_norm": 0.5,
    "label_smoothing": 0.1,
    "channels_last": True,
    "precision": "bf16",
    "augment": "fast",
    "conv": "rotate2p",
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.3}, {"optimizer": "adamw", "nesterov": False, "ema_decay": 0.9}, EVERYTHING],
    ids=["plain", "dropout", "adamw", "everything"],
)
def test_resuming_after_any_step_is_exact(tmp_path: Path, data: ImageData, changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    fit(config, tmp_path / "whole", data=data)
    for step in range(1, 3 * BATCHES_AN_EPOCH + 1):
        run = tmp_path / f"stopped-{step}"
        with pytest.raises(RunInterrupted, match=rf"saved after step {step} of 12: go on with .* --resume {run}"):
            fit(config, run, data=data, on_event=StopAt(step))
        torch.rand(3)  # whatever the process does in between
        listener = StopAt()
        fit(config, run, data=data, resume=True, on_event=listener)
        assert [values["step"] for values in listener.named("step")] == list(range(step + 1, 13))
        assert_same_run(run, tmp_path / "whole")


def test_resuming_twice_in_one_epoch_is_exact(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config()
    fit(config, tmp_path / "whole", data=data)
    for step in (5, 6, 7):
        with pytest.raises(RunInterrupted, match=f"after step {step} of 12"):
            fit(config, tmp_path / "run", data=data, resume=step > 5, on_event=StopAt(step))
    fit(config, tmp_path / "run", data=data, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


class CrashError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("crash_step", [1, 3, 5, 9, 12])
@pytest.mark.parametrize("every", [0, 2])
def test_resuming_after_a_crash_is_exact(tmp_path: Path, data: ImageData, crash_step: int, every: int) -> None:
    def crash(name: str, values: dict[str, Any]) -> None:
        if name == "step" and values["step"] == crash_step:
            raise CrashError

    config = tiny_config(checkpoint_steps=every)
    fit(config, tmp_path / "whole", data=data)
    with pytest.raises(CrashError):
        fit(config, tmp_path / "run", data=data, on_event=crash)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 9, "cut o')
    listener = StopAt()
    fit(config, tmp_path / "run", data=data, resume=True, on_event=listener)
    before = crash_step - 1
    saved = before - before % BATCHES_AN_EPOCH if every == 0 else before - before % 2
    assert listener.named("start")[0]["step"] == saved
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_checkpoint_costs_an_epoch_and_a_warning(tmp_path: Path, data: ImageData) -> None:
    config, run = tiny_config(), tmp_path / "run"
    fit(config, tmp_path / "whole", data=data)
    with pytest.raises(RunInterrupted, match="after step 10"):
        fit(config, run, data=data, on_event=StopAt(10))
    newest = list_checkpoints(run / "checkpoints")[-1]
    (newest / "state.pt").write_bytes(b"cut off")
    listener = StopAt()
    fit(config, run, data=data, resume=True, on_event=listener)
    assert listener.named("warning") == [
        {"message": f"the checkpoint {newest} is damaged: going on from {newest.with_name('000002')}"}
    ]
    assert listener.named("start")[0]["step"] == 8
    assert_same_run(run, tmp_path / "whole")


def test_one_ctrl_c_saves_and_a_second_leaves_at_once(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = signal.getsignal(signal.SIGINT)

    def press(name: str, values: dict[str, Any], times: int) -> None:
        if name == "step" and values["step"] == 2:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(RunInterrupted, match="after step 2 of 12"):
        fit(tiny_config(), tmp_path / "once", data=data, on_event=lambda n, v: press(n, v, 1))
    assert load_checkpoint(tmp_path / "once" / "checkpoints").state["step"] == 2
    assert signal.getsignal(signal.SIGINT) is previous

    def press_inside_a_step(*arguments: Any) -> float:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return 1.0

    monkeypatch.setattr(training, "factor", press_inside_a_step)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_config(), tmp_path / "twice", data=data)
    assert list_checkpoints(tmp_path / "twice" / "checkpoints") == []
    assert signal.getsignal(signal.SIGINT) is previous


def test_records_and_summary_hold_what_was_found(tmp_path: Path, data: ImageData) -> None:
    config, listener = tiny_config(conv="rotate4"), StopAt()
    summary = fit(config, tmp_path / "run", data=data, on_event=listener)
    records = read_records(tmp_path / "run")
    assert summary == read_json(tmp_path / "run" / "summary.json") == listener.named("done")[0]
    assert records == listener.named("epoch")
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [4, 8, 12]
    for record in records:
        assert record["images_per_second"] == pytest.approx(101 / record["seconds"])
        assert set(record["learning_rates"]) == {"weights", "no_decay", "angles"}
        assert 0 < record["angle_movement_mean"] < record["angle_movement_max"]
        assert record["peak_memory_bytes"] > 10**7
    trained = load_run(tmp_path / "run")
    test = Batches(data.test, 10, mean=data.mean, std=data.std)
    found = evaluate(trained.model, test, data.classes)
    assert summary["test_accuracy"] == found.accuracy
    assert summary["test_loss"] == pytest.approx(found.loss, rel=1e-5)
    assert summary["test_confusion"] == found.confusion.tolist()
    assert summary["parameters"] == sum(p.numel() for p in trained.model.parameters())
    assert summary["multiply_adds"] == 8 * 64 * 9 + 8 * 8 * 16 * 9 + 8 * 10
    best = max(records, key=lambda record: record["validation_accuracy"])
    assert (summary["best_epoch"], summary["best_validation_accuracy"]) == (
        best["epoch"],
        best["validation_accuracy"],
    )
    start = listener.named("start")[0]
    assert (start["steps"], start["images"], start["parameters"]) == (12, 101, summary["parameters"])


def test_the_movement_of_angles_is_measured_from_the_first_weights(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(conv="rotate4", seed=5)
    fit(config, tmp_path / "run", data=data)
    torch.manual_seed(5)
    start = build_net(config, DataDescription.of(data)).conv.angle
    moved = (load_run(tmp_path / "run").model.conv.angle - start).abs()
    record = read_records(tmp_path / "run")[-1]
    assert record["angle_movement_mean"] == pytest.approx(moved.mean().item())
    assert record["angle_movement_max"] == pytest.approx(moved.max().item())


def test_a_net_without_angles_records_none(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="conv3x3", epochs=1), tmp_path / "run", data=data)
    assert read_records(tmp_path / "run")[0]["angle_movement_mean"] is None


def test_train_loss_and_accuracy_are_means_over_images(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(conv="conv3x3", lr=1e-30, warmup=0.0, epochs=1, augment="none", batch_size=101)
    fit(config, tmp_path / "run", data=data)
    record = read_records(tmp_path / "run")[0]
    torch.manual_seed(0)
    net = build_net(config, DataDescription.of(data)).train()
    images, labels = next(iter(Batches(data.train, 101, mean=data.mean, std=data.std)))
    scores = net(images)
    assert record["train_loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    assert record["train_accuracy"] == pytest.approx(100 * (scores.argmax(1) == labels).sum().item() / 101)


def test_the_seed_decides_everything_and_the_caller_keeps_its_random_numbers(tmp_path: Path, data: ImageData) -> None:
    state = torch.get_rng_state()
    fit(tiny_config(dropout=0.2), tmp_path / "first", data=data)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    fit(tiny_config(dropout=0.2), tmp_path / "second", data=data)
    assert_same_run(tmp_path / "second", tmp_path / "first")
    other = fit(tiny_config(dropout=0.2, seed=1), tmp_path / "third", data=data)
    assert other["last"]["train_loss"] != read_json(tmp_path / "first" / "summary.json")["last"]["train_loss"]


def test_the_average_is_the_exponential_average_of_all_steps(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(ema_decay=0.8, checkpoint_steps=1, epochs=2)
    averages: list[torch.Tensor] = []

    def follow(name: str, values: dict[str, Any]) -> None:
        if name == "checkpoint" and len(averages) < values["step"]:
            weights = load_checkpoint(Path(values["path"]).parent).weights
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
    start = build_net(config, DataDescription.of(data))
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
    losses = [record["train_loss"] for record in read_records(tmp_path / "student")]
    assert losses[-1] < losses[0]


def test_a_teacher_of_other_data_is_refused(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(epochs=1), tmp_path / "teacher", data=data)
    other = dataclasses.replace(data, classes=tuple("abcdefghij"))
    config = tiny_config(teacher=str(tmp_path / "teacher"))
    with pytest.raises(ConfigError, match=r"was trained with classes .* this run has .*: choose a teacher of"):
        fit(config, tmp_path / "run", data=other)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="nothing is no run folder"):
        fit(tiny_config(teacher=str(tmp_path / "nothing")), tmp_path / "run", data=data)


def test_an_exploding_rate_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "factor", lambda step, total, config: 1.0 if step < 6 else 1e38)
    with pytest.raises(DivergedError, match=r"the loss became infinite or NaN at step (8|9) of 12 \(epoch [23]\)") as e:
        fit(tiny_config(), tmp_path / "run", data=data)
    assert "the last good checkpoint is" in str(e.value)
    assert "try a lower lr than 0.05 or clip_grad_norm=1" in str(e.value)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert str(checkpoint.path) in str(e.value)
    assert checkpoint.state["step"] == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint.weights["model"].values())
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("validation", "scale", "name"),
    [(True, 1e27, "validation loss"), (True, 1e300, "net's weights"), (False, 1e300, "net's weights")],
)
def test_weights_that_explode_in_the_last_step_are_not_kept(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, validation: bool, scale: float, name: str
) -> None:
    last = 4 * BATCHES_AN_EPOCH if validation else 2 * 5
    config = tiny_config(epochs=4 if validation else 2, validation=validation, clip_grad_norm=1.0)
    monkeypatch.setattr(training, "factor", lambda step, total, config: scale if step == last - 1 else 1.0)
    with pytest.raises(DivergedError, match=f"the {name} became infinite or NaN at step {last} of {last}") as e:
        fit(config, tmp_path / "run", data=data)
    assert str(e.value).endswith("try a lower lr than 0.05")
    assert load_checkpoint(tmp_path / "run" / "checkpoints").state["step"] < last


def test_validation_off_trains_on_all_and_records_none(tmp_path: Path, data: ImageData) -> None:
    listener = StopAt()
    summary = fit(tiny_config(validation=False, epochs=1), tmp_path / "run", data=data, on_event=listener)
    assert listener.named("start")[0]["images"] == 141
    assert listener.named("step")[-1]["images"] == 141
    assert read_records(tmp_path / "run")[0]["validation_accuracy"] is None
    assert (summary["best_epoch"], summary["best_validation_accuracy"]) == (None, None)


def test_the_test_split_is_evaluated_once(tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(model: Any, batches: Batches, classes: Any) -> Any:
        found = evaluate(model, batches, classes)
        seen.append(found.count)
        return found

    monkeypatch.setattr(training, "evaluate", counted)
    fit(tiny_config(), tmp_path / "run", data=data)
    assert seen == [40, 40, 40, 37]


def test_a_finished_run_resumes_to_its_summary(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config(epochs=1)
    summary = fit(config, tmp_path / "run", data=data)
    listener = StopAt()
    assert fit(config, tmp_path / "run", data=data, resume=True, on_event=listener) == summary
    assert listener.events == []


def test_runs_are_never_mixed(tmp_path: Path, data: ImageData) -> None:
    config, run = tiny_config(epochs=1), tmp_path / "run"
    fit(config, run, data=data)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="holds a run already"):
        fit(config, run, data=data)
    with pytest.raises(RunError, match=r"has lr 0.05, not 0.01: resume it unchanged"):
        fit(tiny_config(epochs=1, lr=0.01), run, data=data, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    fit(tiny_config(epochs=1, lr=0.01), run, data=data, overwrite=True)
    assert len(read_records(run)) == 1
    assert load_run(run).config.lr == 0.01


def test_resuming_on_other_data_is_refused(tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(RunInterrupted, match="after step 2"):
        fit(tiny_config(), tmp_path / "run", data=data, on_event=StopAt(2))
    with pytest.raises(RunError, match="was trained on data with another train: give it the same data"):
        fit(tiny_config(), tmp_path / "run", data=small_digits(train=90), resume=True)


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

    monkeypatch.setattr("rotateconv.state.Accelerator", refuse)
    with pytest.raises(ConfigError, match="precision=bf16 does not run here: bf16 needs another device"):
        fit(tiny_config(precision="bf16"), tmp_path / "run", data=data)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_autocast_reaches_the_net_in_training_and_evaluation(
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


def test_angle_grad_scale_overrides_every_layers_own(data: ImageData) -> None:
    described = DataDescription.of(data)
    for scale in (1.0, 7.5):
        net = build_net(tiny_config(conv="rotate4", angle_grad_scale=scale), described)
        assert [m.angle_grad_scale for m in net.modules() if isinstance(m, RotateConv2d)] == [scale]
    natural = build_net(tiny_config(conv="rotate4"), described).conv.angle_grad_scale
    assert natural == Tiny("rotate4", 10, 1, 1.0).conv.angle_grad_scale != 1.0


def test_load_run_of_an_unfinished_run_takes_its_checkpoint(tmp_path: Path, data: ImageData) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunInterrupted, match="after step 5"):
        fit(tiny_config(ema_decay=0.5), run, data=data, on_event=StopAt(5))
    trained = load_run(run)
    weights = load_checkpoint(run / "checkpoints").weights["average"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.model.state_dict().items())
    assert not trained.model.training
    assert trained.data == DataDescription.of(data)
    for path in (run / "checkpoints").iterdir():
        path.rename(run / path.name)
    with pytest.raises(RunError, match="has no weights yet: resume it"):
        load_run(run)


def test_load_run_names_what_does_not_fit(tmp_path: Path, data: ImageData) -> None:
    run = tmp_path / "run"
    fit(tiny_config(epochs=1), run, data=data)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "width": 2.0}))
    with pytest.raises(RunError, match="do not fit its configuration"):
        load_run(run)
    (run / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(RunError, match=r"cannot read the weights .*: expected a safetensors file"):
        load_run(run)
    (run / "data.json").write_text('{"name": "digits"}')
    with pytest.raises(RunError, match=r"data.json must have name, classes, .* not name"):
        load_run(run)


def test_memory_is_flat_over_epochs(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(epochs=30, batch_size=4), tmp_path / "run", data=data)
    peaks = [record["peak_memory_bytes"] for record in read_records(tmp_path / "run")]
    assert peaks[-1] - peaks[4] < 4 * 2**20


def test_every_preset_trains_a_step(tmp_path: Path, data: ImageData) -> None:
    for name in PRESETS:
        changes = {"model": "tiny", "data": "digits", "epochs": 1, "batch_size": 51}
        summary = fit(make_config(name, changes=changes), tmp_path / name, data=data)
        assert summary["recipe"] == name
