"""Laws of the search for the best file of so many bytes: it fits, validation decides, nothing is tried twice."""

import dataclasses
import itertools
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import invoke
from rotateconv.errors import ConfigError, RunError, RunInterrupted
from rotateconv.lab import finish, fit
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData, Split
from rotateconv.lab.exit_codes import Failure
from rotateconv.lab.files import read_json
from rotateconv.lab.parts import Conversion
from rotateconv.lab.plain import from_json
from rotateconv.lab.study import shrink as library
from rotateconv.lab.study.convert import fine_tuning
from rotateconv.lab.study.events import RunDied, RunDiverged, RunStopped, TaskEvent, TrialEnd
from rotateconv.lab.study.shrink import shrink
from rotateconv.lab.study.shrink_files import Files
from rotateconv.lab.study.shrink_record import (
    FORMS,
    ONNX,
    PACKED,
    RECORD,
    TABLE,
    Candidate,
    CandidateForm,
    ShrinkRecord,
    Trial,
    best,
    largest_bits,
    survivors,
)
from rotateconv.lab.study.shrink_untrained import Untrained
from rotateconv.lab.study.worker import Task, do_task
from rotateconv.lab.train import fit as training
from rotateconv.lab.train import pretrained
from rotateconv.lab.train.load import evaluate_model
from rotateconv.lab.train.pretrained import convert_source
from rotateconv.lab.train.run_folder import read_config
from rotateconv.models import build_model
from rotateconv.quantization.pack import describe_packed, load_packed
from small import tiny_config

BUDGET = 1850


pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(scope="module")
def source(tiny: None, tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    fit(tiny_config(conv="conv3x3", epochs=8), out, data=data)
    return out


def recipe(source: Path) -> RunConfig:
    return fine_tuning(read_config(source), str(source))


class Here:
    """Does runs in this process, on the images given; Ctrl-C comes in the run after `stop` of them."""

    jobs, threads = 1, 1

    def __init__(self, data: ImageData, stop: int | None = None) -> None:
        self.data, self.stop = data, stop
        self.tasks: list[Task] = []
        self.done: list[str] = []

    def __call__(self, runs: int) -> "Here":
        return self

    def submit(self, task: Task) -> None:
        assert not task.tested
        self.tasks.append(task)
        if len(self.done) == self.stop:
            signal.raise_signal(signal.SIGINT)

    def events(self) -> Iterator[TaskEvent | Failure]:
        task = self.tasks.pop(0)
        heard: list[Any] = []
        steps = itertools.count()
        stops = len(self.done) == self.stop
        found = do_task(task, heard.append, lambda: stops and next(steps) > 3, {task.config.images: self.data})
        if not isinstance(found, RunStopped):
            self.done.append(task.name)
        yield from [*heard, found]

    def cancel(self, run: str) -> None:
        pass

    def close(self) -> None:
        pass


class Diverging(Here):
    """Every run diverges."""

    def events(self) -> Iterator[TaskEvent | Failure]:
        yield RunDiverged(self.tasks.pop(0).name, "the loss became NaN")


class Dying(Here):
    """The process of every run is killed."""

    def events(self) -> Iterator[TaskEvent | Failure]:
        yield RunDied(self.tasks.pop(0).name, "killed by signal 9")


def nobody(runs: int) -> Here:
    raise AssertionError("there is nothing left to train")


def run(source: Path, out: Path, data: ImageData, executor: Any = None, **changes: Any) -> ShrinkRecord:
    options: dict[str, Any] = {"budget": BUDGET, "count": "rcp", **changes}
    return shrink(recipe(source), out, data=data, executor=executor or Here(data), **options)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> tuple[Path, ShrinkRecord]:
    """A search from its beginning to its end."""
    out = tmp_path_factory.mktemp("searches") / "whole"
    return out, run(source, out, data)


def test_what_is_written_fits_and_is_what_was_found(whole: tuple[Path, ShrinkRecord], data: ImageData) -> None:
    out, found = whole
    winner = found.winner
    assert winner is not None
    assert (out / PACKED).stat().st_size == winner.packed_bytes <= BUDGET
    tried = best(found.trials, BUDGET)[0]
    assert (winner.name, winner.epochs, winner.validation_accuracy) == (
        tried.candidate.name,
        tried.epochs,
        tried.accuracy,
    )
    model, config = load_packed(out / PACKED), tiny_config()
    for split, accuracy in ((data.validation, winner.validation_accuracy), (data.test, winner.test_accuracy)):
        assert evaluate_model(model, config.execution, DataDescription.of(data), split).accuracy == accuracy
    assert from_json(ShrinkRecord, read_json(out / RECORD), RECORD) == found
    table = (out / TABLE).read_text()
    assert all(f"| {trial.candidate.name} |" in table for trial in found.trials)


def test_the_rungs_halve(whole: tuple[Path, ShrinkRecord]) -> None:
    _, found = whole
    rungs = {epochs: [t for t in found.trials if t.epochs == epochs] for epochs in (0, 1, 4)}
    assert sum(map(len, rungs.values())) == len(found.trials)
    assert {trial.candidate.form for trial in rungs[0]} == set(FORMS)
    assert [trial.candidate for trial in rungs[1]] == survivors(rungs[0], BUDGET)
    assert CandidateForm() in {trial.candidate.form for trial in rungs[1]}  # the dense rival is trained too
    assert [trial.candidate for trial in rungs[4]] == [trial.candidate for trial in best(rungs[1], BUDGET, 2)]
    assert 1 < len(rungs[1]) < len({trial.candidate.form for trial in rungs[0]})


def test_what_is_done_is_not_done_again(
    whole: tuple[Path, ShrinkRecord], source: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, found = whole
    monkeypatch.setattr(library, "evaluate_model", nobody)
    assert run(source, out, data, nobody) == found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Here, Diverging])
