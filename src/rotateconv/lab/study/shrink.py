"""A trained model in so many bytes: the forms and bits that fit are tried, the best are trained, the best is written.

`shrink` prints nothing: it hands the events of `rotateconv.lab.study.events` to a callback.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rotateconv.errors import ConfigError, InputError, RunError
from rotateconv.lab import config as configuration
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.plain import from_json, to_json
from rotateconv.lab.study.convert_run import check_normalization
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
from rotateconv.lab.study.shrink_files import ONNX, PACKED, Files
from rotateconv.lab.study.shrink_untrained import Untrained
from rotateconv.lab.study.shrinking import (
    ANGLE_BITS,
    FORMS,
    WEIGHT_BITS,
    Candidate,
    Count,
    ShrinkRecord,
    Trial,
    Winner,
    best,
    markdown,
    survivors,
)
from rotateconv.lab.study.worker import Task
from rotateconv.lab.train import trust
from rotateconv.lab.train.events import ignore
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import evaluate_model, load_run
from rotateconv.lab.train.pretrained import load_packed_file, load_source
from rotateconv.lab.train.run_folder import INITIAL, disk_errors, read_json, read_records, write_bytes, write_json

RECORD, TABLE = "shrink.json", "shrink.md"
"""What a search leaves in its folder, beside the files of the winner."""
_SETTINGS = "settings.json"  # the configuration that its candidates share
_UNTRAINED, _SHORT, _FULL = "untrained", "short", "full"  # folders of the rungs


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
    recalibrated. The best third of the forms, and the source as it is, are then trained for a quarter of the epochs
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
    out = Path(out)
    if config.source is None:
        raise ConfigError("there is nothing to shrink: set source (a run folder, or a file of weights with a factory)")
    if config.factory is not None:
        trust.allow(config.factory)
    else:
        finishing(config.source)  # refuses a run that is not finished, or quantized already
    if not config.validation:
        raise ConfigError("shrink chooses by the validation split: leave validation=false out")
    executor = executor or (lambda runs: local_executor(runs, jobs))
    return _Search(config, out, budget, data, count, dense_bits, executor, on_event or ignore).run()


@dataclasses.dataclass
class _Search:
    """The state of `shrink`: its arguments, the source, and the record so far, which is on the disk."""

    config: RunConfig
    out: Path
    budget: int
    images: ImageData
    count: Count
    dense_bits: int
    executor: Callable[[int], Executor]
    report: OnShrinkEvent

    def __post_init__(self) -> None:
        config, out, budget, count = self.config, self.out, self.budget, self.count
        assert config.source is not None
        self.data = DataDescription.of(self.images)
        before = _read(out, config)
        source = load_source(config.source, config.factory, self.data)
        self.files = Files(self.data, count)
        self.untrained = Untrained(
            config, source, self.images, self.files, out / _UNTRAINED, budget, self.dense_bits, self.report
        )
        if before is None:
            found = evaluate_model(source, config.execution, self.data, self.images.validation)
            if config.factory is not None:
                known = None if config.mean is None else self.report
                check_normalization(source, config.source, config.execution, self.images, found, known)
            size = sum(tensor.numel() * tensor.element_size() for tensor in source.state_dict().values())
            about = config.source, config.factory or config.model, self.data.name, budget, count
            before = ShrinkRecord(*about, size, found.accuracy)
        elif (before.budget, before.count) != (budget, count):
            raise RunError(
                f"the search in {out} is for {before.budget} bytes of {before.count}, not {budget} of {count}: choose "
                "another folder"
            )
        self.record = before

    def run(self) -> ShrinkRecord:
        """Do what is left to do."""
        if self.record.winner is not None and (self.out / PACKED).is_file():
            return self.record
        with disk_errors(self.out):
            (self.out / _UNTRAINED).mkdir(parents=True, exist_ok=True)
        write_bytes(self.out / _SETTINGS, configuration.to_json(self.config).encode())
        try:
            candidates = self._try_untrained()
        except InputError as error:
            if not isinstance(error, RunError):
                self._remove()  # there is nothing that a search could go on with
            raise
        short = max(1, self.config.epochs // 4)
        if short < self.config.epochs:
            tried = best(self._train(_SHORT, candidates, short), self.budget, 2)
            candidates = [trial.candidate for trial in tried] or candidates[:1]
        self._train(_FULL, candidates, self.config.epochs)
        return self._write(best(self.record.trials, self.budget)[0])

    def _note(self, *trials: Trial) -> None:
        self.record = self.record.with_trials(trials)
        self._save()
        for trial in trials:
            self.report(TrialEnd(trial, self.budget))

    def _save(self) -> None:
        write_bytes(self.out / TABLE, markdown(self.record).encode())
        write_json(self.out / RECORD, to_json(self.record))

    def _remove(self) -> None:
        with disk_errors(self.out):
            for name in (RECORD, TABLE, _SETTINGS):
                (self.out / name).unlink(missing_ok=True)
            shutil.rmtree(self.out / _UNTRAINED)
            self.out.rmdir()

    def _try_untrained(self) -> list[Candidate]:
        """Try every form, and return who is trained."""
        tried = {trial.candidate.form for trial in self.record.trials}
        may_convert = self.config.factory is not None or (self.config.convert_taps, self.config.conv) == (
            None,
            "conv3x3",
        )
        forms = [form for form in (FORMS if may_convert else FORMS[:1]) if form not in tried]
        if forms:
            self.report(RungStart("without training", len(forms)))
        for form in forms:
            try:
                self._note(*self.untrained.trials(form))
            except RunError:
                raise
            except InputError as error:
                if form.taps is None:  # what cannot be quantized or exported as it is can be so in no form
                    raise
                note = " ".join(str(error).split())
                self._note(Trial(self.untrained.candidate(form, WEIGHT_BITS[0], ANGLE_BITS[0]), 0, None, None, note))
        untrained = [trial for trial in self.record.trials if not trial.epochs]
        if not best(untrained, self.budget):
            raise ConfigError(self._nothing_fits(untrained))
        candidates = survivors(untrained, self.budget)
        for form in {*FORMS} - {candidate.form for candidate in candidates}:
            shutil.rmtree(self.untrained.fitted(form), ignore_errors=True)
        return candidates

    def _nothing_fits(self, trials: list[Trial]) -> str:
        least = min((trial for trial in trials if trial.bytes is not None), key=lambda trial: trial.bytes or 0)
        candidate, size = least.candidate, least.bytes or 0
        narrower = "a narrower model" if self.config.factory is None else "a smaller model"
        return (
            f"nothing fits in {self.budget:,} bytes: the smallest file that was possible has {size:,} bytes "
            f"({candidate.name}): give --budget {-(-size * 103 // 100_000)}KB or more, or begin with {narrower}"
        )

    def _train(self, rung: str, candidates: list[Candidate], epochs: int) -> list[Trial]:
        """Train candidates whose run is not done yet, note them, and return what was found of them."""
        tasks = {}
        for candidate in candidates:
            run = self.out / rung / candidate.name
            again, fitted = (run / "config.json").is_file(), self.untrained.fitted(candidate.form)
            settings = candidate.config(self.config, epochs)
            start = fitted if (fitted / INITIAL).is_file() else None
            tasks[candidate] = Task(f"{rung}/{candidate.name}", settings, run, again, tested=False, start=start)
        known = {trial.candidate: trial for trial in self.record.trials if trial.epochs == epochs}
        left = [
            task
            for candidate, task in tasks.items()
            if candidate not in known and not (task.resume and len(read_records(task.out)) == epochs)
        ]
        self.report(RungStart("trained", len(tasks), epochs))
        diverged: dict[str, str] = {}

        def on_event(event: TaskEvent) -> None:
            if isinstance(event, RunDiverged):
                diverged[event.run] = event.message
            self.report(event)

        if left:
            executor = self.executor(len(left))
            self.report(StudyStart(len(tasks), len(tasks) - len(left), executor.jobs, executor.threads))
            run_tasks(iter(left), executor, len(left), on_event)
        for candidate, task in tasks.items():
            if candidate not in known:
                trial = self._trained(candidate, task, epochs, diverged.get(task.name))
                known[candidate] = trial
                self._note(trial)
        return [known[candidate] for candidate in candidates]

    def _trained(self, candidate: Candidate, task: Task, epochs: int, diverged: str | None) -> Trial:
        if diverged is not None:
            return Trial(candidate, epochs, None, None, diverged)
        if not (records := read_records(task.out)) or len(records) < epochs:
            raise RunError(f"the run in {task.out} ended early: the same command goes on with it")
        with tempfile.TemporaryDirectory() as folder:
            size = self.files.size(load_run(task.out).model, candidate.bits, Path(folder, PACKED))
        return Trial(candidate, epochs, size, records[-1].validation_accuracy)

    def _write(self, trial: Trial) -> ShrinkRecord:
        """Evaluate the best trial on the test split, and write its files and the record."""
        candidate = trial.candidate
        assert trial.accuracy is not None
        if trial.epochs:
            rung = _FULL if trial.epochs == self.config.epochs else _SHORT
            run = self.out / rung / candidate.name
            test = fit(candidate.config(self.config, trial.epochs), run, data=self.images, resume=True).test_accuracy
            model = load_run(run).model
        else:
            model, _ = load_packed_file(self.untrained.packed(candidate), self.config.factory)
            test = evaluate_model(model, self.config.execution, self.data, self.images.test).accuracy
        onnx: int | None = None
        try:
            onnx = self.files.export(model.cpu(), candidate.bits, self.out / ONNX)
        except InputError:
            if self.count == "onnx":
                raise
            (self.out / ONNX).unlink(missing_ok=True)
        packed = self.files.pack(model, candidate.bits, self.out / PACKED)
        winner = Winner(candidate.name, trial.epochs, onnx, packed, trial.accuracy, test)
        self.record = dataclasses.replace(self.record, winner=winner)
        self._save()
        return self.record


def _read(out: Path, config: RunConfig) -> ShrinkRecord | None:
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
    return before
