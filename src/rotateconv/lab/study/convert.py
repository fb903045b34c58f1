"""A trained model becomes one of RotateConv layers: fitted, fine-tuned with its original as the teacher, and reported.

`convert_run` prints nothing: it hands the events of `rotateconv.lab.study.events` to a callback.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from rotateconv.convert.recalibrate import norms_of, recalibrate
from rotateconv.convert.report import ConversionReport
from rotateconv.errors import ConfigError, InputError
from rotateconv.lab.config import RunConfig, changed
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import ImageData
from rotateconv.lab.files import read_json, write_bytes, write_json
from rotateconv.lab.naming import architecture_name, counted
from rotateconv.lab.plain import to_json
from rotateconv.lab.run_config import bits_keys
from rotateconv.lab.study.budget import within_budget
from rotateconv.lab.study.convert_record import (
    Accuracies,
    ConversionRecord,
    ConvertedLayer,
    conversion_from_json,
    markdown,
)
from rotateconv.lab.study.events import BitsAllocated, LayerFitted, ModelFitted, OnConversionEvent, StageStart
from rotateconv.lab.train.checkpoint import weights_bytes
from rotateconv.lab.train.evaluate import Evaluation
from rotateconv.lab.train.events import RunEnd, RunWarning, ignore
from rotateconv.lab.train.fit import fit
from rotateconv.lab.train.load import calibration_batches, evaluate_model, load_run
from rotateconv.lab.train.pretrained import StartingPoint, convert_source, dense_source, load_source
from rotateconv.lab.train.run_folder import (
    CONVERSION,
    CONVERSION_TABLE,
    SUMMARY,
    WEIGHTS,
    check_run,
    going_on,
    read_config,
    read_summary,
    write_summary,
)
from rotateconv.lab.train.run_results import RunSummary
from rotateconv.nn.copying import copy_model
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.quantize import quantize


def fine_tuning(config: RunConfig, source: str, *, foreign: bool = False) -> RunConfig:
    """Return the recipe that goes on from a trained model: half its epochs and learning rate, the model as teacher.

    A model of `foreign` weights was trained by another recipe, of which the learning rate says nothing: a twentieth.

    Example:
        >>> from rotateconv.lab.config import make_config
        >>> config = fine_tuning(make_config("quick"), "runs/dense")
        >>> config.epochs, config.lr, config.schedule, config.teacher
        (3, 0.1, 'one-cycle', 'runs/dense')
    """
    return dataclasses.replace(
        config,
        source=source,
        teacher=source,
        epochs=max(1, config.epochs // 2),
        lr=config.lr / (20 if foreign else 2),
        schedule="one-cycle",
        warmup=0.1,
    )


def convert_run(
    config: RunConfig,
    out: str | Path,
    *,
    data: ImageData,
    stages: int = 1,
    budget: int | None = None,
    overwrite: bool = False,
    on_event: OnConversionEvent | None = None,
) -> ConversionRecord:
    """Convert `config.source`, fine-tune it into the run folder `out`, and return what its conversion.json holds.

    The same call goes on after an interruption. The validation split is evaluated before and after the fit; the
    test split at the end, for the source, the fitted model, the fitted model with its norms recalibrated, which is as
    far as one gets without training (with `qat` also with these bits), and the fine-tuned model. The run keeps the
    better of the last two on the validation split.

    Args:
        config: of the fine-tuning: `source` and `convert_taps` are set.
        out: the run folder; conversion.json and conversion.md are added to what `fit` writes.
        data: the images.
        stages: 1 converts all layers at once; n converts a n-th of them at a time, those with the least residual
            first, with a n-th of the epochs each, in runs beside `out`: OUT-stage1, ...
        budget: with `qat`, bytes of the packed file, in place of bits of weights and angles: `allocate_bits` chooses
            them for the parts of the fitted model.
        overwrite: start again.
        on_event: called with the events.

    Raises:
        RunInterrupted: asked to stop; saved.
        ConfigError, RunError, ValueError: the user's mistake, before anything is written.
    """
    out = Path(out)
    report = on_event if on_event is not None else ignore
    description = DataDescription.of(data)
    conversion, how = config.conversion, config.execution
    if config.source is None or conversion is None:
        missing = "source" if config.source is None else "convert_taps"
        raise ConfigError(f"convert_run needs a configuration with source and convert_taps: set {missing}")
    if (done := _finished(out, config, stages, budget, overwrite)) is not None:
        return done
    source = load_source(config.source, config.factory, description)
    fitted = copy_model(source)
    with dense_source(config.source):
        layers = convert_source(fitted, conversion, description, data.train, lambda *fit: report(LayerFitted(*fit)))
    calibrated = copy_model(fitted)
    recalibrate(calibrated, calibration_batches(calibrated, how, description, data.train))
    if budget is not None:
        config, allocation = within_budget(config, data, budget, calibrated)
        report(BitsAllocated(allocation))
    plan = stages_of(config, out, layers, stages)
    for run, settings in plan:
        check_run(run, settings, **going_on(run, overwrite))

    models = {"source": source, "fitted": fitted, "calibrated": calibrated}
    untrained: Literal["calibrated", "quantized"] = "calibrated"
    if config.bits is not None:
        untrained = "quantized"
        batches = calibration_batches(fitted, how, description, data.train)
        models[untrained] = quantize(fitted, **config.bits.arguments, calibration=batches)
    before = {name: evaluate_model(model, how, description, data.validation) for name, model in models.items()}
    validation = {name: found.accuracy for name, found in before.items()}
    check_normalization(config, source, data, before["source"], report)
    report(ModelFitted(**validation, report=layers))
    # Copies are trained, since all are evaluated at the end; a stage converts what the one before has trained.
    teacher = copy_model(source) if config.teacher == config.source else None
    start = StartingPoint(copy_model(fitted), teacher) if len(plan) == 1 else None
    summary = _fine_tune(plan, start, data, overwrite, report)
    tuned = evaluate_model(load_run(out).model, how, description, data.validation)
    found = {name: evaluate_model(model, how, description, data.test) for name, model in models.items()}
    test = {name: evaluation.accuracy for name, evaluation in found.items()}
    keeps_tuned = tuned.accuracy >= validation[untrained]
    bits = config.bits
    result = ConversionRecord(
        source=str(config.source),
        model=architecture_name(config),
        dataset=description.name,
        taps=conversion.rotate.taps,
        epochs=sum(settings.epochs for _, settings in plan),
        stages=len(plan),
        budget=budget,
        bits=None if bits is None else (bits.weight, bits.angle, bits.dense),
        parameters_before=layers.parameters_before,
        parameters_after=layers.parameters_after,
        validation_accuracy=Accuracies(**validation, fine_tuned=tuned.accuracy),
        validation_was_trained_on=not config.validation,
        test_accuracy=Accuracies(**test, fine_tuned=summary.test_accuracy),
        kept="fine_tuned" if keeps_tuned else untrained,
        layers=tuple(ConvertedLayer(**dataclasses.asdict(entry)) for entry in layers.entries),
    )
    write_json(out / CONVERSION, to_json(result))
    write_bytes(out / CONVERSION_TABLE, markdown(result, layers).encode())
    if not keeps_tuned:
        _keep(out, models[untrained], found[untrained], summary)
    return result


def check_normalization(
    config: RunConfig, source: nn.Module, data: ImageData, found: Evaluation, report: Callable[[RunWarning], object]
) -> None:
    """Stop where a user's own model does not know the images as they are normalized here; a run's own knows them.

    A model that gets better when its norms are recalibrated on the very images that it was trained on was trained on
    other numbers: nearly always, another mean and standard deviation. It is a ConfigError, or where the user named
    these a warning.

    Args:
        config: whose source the model is.
        source: the model.
        data: the images.
        found: what it is worth on the validation split.
        report: called with the warning.
    """
    if config.factory is None:
        return
    description = DataDescription.of(data)
    again = copy_model(source)
    recalibrate(again, calibration_batches(again, config.execution, description, data.train))
    better = evaluate_model(again, config.execution, description, data.validation).accuracy
    share = found.accuracy / 100
    noise = 300 * math.sqrt(max(share * (1 - share), 1 / found.count) / found.count)  # three standard errors, in points
    chance = 100 / len(description.classes)
    if better <= found.accuracy + max(2.0, noise) and found.accuracy > 1.5 * chance:
        return
    mean, std = (" ".join(f"{number:.3f}" for number in values) for values in (description.mean, description.std))
    has = f"the model in {config.source} has {found.accuracy:.1f} % on the validation images"
    again_has = f" and {better:.1f} % with its norms recalibrated" if norms_of(again) else ""
    used = f"mean {mean} and standard deviation {std}"
    if better > max(found.accuracy, 1.5 * chance):
        sentence, advice = f"{has}{again_has}: it seems to know another normalization than {used}", "give its own with"
    else:
        sentence = f"{has}{again_has}, where guessing has {chance:.1f}"
        advice = f"check that these are its weights and its classes in their order, and that it knows {used}, else give"
    if config.mean is None:
        raise ConfigError(f"{sentence}; {advice} --mean and --std")
    report(RunWarning(sentence))


def _fine_tune(
    plan: Sequence[tuple[Path, RunConfig]],
    start: StartingPoint | None,
    data: ImageData,
    overwrite: bool,
    report: OnConversionEvent,
) -> RunSummary:
    """Train one stage after the other, and return what the last one came to."""
    for number, (run, settings) in enumerate(plan, start=1):
        report(StageStart(number, len(plan)))
        summary = fit(
            settings,
            run,
            data=data,
            start=start,
            **going_on(run, overwrite),
            on_event=lambda event: None if isinstance(event, RunEnd) else report(event),
        )
    return summary


def _finished(
    out: Path, config: RunConfig, stages: int, budget: int | None, overwrite: bool
) -> ConversionRecord | None:
    """Return what a conversion found before, where the run folder, of these settings, holds the model that it kept.

    Raises:
        RunError: the folder holds another run, as far as can be seen without a fit.
    """
    found = None
    if not overwrite and (out / CONVERSION).is_file() and (out / SUMMARY).is_file():
        found = conversion_from_json(read_json(out / CONVERSION), out / CONVERSION)
    if budget is not None:
        if found is None or found.budget != budget:
            return None  # what bits it leaves is seen after the fit
        config = changed(config, bits_keys(read_config(out).bits or Bits()))
    if 1 <= stages <= config.epochs:
        check_run(out, _of_stage(stages, config, out, stages), **going_on(out, overwrite))
        if found and read_summary(out).test_accuracy == getattr(found.test_accuracy, found.kept):
            return found
    return None


def _keep(out: Path, model: nn.Module, test: Evaluation, summary: RunSummary) -> None:
    """Give a finished run another model than its last epoch's; cut off in between, the run is not finished."""
    weights = weights_bytes(model.cpu())
    (out / SUMMARY).unlink()
    write_bytes(out / WEIGHTS, weights)
    kept = dataclasses.replace(
        summary,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        test_class_accuracy=test.class_accuracy,
        test_confusion=tuple(map(tuple, test.confusion.tolist())),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        best_epoch=None,
        best_validation_accuracy=None,
        keeps_fitted=True,
    )
    write_summary(out, kept)