def test_the_test_split_is_evaluated_once(
    kind: type[Here], source: Path, tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    evaluate_state, evaluate = training.evaluate_state, library.evaluate_model

    def of_run(state: Any, batches: Any) -> Any:
        seen.extend(["test"] * (batches is state.test))
        return evaluate_state(state, batches)

    def of_model(model: Any, execution: Any, description: Any, split: Split) -> Any:
        seen.extend(["test"] * (split is data.test))
        return evaluate(model, execution, description, split)

    monkeypatch.setattr(training, "evaluate_state", of_run)
    monkeypatch.setattr(library, "evaluate_model", of_model)
    found = run(source, tmp_path / "out", data, kind(data))
    assert seen == ["test"]
    winner = found.winner
    assert winner is not None
    if kind is Diverging:  # what was not trained is written
        assert winner.epochs == 0
        assert {trial.note for trial in found.trials if trial.epochs} == {"the loss became NaN"}
        model = load_packed(tmp_path / "out" / PACKED)
        accuracy = evaluate(model, tiny_config().execution, DataDescription.of(data), data.test).accuracy
        assert accuracy == winner.test_accuracy


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(
    whole: tuple[Path, ShrinkRecord], source: Path, tmp_path: Path, data: ImageData
) -> None:
    _, expected = whole
    trials: list[Trial] = []

    def on_event(event: object) -> None:
        if isinstance(event, TrialEnd):
            trials.append(event.trial)
            if len(trials) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path, data, on_event=on_event)
    forms = {trial.candidate.form for trial in trials}
    for done in (1, 4):
        again = Here(data, stop=done)
        with pytest.raises(RunInterrupted):
            run(source, tmp_path, data, again, on_event=on_event if done > 1 else trials.append)
    last = Here(data)
    found = run(source, tmp_path, data, last)
    assert found == expected
    assert len(last.done) < len([trial for trial in found.trials if trial.epochs])
    assert forms <= {trial.candidate.form for trial in found.trials}


