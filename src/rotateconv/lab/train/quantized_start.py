"""A trained model that goes on with quantized numbers: its norms before the first step, and what training must beat."""

from contextlib import suppress

from torch import nn

from rotateconv.convert.recalibrate import recalibrate
from rotateconv.errors import InputError
from rotateconv.lab.config import RunConfig
from rotateconv.lab.data.description import DataDescription
from rotateconv.lab.data.sets import Split
from rotateconv.lab.train.evaluate import evaluate
from rotateconv.lab.train.load import calibration_batches
from rotateconv.lab.train.run_folder import INITIAL
from rotateconv.lab.train.train_state import TrainingState
from rotateconv.lab.train.weights import load_weights, read_weights_file
from rotateconv.nn.copying import copy_model
from rotateconv.quantization.qat import QuantizedTraining
from rotateconv.quantization.quantize import quantize


def fit_norms(
    model: nn.Module, qat: QuantizedTraining, config: RunConfig, data: DataDescription, training: Split
) -> None:
    """Let the norms of a trained model measure what its quantized weights give, before the first step.

    A norm forgets its old statistics at a tenth a step: a training of a few steps would be judged by those of the
    float weights. Where the images do not suffice for variances, they stay.
    """
    with qat(), suppress(InputError):
        recalibrate(model, calibration_batches(model, config.execution, data, training))


def loss_by_training(state: TrainingState, last: float | None) -> str | None:
    """Return a sentence where `last`, on the validation images, is less than the model had with the bits untrained.

    That is the model that the run began with, quantized, its norms recalibrated.
    """
    bits = state.config.bits
    if bits is None or state.config.source is None or state.validation is None or last is None:
        return None
    begun = copy_model(state.model)
    load_weights(begun, read_weights_file(state.run / INITIAL), state.run / INITIAL)
    batches = calibration_batches(begun, state.config.execution, state.data, state.train)
    try:
        quantized = quantize(begun, **bits.arguments, calibration=batches)
    except InputError:  # too few images for variances
        quantized = quantize(begun, **bits.arguments)
    with state.accelerator.autocast():
        before = evaluate(quantized, state.validation, state.data.classes).accuracy
    if last >= before:
        return None
    return (
        f"training with quantized numbers came to {last:.1f} % on the validation images, and the same bits without "
        f"training have {before:.1f}: give a lower lr or more epochs"
    )
