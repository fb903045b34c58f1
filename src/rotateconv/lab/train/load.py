"""A run folder's model: built from its configuration, and loaded with its weights."""

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rotateconv._files import read_regular
from rotateconv.errors import ConfigError, InputError, RunError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.loader import Batches
from rotateconv.lab.data.sets import ImageData, Split
from rotateconv.lab.parts import Architecture, Execution
from rotateconv.lab.train.build import build_configured, outline_configured
from rotateconv.lab.train.checkpoint import LARGEST, load_checkpoint, read_weights
from rotateconv.lab.train.device import chosen_device
from rotateconv.lab.train.evaluate import Evaluation, evaluate
from rotateconv.lab.train.run_folder import CHECKPOINTS, SUMMARY, WEIGHTS, read_config, read_description, read_summary
from rotateconv.lab.train.weights import check_weights, load_weights
from rotateconv.models.described import MAX_PARAMETERS, check_size
from rotateconv.quantization.bits import Bits
from rotateconv.quantization.pack import pack

CALIBRATION = 2048
"""Training images that norms measure their statistics on, where a model was changed after its training."""


@dataclass(frozen=True)
class TrainedRun:
    """What `load_run` returns: the run's configuration, its model in evaluation mode, its data."""

    config: RunConfig
    model: nn.Module
    data: DataDescription


def load_run(run: str | Path) -> TrainedRun:
    """Return a run's configuration, model and data, from the folder alone.

    The weights are the final ones; of a run that is not finished, those of its last whole checkpoint; in both
    cases the averaged ones where the run averages.

    Returns:
        The model is on the CPU, float32, in evaluation mode.

    Raises:
        RunError: no run folder, no weights yet, or weights that do not fit the configuration.

    Example:
        >>> load_run("runs/nothing")
        Traceback (most recent call last):
        rotateconv.errors.RunError: runs/nothing is not there: name the folder of a run
    """
    run = Path(run)
    config = read_config(run)
    data = read_description(run)
    weights = final_weights(run) if (run / WEIGHTS).exists() else _last_weights(run)
    try:
        check_build(config.architecture, data, weights, run)
        # The initial weights are drawn and thrown away: without the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            model = build_configured(config.architecture, data)
        load_weights(model, weights, run)
    except ConfigError as error:
        raise RunError(str(error)) from None
    return TrainedRun(config, model.eval(), data)


def check_build(
    architecture: Architecture, data: DataDescription, weights: dict[str, Tensor] | None, run: Path
) -> None:
    """Raise RunError unless a run's weights are those of its configuration's model; without any, if that is huge.

    A few bytes of configuration can ask for any memory: this takes none, but for a model of the user's own.
    """
    if architecture.factory is not None:
        return
    try:
        outline = outline_configured(architecture, data)
        if weights is None:
            check_size(outline, MAX_PARAMETERS, f"overwrite {run}, which has no checkpoint, with a run of your own")
        else:
            check_weights(outline, weights, run)
    except InputError as error:
        raise RunError(str(error)) from None


def final_weights(run: Path) -> dict[str, Tensor]:
    """Return the weights of a run that ended; RunError where they are not those that its summary, if any, names."""
    path = run / WEIGHTS
    try:
        data = read_regular(path, LARGEST)
        weights = read_weights(data)
    except OSError as error:
        raise RunError(f"cannot read the weights {path}: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"cannot read the weights {path}: {error}") from None
    expected = read_summary(run).weights_sha256 if (run / SUMMARY).exists() else None
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise RunError(f"the weights {path} are not those that the run wrote: restore the file")
    return weights


def _last_weights(run: Path) -> dict[str, Tensor]:
    """Return the weights of a run that is not finished, and warn where its newest ones are damaged."""
    checkpoint = load_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        raise RunError(f"the run in {run} has no weights yet: resume it")
    for path in checkpoint.damaged:
        warnings.warn(f"the checkpoint {path} is damaged: this is {checkpoint.path}", stacklevel=3)
    return checkpoint.weights.get("average", checkpoint.weights["model"])


def check_images(run: Path, data: DataDescription, images: ImageData) -> None:
    """Raise RunError unless these are the images that a run was trained on."""
    if DataDescription.of(images) != data:
        raise RunError(f"{run} was trained on other images of {data.name}: give it the same --data-dir")


def pack_model(
    model: nn.Module, data: DataDescription, path: str | Path, bits: Bits, *, fold_norms: bool = False
) -> None:
    """Pack a model, as `pack`, together with what its users must know of the data: classes, normalization, size."""
    pack(model, path, **bits.arguments, fold_norms=fold_norms, **data.about)


def evaluate_model(
    model: nn.Module, execution: Execution, data: DataDescription, split: Split, batch_size: int = 512
) -> Evaluation:
    """Evaluate a model in a run's precision, images normalized as in training; it is moved to a GPU if there is one."""
    batches = _batches(model, execution, data, split, batch_size)
    low = torch.float16 if execution.precision == "fp16" else torch.bfloat16
    with torch.autocast(batches.device.type, dtype=low, enabled=execution.precision != "no"):
        return evaluate(model, batches, data.classes)


def calibration_batches(model: nn.Module, execution: Execution, data: DataDescription, split: Split) -> Batches:
    """Return images that a model was trained on, as `recalibrate` and `quantize` take them: not augmented.

    `CALIBRATION` of the training images, or all, are drawn by the run's seed; the model is moved to a GPU if there is
    one.
    """
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(execution.seed))[:CALIBRATION]
    parts = max(1, math.ceil(len(drawn) / 512))
    size = max(1, math.ceil(len(drawn) / parts))  # equal parts: a last batch of one image would have no variance
    return _batches(model, execution, data, Split(split.images[drawn], split.labels[drawn]), size)


def _batches(model: nn.Module, execution: Execution, data: DataDescription, split: Split, size: int) -> Batches:
    """Return the images as the model takes them, and move the model to where they are."""
    device = chosen_device()
    last = execution.channels_last
    model.to(device).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    return Batches(split, size, mean=data.mean, std=data.std, device=device, channels_last=last)