@pytest.mark.slow
def test_a_run_that_died_goes_on_with_the_same_command(source: Path, tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(RunError, match="ended early: the same command goes on with it"):
        run(source, tmp_path, data, Dying(data))
    assert run(source, tmp_path, data).winner is not None
    (tmp_path / "settings.json").unlink()
    with pytest.raises(RunError, match=r"settings.json cannot be read: choose another folder"):
        run(source, tmp_path, data, nobody)


def test_another_search_in_the_same_folder_is_refused(
    whole: tuple[Path, ShrinkRecord], source: Path, data: ImageData, tmp_path: Path
) -> None:
    out, _ = whole
    with pytest.raises(RunError, match=r"whole is for 1850 bytes of rcp, not 1851 of rcp: choose another folder"):
        run(source, out, data, budget=1851)
    with pytest.raises(RunError, match=r"whole has lr .*: go on with it unchanged or choose another folder"):
        shrink(dataclasses.replace(recipe(source), lr=0.5), out, budget=BUDGET, count="rcp", data=data)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and holds no search: choose another folder"):
        run(source, tmp_path, data)


@pytest.mark.slow
def test_a_budget_below_everything_names_the_smallest_size(source: Path, tmp_path: Path, data: ImageData) -> None:
    tried: list[Trial] = []

    def on_event(event: object) -> None:
        tried.extend([event.trial] if isinstance(event, TrialEnd) else [])

    with pytest.raises(ConfigError, match=r"nothing fits in 20 bytes: the smallest file .* has [\d,]+ bytes \(\S+\)"):
        run(source, tmp_path / "out", data, nobody, budget=20, on_event=on_event)
    assert {trial.candidate.form for trial in tried} == set(FORMS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("begins", ["from the kept fit", "without it"])
def test_a_form_is_fitted_once(
    begins: str, source: Path, tmp_path: Path, data: ImageData, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained starts from the weights of the first rung, and is what it would be with another fit of them."""
    fits: list[object] = []

    def fitted(model: Any, conversion: Conversion, *rest: Any) -> Any:
        fits.append(conversion.rotate)
        return convert_source(model, conversion, *rest)

    monkeypatch.setattr(pretrained, "convert_source", fitted)
    executor = Here(data)
    if begins == "without it":
        submit = executor.submit
        executor.submit = lambda task: submit(dataclasses.replace(task, start=None))  # type: ignore[method-assign]
    _, expected = whole
    assert run(source, tmp_path, data, executor) == expected
    assert bool(fits) == (begins == "without it")
    kept = {path.parent.name for path in tmp_path.glob("untrained/*/initial.safetensors")}
    assert kept == {t.candidate.form.name for t in expected.trials if t.epochs and not t.candidate.form.is_source}


def test_one_weight_of_a_slice_has_no_level_of_zero(whole: tuple[Path, ShrinkRecord]) -> None:
    out, found = whole
    seen = set()
    for trial in found.trials:
        form, bits = trial.candidate.form, trial.candidate.bits
        if (file := out / "untrained" / f"{trial.candidate.name}.rcp").is_file():
            one = (form.taps in ("shared", "profile") or form.conv == "codebook16") and bits.weight < 8
            assert bits.levels == (2**bits.weight if one else None)
            assert bits.profile == (6 if form.taps == "profile" else None)
            said = None if bits.weight == 1 else bits.levels  # two levels of one bit go without saying
            assert (describe_packed(file).levels, describe_packed(file).profile_bits) == (said, bits.profile)
            seen.add(form.taps)
    assert {None, "free"} & seen
    assert {"shared", "profile"} & seen


@pytest.mark.slow
def test_a_model_of_lines_is_tried_as_it_is(tmp_path: Path, data: ImageData) -> None:
    fit(tiny_config(conv="rotate2p", epochs=2), tmp_path / "lines", data=data)
    found = run(tmp_path / "lines", tmp_path / "out", data)
    assert {trial.candidate.form for trial in found.trials} == {CandidateForm()}
    assert all(trial.candidate.angle_bits is not None for trial in found.trials)


@pytest.mark.slow
def test_the_bytes_are_those_of_the_onnx_file(
    source: Path, tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(library, "FORMS", FORMS[:3])  # an export takes seconds
    found = run(source, tmp_path, data, count="onnx", budget=3200)
    winner = found.winner
    assert winner is not None
    assert (tmp_path / ONNX).stat().st_size == winner.onnx_bytes <= 3200
    assert winner.packed_bytes < winner.onnx_bytes


def test_what_cannot_be_shrunk_is_refused(source: Path, tmp_path: Path, data: ImageData) -> None:
    finish(source, tmp_path / "small", data=data, changes={"epochs": 1})
    with pytest.raises(ConfigError, match="small was trained with quantized numbers already"):
        shrink(recipe(source.parent / "dense").__class__(source=str(tmp_path / "small")), tmp_path, budget=9, data=data)
    with pytest.raises(ConfigError, match="there is nothing to shrink: set source"):
        shrink(tiny_config(), tmp_path, budget=9, data=data)
    with pytest.raises(ConfigError, match="shrink chooses by the validation split"):
        shrink(dataclasses.replace(recipe(source), validation=False), tmp_path, budget=9, data=data)


def trial(accuracy: float | None, size: int, form: CandidateForm | None = None, epochs: int = 0) -> Trial:
    return Trial(Candidate(form or CandidateForm("free"), 4, 4, 8), epochs, size, accuracy)


def test_more_budget_never_gives_less_accuracy() -> None:
    generator = random.Random(0)
    trials = [trial(generator.choice([None, *range(90, 99)]), generator.randrange(1, 50)) for _ in range(40)]
    found = [best(trials, budget) for budget in range(51)]
    assert all((t.bytes or 0) <= budget for budget, chosen in enumerate(found) for t in chosen)
    accuracies = [chosen[0].accuracy or 0.0 if chosen else 0.0 for chosen in found]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] == 98 > accuracies[0]
    assert best([trial(90, 20), trial(90, 10)], 30)[0].bytes == 10


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_bits_that_fit(seed: int) -> None:
    """Against all pairs, for sizes that grow with the bits of either."""
    generator = random.Random(seed)
    a, b = generator.uniform(1, 9), generator.uniform(1, 9)
    weights, angles = range(2, 9), range(3, 6)
    for budget in range(0, 110, 7):

        def fits(weight: int, angle: int, budget: int = budget) -> bool:
            return a * weight + b * angle <= budget

        pairs = [pair for pair in itertools.product(weights, angles) if fits(*pair)]
        maximal = {(w, x) for w, x in pairs if not any((v, y) != (w, x) and v >= w and y >= x for v, y in pairs)}
        assert set(largest_bits(weights, angles, fits)) == maximal


def test_survivors_are_the_best_third_of_the_forms_and_the_rival() -> None:
    trials = [trial(50 + place, 10, form) for place, form in enumerate(FORMS)]
    trials.append(trial(10, 5, FORMS[-1]))
    kept = [candidate.form for candidate in survivors(trials, 10)]
    assert kept == [*reversed(FORMS[-5:]), FORMS[0]]


@pytest.mark.slow
def test_the_command_shrinks_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of its own, from a file of weights."""
    (tmp_path / "own_small.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    convs = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()]\n"
        "    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(library, "FORMS", FORMS[:3])
    trained = invoke(["train", "--set", "factory=own_small:build", "--epochs", 8, "--batch-size", 16, "--out", "own"])
    assert trained.exit_code == 0, trained.output
    command = ["shrink", "own/model.safetensors", "--model", "own_small:build", "--budget", "1.6 kB", "--count", "rcp"]
    command += ["--epochs", 1, "--jobs", 1, "--lr", 0.01, "--out", "out"]
    done = invoke(command)
    assert done.exit_code == 0, done.output
    assert Path("out", PACKED).stat().st_size <= 1600
    assert "evaluated once" in done.stdout
    assert "as-it-is" in done.stdout
    shown = invoke(["evaluate", "out/model.rcp", "--data", "digits", "--model", "own_small:build"])
    test = read_json(Path("out", RECORD))["winner"]["test_accuracy"]
    assert f"{test:.2f} %" in shown.stdout
    assert invoke(["finish", "own", "--weight-bits", 4, "--epochs", 1, "--out", "small"]).exit_code == 0
    refused = invoke(["shrink", "small", "--budget", "1.6 kB"])
    assert (refused.exit_code, "quantized numbers already" in refused.stderr) == (2, True), refused.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "count", "budget"),
    [
        (CandidateForm("profile"), "rcp", 6_000),
        (CandidateForm("free"), "rcp", 7_000),
        (CandidateForm(), "onnx", 10_000),
        (CandidateForm(conv="codebook16"), "rcp", 9_000),
    ],
)
def test_parts_get_bits_of_their_own_in_the_same_budget(
    form: CandidateForm, count: Any, budget: int, tmp_path: Path, data: ImageData
) -> None:
    config = tiny_config(conv="conv3x3", model="resnet20", width=0.25, epochs=1, source="dense")
    torch.manual_seed(0)
    model = build_model("resnet20", "conv3x3", width=0.25, in_channels=1)
    files = Files(DataDescription.of(data), count)
    (tmp_path / form.name).mkdir()
    untrained = Untrained(config, model, data, files, tmp_path, budget, 8, lambda event: None)
    uniform = best(untrained.trials(form), budget)[0]
    mixed = untrained.by_part(uniform)
    assert mixed is not None
    candidate = mixed.candidate
    assert candidate.form == form
    assert dict(candidate.layers).keys() <= {"stages.0.*", "stages.1.*", "stages.2.*"}
    assert candidate.name.endswith("-by-part")
    assert mixed.bytes is not None
    assert uniform.bytes is not None
    assert mixed.bytes <= budget
    assert mixed.bytes > 0.8 * uniform.bytes  # what there is to fill is filled
    described = describe_packed(untrained.packed(candidate))
    assert (described.bits[0], described.layer_bits) == (
        candidate.weight_bits,
        {k: list(v) for k, v in candidate.layers},
    )
    accuracy = evaluate_model(load_packed(untrained.packed(candidate)), config.execution, files.data, data.validation)
    assert accuracy.accuracy == mixed.accuracy
    run = candidate.config(config, 1)  # a training has the same bits, and so has its file
    assert run.bits == candidate.bits
