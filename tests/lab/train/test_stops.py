"""Laws of stopping and going on: resuming is exact, and a stop of any kind loses nothing."""

import dataclasses
import hashlib
import io
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from rotateconv.errors import ConfigError, DivergedError, RunError, RunInterrupted
from rotateconv.lab.config import to_json
from rotateconv.lab.data.sets import ImageData, Split
from rotateconv.lab.train import loop as training
from rotateconv.lab.train.checkpoint import list_checkpoints, load_checkpoint
from rotateconv.lab.train.events import Event, RunStart, RunWarning, StepEnd
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.interrupts import Interrupts
from rotateconv.lab.train.load import load_run
from rotateconv.lab.train.run_folder import read_config, read_records
from small import BATCHES_AN_EPOCH, StopAt, assert_same_run, small_digits, tiny_config

pytestmark = pytest.mark.usefixtures("tiny")
UNFINISHED = Path(__file__).parents[2] / "fixtures" / "unfinished-run"


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


@pytest.mark.slow
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
        assert [event.step for event in listener.all(StepEnd)] == list(range(step + 1, 13))
        assert_same_run(run, tmp_path / "whole")


def test_resuming_twice_in_one_epoch_is_exact(tmp_path: Path, data: ImageData) -> None:
    config = tiny_config()
    fit(config, tmp_path / "whole", data=data)
    for step in (5, 6, 7):
        with pytest.raises(RunInterrupted, match=f"after step {step} of 12"):
            fit(config, tmp_path / "run", data=data, resume=step > 5, on_event=StopAt(step))
    fit(config, tmp_path / "run", data=data, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("older", [False, True])
def test_a_run_that_an_earlier_version_left_goes_on(older: bool, tmp_path: Path, data: ImageData) -> None:
    # Stopped after step 6 of 12: in the middle of an epoch, whose sums lie in the checkpoint.
    run, config = tmp_path / "run", tiny_config(conv="rotate2p", ema_decay=0.9)
    shutil.copytree(UNFINISHED, run)
    if older:  # of before a checkpoint kept its configuration and stated the sizes of its files
        folder = run / "checkpoints" / "000002"
        state = torch.load(folder / "state.pt", weights_only=True)
        del state["config"]
        torch.save(state, folder / "state.pt")
        manifest = json.loads((folder / "manifest.json").read_text())
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["sha256"]}
        (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    listener = StopAt()
    fit(config, run, data=data, resume=True, on_event=listener)
    assert [event.step for event in listener.all(StepEnd)] == list(range(7, 13))
    fit(config, tmp_path / "whole", data=data)
    for found, expected in zip(read_records(run), read_records(tmp_path / "whole"), strict=True):
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-3)
        assert found.validation_loss == pytest.approx(expected.validation_loss, rel=1e-3)


class CrashError(Exception):
    """The process ends here."""


@pytest.mark.slow
@pytest.mark.parametrize("crash_step", [1, 3, 5, 9, 12])
@pytest.mark.parametrize("every", [0, 2])
def test_resuming_after_a_crash_is_exact(tmp_path: Path, data: ImageData, crash_step: int, every: int) -> None:
    def crash(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == crash_step:
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
    assert listener.all(RunStart)[0].step == saved
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_odd_images_are_a_warning_when_the_run_begins(tmp_path: Path, data: ImageData) -> None:
    lonely = data.train.labels.clone()
    lonely[lonely == 3] = 4
    lonely[0] = 3
    odd = dataclasses.replace(data, train=Split(data.train.images, lonely))
    begun, resumed = StopAt(2), StopAt()
    with pytest.raises(RunInterrupted):
        fit(tiny_config(batch_size=128), tmp_path / "run", data=odd, on_event=begun)
    fit(tiny_config(batch_size=128), tmp_path / "run", data=odd, resume=True, on_event=resumed)
    assert begun.all(RunWarning) == [
        RunWarning("batch_size 128 is more than the 101 training images: an epoch is one step"),
        RunWarning("of the training images, 3 has 1: the model cannot learn such a class"),
    ]
    assert resumed.all(RunWarning) == []
    usual = StopAt()
    fit(tiny_config(epochs=1), tmp_path / "usual", data=data, on_event=usual)
    assert usual.all(RunWarning) == []


def test_a_strangers_unfinished_run_takes_no_more_memory_than_its_weights(tmp_path: Path, data: ImageData) -> None:
    run = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        fit(tiny_config(model="resnet20", width=0.25), run, data=data, on_event=StopAt(2))
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "width": 1e5}))  # a stem of 1.6 million channels
    with pytest.raises(RunError, match="do not fit the model"):
        fit(read_config(run), run, data=data, resume=True)


