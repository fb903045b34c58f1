"""A run from its beginning, or where it stopped, to its end: what is checked, written and reported around the loop.

`fit` prints nothing: it hands the events of `rotateconv.lab.train.events` to a callback.
"""

import hashlib
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from rotateconv.cost import cost
from rotateconv.errors import InputError, RunError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.images import load_images
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import make_folder, write_bytes
from rotateconv.lab.parts import ImageSource
from rotateconv.lab.train import trust
from rotateconv.lab.train.build_state import build_state, start_accelerator
from rotateconv.lab.train.captured import choose_step
from rotateconv.lab.train.checkpoint import load_checkpoint, remove_checkpoints, weights_bytes
from rotateconv.lab.train.events import OnEvent, RunEnd, RunStart, RunWarning
from rotateconv.lab.train.interrupts import Interrupts
from rotateconv.lab.train.load import check_build, final_weights
from rotateconv.lab.train.lock import locked
from rotateconv.lab.train.loop import evaluate_state, train_epochs
from rotateconv.lab.train.monitor import TrainingMonitor, check_finite, check_weights
from rotateconv.lab.train.pretrained import StartingPoint
from rotateconv.lab.train.quantized_start import loss_by_training
from rotateconv.lab.train.rehearsal import rehearse
from rotateconv.lab.train.run_folder import (
    CHECKPOINTS,
    INITIAL,
    SUMMARY,
    WEIGHTS,
    check_run,
    create_run,
    keep_records,
    note_resumption,
    read_description,
    read_records,
    read_summary,
    write_summary,
)
from rotateconv.lab.train.run_results import EpochRecord, RunSummary
from rotateconv.lab.train.saved_state import restore_state
from rotateconv.lab.train.train_state import TrainingState


def fit(
    config: RunConfig,
    out: str | Path,
    *,
    data: ImageData | Callable[[ImageSource], ImageData] | None = None,
    start: StartingPoint | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
) -> RunSummary:
    """Train as configured, into the run folder `out`, and return what it found: its summary.json.

    The validation split is evaluated after each epoch, the test split once, after the last. Under `torchrun`
    every process calls this, and the main one writes. Ctrl-C, or a KeyboardInterrupt from `on_event`, saves a
    checkpoint after the current step. The random state of the caller is left as it was.

    Args:
        config: of the run.
        out: the run folder.
        data: the images, where they are loaded already, or what loads those that the configuration names; None for
            `load_images`. Under `torchrun` the first process of a machine loads before the others.
        start: models that are loaded already, or a folder with the weights to start from, in place of the
            configuration's source and teacher; of a run that is resumed, not read.
        resume: go on with the run in `out`; on the CPU bit for bit like a run that was never interrupted. A
            finished run gives its summary.
        overwrite: remove a run that is in `out`.
        on_event: called with the events, in the main process.

    Raises:
        RunInterrupted: asked to stop; saved.
        DivergedError: the loss is not finite; the last good checkpoint is kept.
        ConfigError, DataError, RunError, ValueError: the user's mistake, before anything is written.

    Example:
        >>> import tempfile
        >>> from rotateconv.lab.config import make_config
        >>> config = make_config("digits", overrides=["epochs=1", "width=0.25"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     summary = fit(config, Path(folder, "run"))
        >>> summary.parameters, summary.steps, summary.test_accuracy > 10
        (7974, 21, True)
    """
    run = Path(out)
    if resume and (run / SUMMARY).is_file():
        check_run(run, config, resume=resume, overwrite=overwrite)
        final_weights(run)
        return read_summary(run)
    with _trained(config, run, data, start, resume, overwrite, on_event) as (state, report):
        return _finish(state, report)


def train(
    config: RunConfig,
    out: Path,
    *,
    data: ImageData,
    start: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
) -> EpochRecord:
    """Train as `fit` does, leave the test split alone, and return the record of the last epoch.

    For a choice among configurations, after which the test split still says something new: `fit` can go on with the
    run, and then evaluates.
    """
    with _trained(config, out, data, start, resume, overwrite, on_event) as (state, _):
        return read_records(state.run)[-1]


@contextmanager
def _trained(
    config: RunConfig,
    run: Path,
    data: ImageData | Callable[[ImageSource], ImageData] | None,
    start: StartingPoint | Path | None,
    resume: bool,
    overwrite: bool,
    on_event: OnEvent | None,
) -> Iterator[tuple[TrainingState, OnEvent]]:
    """Give a run after its last epoch, while this process holds its folder, and what its events are reported to."""
    check = partial(check_run, run, config, resume=resume, overwrite=overwrite)
    check()
    if config.factory is not None and not resume:
        trust.allow(config.factory)  # the user's word; of a folder that goes on it was asked for when that was read
    accelerator = start_accelerator(config.precision)
    if isinstance(data, ImageData):
        images = data
    else:
        with accelerator.local_main_process_first():  # else all would fetch, or decode, the same files
            images = (data or load_images)(config.images)
    gpus = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), Interrupts() as interrupts:
        report = interrupts.deferred(on_event if accelerator.is_main_process else None)
        if resume:
            _check_same(run, config, DataDescription.of(images))
        state = build_state(config, accelerator, images, run, start=run if resume else start)
        if config.factory is not None:
            rehearse(state)
        with _held(run, check) if accelerator.is_main_process else nullcontext():
            _begin(state, resume, report)
            try:
                train_epochs(state, TrainingMonitor(state, report, interrupts), choose_step(state, report))
            except InputError:  # of weights that cannot be quantized: before the monitor has looked at the loss
                check_weights(state)
                raise
            yield state, report


