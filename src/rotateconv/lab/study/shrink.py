"""A trained model in so many bytes: the forms and bits that fit are tried, the best are trained, the best is written.

`shrink` prints nothing: it hands the events of `rotateconv.lab.study.events` to a callback.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rotateconv.errors import ConfigError, InputError, RunError
from rotateconv.lab import config as configuration
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import disk_errors, make_folder, read_json, write_bytes, write_json
from rotateconv.lab.naming import architecture_name
from rotateconv.lab.plain import from_json, to_json
from rotateconv.lab.study.convert import check_normalization
from rotateconv.lab.study.events import (
    OnShrinkEvent,
    RunDiverged,
    RungStart,
    StudyStart,
    TaskEvent,
    TrialEnd,
)
from rotateconv.lab.study.executor import Executor, run_tasks
from rotateconv.lab.study.finish import finishing
from rotateconv.lab.study.pool import local_executor
from rotateconv.lab.study.shrink_files import Files
from rotateconv.lab.study.shrink_record import (
    FORMS,
    ONNX,
    PACKED,
    RECORD,
    TABLE,
    Candidate,
    Count,
    ShrinkRecord,
    Trial,
    Winner,
    best,
    markdown,
    survivors,
)
from rotateconv.lab.study.shrink_untrained import Untrained
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train import trust
from rotateconv.lab.train.events import ignore
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import evaluate_model, load_run
from rotateconv.lab.train.pretrained import load_packed_file, load_source
from rotateconv.lab.train.run_folder import read_records
from rotateconv.lab.train.weights import state_bytes

_SETTINGS = "settings.json"  # the configuration that its candidates share
_UNTRAINED = "untrained"  # folder of the first rung, beside those of the runs, "short" and "full"


def shrink(
    config: RunConfig,
    out: str | Path,
    *,
    budget: int,
    data: ImageData,
    count: Count = "onnx",
    dense_bits: int = 8,
    jobs: int | None = None,
    executor: Callable[[int], Executor] | None = None,
    on_event: OnShrinkEvent | None = None,
) -> ShrinkRecord:
    """Write the most accurate model of at most `budget` bytes that a trained one can become, into the folder `out`.

    A search of three rungs, chosen by the validation split. Without training: the source as it is and converted to
    RotateConv layers of every form, fitted on images without labels, each at the largest bits that fit, quantized and
    recalibrated; the best third of the forms, and the source as it is, also with bits of their own for each part, as
    `allocate_bits` chooses them. The better of the two is then trained for a quarter of the epochs
    with quantized numbers and the source as their teacher, and the best two of those for all epochs, from the source
    again. The best of all that was tried and fits is written, and evaluated on the test split: the only time.

    The same call goes on after an interruption. `out` has model.onnx and model.rcp, shrink.json and shrink.md with all
    that was tried, and the runs.

    Args:
        config: Of the training, as `fine_tuning` makes it, with its source.
        out: The folder.
        budget: Bytes of the file that counts.
        data: The images.
        count: That file: the compact ONNX file or the packed one.
        dense_bits: Of stem, 1x1 and linear layers.
        jobs: Runs at a time on this machine; None as `compare`.
        executor: Makes what does so many runs, in place of the processes of this machine.
        on_event: Called with the events.

    Raises:
        RunInterrupted: Asked to stop; what was running is saved.
        ConfigError: Nothing fits in the budget, or a configuration that cannot be searched.
        RunError: The source is no finished run, or `out` holds another search.
    """
    out, report = Path(out), on_event or ignore
    if config.source is None:
        raise ConfigError("there is nothing to shrink: set source (a run folder, or a file of weights with a factory)")
    if config.factory is not None:
        trust.allow(config.factory)
    if not Path(config.source).is_file():
        finishing(config.source)  # refuses a run that is not finished, or quantized already
    if not config.validation:
        raise ConfigError("shrink chooses by the validation split: leave validation=false out")
    record = _read(out, config, budget, count)
    if record is not None and record.winner is not None and (out / PACKED).is_file():
        return record
    description = DataDescription.of(data)
    source = load_source(config.source, config.factory, description)
    if record is None:
        found = evaluate_model(source, config.execution, description, data.validation)
        check_normalization(config, source, data, found, report)
        size, model = state_bytes(source), architecture_name(config)
        record = ShrinkRecord(config.source, model, description.name, budget, count, size, found.accuracy)
    untrained = Untrained(config, source, data, Files(description, count), out / _UNTRAINED, budget, dense_bits, report)
    return _Search(config, out, untrained, record, executor or (lambda runs: local_executor(runs, jobs)), report).run()


def _read(out: Path, config: RunConfig, budget: int, count: Count) -> ShrinkRecord | None:
    """Return what a search found before, None where none began; RunError where it was another one."""
    if not (out / RECORD).is_file():
        if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= {_UNTRAINED, _SETTINGS}):
            raise RunError(f"{out} exists and holds no search: choose another folder")
        return None
    before = from_json(ShrinkRecord, read_json(out / RECORD), out / RECORD)
    try:
        settings = configuration.from_json((out / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise RunError(f"{out / _SETTINGS} cannot be read: choose another folder") from None
    if other := configuration.changed_keys(settings, config):
        raise RunError(f"the search in {out} has {other}: go on with it unchanged or choose another folder")
    if (before.budget, before.count) != (budget, count):
        raise RunError(
            f"the search in {out} is for {before.budget} bytes of {before.count}, not {budget} of {count}: choose "
            "another folder"
        )
    return before


@dataclasses.dataclass
class _Search:
    """A search in motion. The record, which is on the disk too, is what is known: each rung does what is left of it."""

    config: RunConfig
    out: Path
    untrained: Untrained
    record: ShrinkRecord
    executor: Callable[[int], Executor]
    report: OnShrinkEvent

    def run(self) -> ShrinkRecord:
        """Do the rungs, and write the best of all that was tried."""
        make_folder(self.out / _UNTRAINED)
        write_bytes(self.out / _SETTINGS, configuration.to_json(self.config).encode())
        try:
            candidates = self._try_untrained()
        except InputError as error:
            if not isinstance(error, RunError):
                self._remove()  # there is nothing that a search could go on with
            raise
        short = max(1, self.config.epochs // 4)
        if short < self.config.epochs:
            tried = best(self._train(candidates, short), self.record.budget, 2)
            candidates = [trial.candidate for trial in tried] or candidates[:1]
        self._train(candidates, self.config.epochs)
        return self._write(best(self.record.trials, self.record.budget)[0])

    def _note(self, *trials: Trial) -> None:
        self._save(trials=(*self.record.trials, *trials))
        for trial in trials:
            self.report(TrialEnd(trial, self.record.budget))

    def _save(self, **changes: Any) -> None:
        self.record = dataclasses.replace(self.record, **changes)
        write_bytes(self.out / TABLE, markdown(self.record).encode())
        write_json(self.out / RECORD, to_json(self.record))

    def _remove(self) -> None:
        with disk_errors(self.out):
            for name in (RECORD, TABLE, _SETTINGS):
                (self.out / name).unlink(missing_ok=True)
            shutil.rmtree(self.out / _UNTRAINED)
            self.out.rmdir()

    def _try_untrained(self) -> list[Candidate]:
        """Try the forms that are left, and return who is trained."""
        config, known = self.config, {candidate.form for candidate, _ in self.record.known}
        may_convert = (config.convert_taps, config.conv) == (None, "conv3x3")
        forms = [form for form in (FORMS if may_convert else FORMS[:1]) if form not in known]
        if config.factory is not None:  # a user's model is known by its function, which makes no other layers
            forms = [form for form in forms if form.conv is None]
        if forms:
            self.report(RungStart("without training", len(forms)))
        for form in forms:
            try:
                self._note(*self.untrained.trials(form))
            except RunError:
                raise
            except InputError as error:
                if form.is_source:  # what cannot be quantized or exported as it is can be so in no form
                    raise
                note = " ".join(str(error).split())
                self._note(Trial(self.untrained.least(form), 0, None, None, note))
        candidates = survivors(self._untrained_trials, self.record.budget)
        if not candidates:
            raise ConfigError(self._nothing_fits(self._untrained_trials))
        candidates = self._by_part(candidates)
        for form in {*FORMS} - {candidate.form for candidate in candidates}:
            shutil.rmtree(self.untrained.fitted(form), ignore_errors=True)
        return candidates

    @property
    def _untrained_trials(self) -> list[Trial]:
        return [trial for trial in self.record.trials if not trial.epochs]

    def _by_part(self, candidates: list[Candidate]) -> list[Candidate]:
        """Try the forms of the survivors with bits of their own for each part, and return who is trained."""
        known = {candidate.form for candidate, _ in self.record.known if candidate.layers}
        left = [one for one in candidates if one.form not in known]
        if left:
            self.report(RungStart("with bits by part", len(left)))
        for one in left:
            if (trial := self.untrained.by_part(self.record.known[one, 0])) is not None:
                self._note(trial)
        return survivors(self._untrained_trials, self.record.budget)

    def _nothing_fits(self, trials: list[Trial]) -> str:
        size, name = min((trial.bytes, trial.candidate.name) for trial in trials if trial.bytes is not None)
        narrower = "a narrower model" if self.config.factory is None else "a smaller model"
        return (
            f"nothing fits in {self.record.budget:,} bytes: the smallest file that was possible has {size:,} bytes "
            f"({name}): give --budget {-(-size * 103 // 100_000)}KB or more, or begin with {narrower}"
        )

    def _train(self, candidates: list[Candidate], epochs: int) -> list[Trial]:
        """Train the candidates that are not known yet, note them, and return what is known of all."""
        tasks = {one: self._task(one, epochs) for one in candidates if (one, epochs) not in self.record.known}
        left = [task for task in tasks.values() if len(read_records(task.out)) < epochs]
        self.report(RungStart("trained", len(candidates), epochs))
        diverged: dict[str, str] = {}

        def on_event(event: TaskEvent) -> None:
            if isinstance(event, RunDiverged):
                diverged[event.run] = event.message
            self.report(event)

        if left:
            executor = self.executor(len(left))
            self.report(StudyStart(len(candidates), len(candidates) - len(left), executor.jobs, executor.threads))
            run_tasks(left, executor, len(left), on_event)
        for candidate, task in tasks.items():
            self._note(self._trained(candidate, task, diverged.get(task.name)))
        return [self.record.known[candidate, epochs] for candidate in candidates]

    def _task(self, candidate: Candidate, epochs: int) -> Task:
        """The training of a candidate, which starts from what its form was fitted to where it was."""
        name = f"{'full' if epochs == self.config.epochs else 'short'}/{candidate.name}"
        start = self.untrained.fitted(candidate.form)
        return Task(name, candidate.config(self.config, epochs), self.out / name, tested=False, start=start)

    def _trained(self, candidate: Candidate, task: Task, diverged: str | None) -> Trial:
        epochs = task.config.epochs
        if diverged is not None:
            return Trial(candidate, epochs, None, None, diverged)
        if len(records := read_records(task.out)) < epochs:
            raise RunError(f"the run in {task.out} ended early: the same command goes on with it")
        with tempfile.TemporaryDirectory() as folder:
            size = self.untrained.files.size(load_run(task.out).model, candidate.bits, Path(folder, PACKED))
        return Trial(candidate, epochs, size, records[-1].validation_accuracy)

    def _write(self, trial: Trial) -> ShrinkRecord:
        """Evaluate the best trial on the test split, and write its files and the record."""
        candidate, images, files = trial.candidate, self.untrained.images, self.untrained.files
        assert trial.accuracy is not None
        if trial.epochs:
            task = self._task(candidate, trial.epochs)
            test = fit(task.config, task.out, data=images, resume=True).test_accuracy
            model = load_run(task.out).model
        else:
            model, _ = load_packed_file(self.untrained.packed(candidate), self.config.factory)
            test = evaluate_model(model, self.config.execution, files.data, images.test).accuracy
        onnx: int | None = None
        try:
            onnx = files.export(model.cpu(), candidate.bits, self.out / ONNX)
        except InputError:
            if files.count == "onnx":
                raise
            (self.out / ONNX).unlink(missing_ok=True)
        packed = files.pack(model, candidate.bits, self.out / PACKED)
        self._save(winner=Winner(candidate.name, trial.epochs, onnx, packed, trial.accuracy, test))
        return self.record