def test_a_damaged_checkpoint_costs_an_epoch_and_a_warning(tmp_path: Path, data: ImageData) -> None:
    config, run = tiny_config(), tmp_path / "run"
    fit(config, tmp_path / "whole", data=data)
    with pytest.raises(RunInterrupted, match="after step 10"):
        fit(config, run, data=data, on_event=StopAt(10))
    newest = list_checkpoints(run / "checkpoints")[-1]
    (newest / "state.pt").write_bytes(b"cut off")
    listener = StopAt()
    fit(config, run, data=data, resume=True, on_event=listener)
    assert listener.all(RunWarning) == [
        RunWarning(f"the checkpoint {newest} is damaged: going on from {newest.with_name('000002')}")
    ]
    assert listener.all(RunStart)[0].step == 8
    assert_same_run(run, tmp_path / "whole")


def test_one_ctrl_c_saves_and_a_second_leaves_at_once(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = signal.getsignal(signal.SIGINT)

    def press(event: Event, times: int) -> None:
        if isinstance(event, StepEnd) and event.step == 2:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(RunInterrupted, match="after step 2 of 12"):
        fit(tiny_config(), tmp_path / "once", data=data, on_event=lambda event: press(event, 1))
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


@pytest.mark.parametrize(("processes", "asked"), [(1, True), (2, False), (2, True)])
def test_a_process_that_the_others_left_on_ctrl_c_is_interrupted(
    processes: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    expected = KeyboardInterrupt if asked and processes > 1 else RuntimeError

    def left_alone() -> None:
        with Interrupts():
            if asked:
                signal.raise_signal(signal.SIGINT)
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(expected) as raised:
        left_alone()
    assert "closed by peer" in str(raised.value.__cause__ if expected is KeyboardInterrupt else raised.value)


def test_an_exploding_rate_stops_with_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "factor", lambda step, total, config: 1.0 if step < 6 else 1e38)
    with pytest.raises(DivergedError, match=r"the loss became infinite or NaN at step (8|9) of 12 \(epoch [23]\)") as e:
        fit(tiny_config(), tmp_path / "run", data=data)
    assert "the last good checkpoint is" in str(e.value)
    assert "a new run with a lower lr than 0.05 or clip_grad_norm=1 may help" in str(e.value)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert str(checkpoint.path) in str(e.value)
    assert checkpoint.state["step"] == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint.weights["model"].values())
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("validation", "scale", "name"),
    [(True, 1e27, "validation loss"), (True, 1e300, "model's weights"), (False, 1e300, "model's weights")],
)
def test_weights_that_explode_in_the_last_step_are_not_kept(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, validation: bool, scale: float, name: str
) -> None:
    last = 4 * BATCHES_AN_EPOCH if validation else 2 * 5
    config = tiny_config(epochs=4 if validation else 2, validation=validation, clip_grad_norm=1.0)
    monkeypatch.setattr(training, "factor", lambda step, total, config: scale if step == last - 1 else 1.0)
    with pytest.raises(DivergedError, match=f"the {name} became infinite or NaN at step {last} of {last}") as e:
        fit(config, tmp_path / "run", data=data)
    assert str(e.value).endswith("a new run with a lower lr than 0.05 may help")
    assert load_checkpoint(tmp_path / "run" / "checkpoints").state["step"] < last


def test_a_checkpoint_in_the_middle_of_an_epoch_never_holds_exploded_weights(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "factor", lambda step, total, config: 1e300 if step == 5 else 1.0)
    with pytest.raises(DivergedError, match=r"the model's weights became infinite or NaN at step 6 of 12 \(epoch 2\)"):
        fit(tiny_config(checkpoint_steps=3), tmp_path / "run", data=data)
    assert load_checkpoint(tmp_path / "run" / "checkpoints").state["step"] == 4


@pytest.mark.parametrize("scale", [1e38, 1e300])
def test_quantized_training_that_explodes_says_so_too(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    monkeypatch.setattr(training, "factor", lambda step, total, config: 1.0 if step < 6 else scale)
    with pytest.raises(DivergedError, match=r"became infinite or NaN at step \d of 12 \(epoch \d\); the last good"):
        fit(tiny_config(qat=True), tmp_path / "run", data=data)


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


def crafted(run: Path, **changes: Any) -> None:
    """Give the newest checkpoint another state, with the right hash."""
    path = list_checkpoints(run / "checkpoints")[-1]
    state = torch.load(path / "state.pt", weights_only=True)
    state = {key: value for key, value in {**state, **changes}.items() if value is not ...}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (path / "state.pt").write_bytes(buffer.getvalue())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest["bytes"]["state.pt"] = len(buffer.getvalue())
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"optimizer": ...},
            {"optimizer": {}},
            {"loader": 5},
            {"processes": []},
            {"processes": [{}]},
            {"config": "{"},
        ),
        {"n_averaged": 2**70},
    ],
    ids=str,
)
def test_a_state_of_something_else_is_one_sentence(tmp_path: Path, data: ImageData, changes: dict[str, Any]) -> None:
    config, run = tiny_config(ema_decay=0.9), tmp_path / "run"
    with pytest.raises(RunInterrupted):
        fit(config, run, data=data, on_event=StopAt(2))
    crafted(run, **changes)
    with pytest.raises(RunError, match=r"the checkpoint .*000001 does not fit this run \(.*\): remove it"):
        fit(config, run, data=data, resume=True)