def stages_of(config: RunConfig, out: Path, layers: ConversionReport, stages: int) -> list[tuple[Path, RunConfig]]:
    """Return the training runs of a conversion, each starting from the one before, the last in `out`.

    Raises:
        ValueError: `stages` is not from 1 to the number of converted layers and of epochs.
    """
    names = [entry.name for entry in sorted(layers.converted, key=lambda entry: entry.residual or 0.0)]
    most = min(len(names), config.epochs)
    if not 1 <= stages <= most:
        limits = f"{counted(len(names), 'layer')} and {counted(config.epochs, 'epoch')}"
        allowed = f"from 1 to {most}" if most > 1 else "left out"
        raise InputError(f"stages must be {allowed}, not {stages}: each needs a layer and an epoch, of {limits}")
    runs = []
    for stage in range(1, stages + 1):
        settings = _of_stage(stage, config, out, stages)
        if stage < stages:
            first = names[: math.ceil(len(names) * stage / stages)]
            settings = dataclasses.replace(settings, convert_only=",".join(first))
        runs.append((_folder(stage, out, stages), settings))
    return runs


def _of_stage(stage: int, config: RunConfig, out: Path, stages: int) -> RunConfig:
    """Return the configuration of a stage, but for the layers that all but the last convert."""
    # The last one is the longest: it has all layers to settle.
    epochs = config.epochs // stages + (config.epochs % stages if stage == stages else 0)
    source = config.source if stage == 1 else str(_folder(stage - 1, out, stages))
    return dataclasses.replace(config, epochs=epochs, source=source)


def _folder(stage: int, out: Path, stages: int) -> Path:
    return out if stage == stages else out.with_name(f"{out.name}-stage{stage}")