def _check_same(run: Path, config: RunConfig, data: DataDescription) -> None:
    """Raise RunError unless a run is of these data, and its weights, if any, are those of the configured model."""
    found = read_description(run)
    if found != data:
        keys = [key.name for key in fields(data) if getattr(found, key.name) != getattr(data, key.name)]
        raise RunError(f"the run in {run} was trained on data with another {', '.join(keys)}: give it the same data")
    checkpoint = load_checkpoint(run / CHECKPOINTS)
    check_build(config.architecture, data, None if checkpoint is None else checkpoint.weights["model"], run)


@contextmanager
def _held(run: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold the run folder; what was checked before may have changed until it was held, so it is checked again."""
    make_folder(run)
    with locked(run):
        check()
        yield


def _begin(state: TrainingState, resume: bool, report: OnEvent) -> None:
    """Create the run folder, or put the state where the run in it was saved."""
    run, accelerator = state.run, state.accelerator
    checkpoint = load_checkpoint(state.checkpoints) if resume else None
    accelerator.wait_for_everyone()  # nobody writes before everybody has read
    if accelerator.is_main_process:
        if resume:
            keep_records(run, 0 if checkpoint is None else checkpoint.state["epoch"])
            note_resumption(run, 0 if checkpoint is None else checkpoint.state["step"])
        else:
            remove_checkpoints(state.checkpoints)
            create_run(run, state.config, state.data)
            if state.config.source is not None:
                write_bytes(run / INITIAL, weights_bytes(state.model))
    for message in () if resume else _oddities(state):
        report(RunWarning(message))
    if checkpoint is not None:
        restore_state(state, checkpoint)
        for path in checkpoint.damaged:
            report(RunWarning(f"the checkpoint {path} is damaged: going on from {checkpoint.path}"))
    report(
        RunStart(
            run=run,
            device=str(accelerator.device),
            processes=accelerator.num_processes,
            parameters=sum(p.numel() for p in state.model.parameters()),
            num_samples=len(state.train),
            epochs=state.config.epochs,
            steps=state.total_steps,
            epoch=state.epoch,
            step=state.step,
        )
    )


def _oddities(state: TrainingState) -> Iterator[str]:
    """What is odd in the images that are trained on, and no mistake for sure."""
    count, batch_size = len(state.train), state.config.batch_size
    if batch_size > count:
        yield f"batch_size {batch_size} is more than the {count} training images: an epoch is one step"
    counts = torch.bincount(state.train.labels, minlength=len(state.data.classes)).tolist()
    few = [f"{name} has {number}" for name, number in zip(state.data.classes, counts, strict=True) if number < 2]
    if few:
        more = f" and {len(few) - 3} more classes have one or none" if len(few) > 3 else ""
        yield f"of the training images, {', '.join(few[:3])}{more}: the model cannot learn such a class"


def _finish(state: TrainingState, report: OnEvent) -> RunSummary:
    """Write the weights, evaluate them on the test split, the only time, and write and return what the run found."""
    weights, records = weights_bytes(state.result), read_records(state.run)
    if state.accelerator.is_main_process:
        write_bytes(state.run / WEIGHTS, weights)
    if (sentence := loss_by_training(state, records[-1].validation_accuracy)) is not None:
        report(RunWarning(sentence))
    test = evaluate_state(state, state.test)
    check_finite(state, "test loss", test.loss)
    model_cost = cost(state.exact_result, state.data.input_shape)
    best = max(records, key=lambda record: record.validation_accuracy or 0.0)
    summary = RunSummary(
        steps=state.step,
        parameters=model_cost.parameters,
        multiply_adds=model_cost.multiply_adds,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        test_class_accuracy=test.class_accuracy,
        best_epoch=best.epoch if state.validation is not None else None,
        best_validation_accuracy=best.validation_accuracy,
        seconds=sum(record.seconds + record.validation_seconds for record in records),
        seconds_per_epoch=statistics.median(record.seconds for record in records),
        images_per_second=statistics.median(record.images_per_second for record in records),
        peak_memory_bytes=max(record.peak_memory_bytes for record in records),
        test_confusion=tuple(map(tuple, test.confusion.tolist())),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    if state.accelerator.is_main_process:
        write_summary(state.run, summary)  # last: a run with a summary is finished
    report(RunEnd(summary))
    return summary