@pytest.mark.parametrize("change", [{"lr": 0.011}, {"batch_size": 16}, {"seed": 9}], ids=str)
def test_a_configuration_changed_by_hand_is_not_mixed_with_the_first(
    tmp_path: Path, data: ImageData, change: dict[str, Any]
) -> None:
    config, run = tiny_config(), tmp_path / "run"
    with pytest.raises(RunInterrupted):
        fit(config, run, data=data, on_event=StopAt(2))
    other = dataclasses.replace(config, **change)
    (run / "config.json").write_text(to_json(other))
    (key,) = change
    with pytest.raises(RunError, match=rf"config.json was changed since the run began, {key} .*: restore it, or"):
        fit(other, run, data=data, resume=True)


def test_a_finished_run_with_other_weights_is_no_success(tmp_path: Path, data: ImageData) -> None:
    config, run = tiny_config(), tmp_path / "run"
    fit(config, run, data=data)
    weights = run / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-10], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(damaged)
        for use in (lambda: fit(config, run, data=data, resume=True), lambda: load_run(run)):
            with pytest.raises(RunError, match=r"model.safetensors"):
                use()
    weights.write_bytes(whole)
    fit(config, run, data=data, resume=True)


def test_an_unfinished_run_says_that_its_newest_weights_are_damaged(tmp_path: Path, data: ImageData) -> None:
    config, run = tiny_config(), tmp_path / "run"
    with pytest.raises(RunInterrupted):
        fit(config, run, data=data, on_event=StopAt(6))
    newest = list_checkpoints(run / "checkpoints")[-1]
    (newest / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"the checkpoint {newest} is damaged: this is .*000001"):
        load_run(run)


def test_two_processes_in_one_folder_do_not_mix(tmp_path: Path, data: ImageData) -> None:
    config, run = tiny_config(), tmp_path / "run"

    def second(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == 2:
            with pytest.raises(RunError, match="run is being trained by process"):
                fit(config, run, data=data, resume=True)

    summary = fit(config, run, data=data, on_event=second)
    assert [record.epoch for record in read_records(run)] == [1, 2, 3]
    assert fit(config, run, data=data, resume=True) == summary


def test_sigterm_saves_like_ctrl_c(tmp_path: Path, data: ImageData) -> None:
    def terminate(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunInterrupted, match="after step 2 of 12"):
        fit(tiny_config(), tmp_path / "run", data=data, on_event=terminate)
    assert load_checkpoint(tmp_path / "run" / "checkpoints").state["step"] == 2


EVIL = """
from pathlib import Path
Path("executed").touch()
def net():
    raise SystemExit(0)
"""


@pytest.mark.parametrize("factory", ["run.notes:net", "os:getpid"])
def test_a_folder_never_has_its_code_run(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tiny_config(), "run", data=data)
    Path("run", "notes.py").write_text(EVIL)
    config = json.loads(Path("run", "config.json").read_text())
    Path("run", "config.json").write_text(json.dumps({**config, "factory": factory}))
    fresh = dataclasses.replace(tiny_config(), teacher="run")
    for use in (lambda: load_run("run"), lambda: fit(fresh, "other", data=data), lambda: read_config(Path("run"))):
        with pytest.raises(RunError, match=rf"config.json wants to import and call '{factory}', which runs that code"):
            use()
    assert not Path("executed").exists()
    # Named by the user, it runs; that it ends the process is a sentence, not success.
    with pytest.raises(ConfigError, match=f"cannot build a model with {factory}|must return an nn.Module"):
        fit(dataclasses.replace(tiny_config(), factory=factory), "other", data=data)


def test_an_index_among_the_buffers_has_no_average(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="mask4", ema_decay=0.9), tmp_path / "run", data=data)
    weights = load_checkpoint(tmp_path / "run" / "checkpoints").weights
    kept = [name for name, tensor in weights["model"].items() if not tensor.is_floating_point()]
    assert any(name.endswith("position") for name in kept)
    for name in kept:
        assert torch.equal(weights["average"][name], weights["model"][name])
