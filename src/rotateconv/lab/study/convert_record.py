"""What a conversion of a trained model found: conversion.json, as frozen dataclasses, and conversion.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rotateconv.convert.report import ConversionEntry, ConversionReport
from rotateconv.lab.naming import counted
from rotateconv.lab.plain import Plain, from_json
from rotateconv.lab.table import Table


@dataclass(frozen=True)
class Accuracies(Plain):
    """Accuracy in percent of the models of a conversion.

    Attributes:
        source: The trained dense model.
        fitted: With the RotateConv layers that are nearest to its convolutions.
        fine_tuned: After training with the source as the teacher.
        calibrated: The fitted one with recalibrated norms; None in older records.
        quantized: The fitted one with the bits of the fine-tuned one and recalibrated norms; None without bits.
    """

    source: float
    fitted: float
    fine_tuned: float
    calibrated: float | None = None
    quantized: float | None = None


@dataclass(frozen=True)
class ConvertedLayer(ConversionEntry, Plain):
    """A convolution of the source: its residual where it was converted, else the reason why it was not."""


@dataclass(frozen=True)
class ConversionRecord(Plain):
    """What `rotateconv convert` found.

    Attributes:
        source: Run folder or file of weights of the trained model.
        model: Its name, or the function that builds it.
        dataset: That it was trained on.
        taps: Of the RotateConv layers.
        epochs, stages: Of the fine-tuning.
        budget: In bytes, that the bits were chosen for.
        bits: Of weights, angles and dense layers where it was quantization-aware; else None.
        parameters_before, parameters_after: Of the whole model.
        validation_accuracy, test_accuracy: Of the models.
        validation_was_trained_on: Whether the fine-tuning saw the validation images.
        layers: All convolutions.
        kept: Which model the run folder holds: "fine_tuned", or where that is better on the validation images
            "calibrated", with bits "quantized".
    """

    source: str
    model: str
    dataset: str
    taps: str
    epochs: int
    stages: int
    bits: tuple[int, int, int] | None
    parameters_before: int
    parameters_after: int
    validation_accuracy: Accuracies
    validation_was_trained_on: bool
    test_accuracy: Accuracies
    layers: tuple[ConvertedLayer, ...]
    kept: Literal["fine_tuned", "calibrated", "quantized"] = "fine_tuned"
    budget: int | None = None


_RENAMED = {"net": "model", "lines": "taps", "quantised": "bits"}  # keys of version 0.1


def conversion_from_json(value: object, where: str | Path) -> ConversionRecord:
    """Return the conversion in a conversion.json, or in a record of several, of version 0.1 too; else RunError."""
    if isinstance(value, Mapping):
        value = {_RENAMED.get(key, key): item for key, item in value.items()}
    return from_json(ConversionRecord, value, where)


_STATES = {
    "source": "trained model",
    "fitted": "fitted",
    "calibrated": "fitted, norms recalibrated",
    "quantized": "fitted, quantized, norms recalibrated",
    "fine_tuned": "fine-tuned for {epochs}",
}
"""The models of a conversion in the order of its tables, and what they are called there."""


def states_table(result: ConversionRecord) -> Table:
    """Return a row per model of a conversion."""
    rows = []
    for name, text in _STATES.items():
        parameters = result.parameters_before if name == "source" else result.parameters_after
        accuracies = [getattr(found, name) for found in (result.validation_accuracy, result.test_accuracy)]
        if None in accuracies:
            continue
        quantized = ", quantized" if name == "fine_tuned" and result.bits is not None else ""
        called = text.format(epochs=counted(result.epochs, "epoch")) + quantized
        rows.append((called, f"{parameters:,}", *(f"{accuracy:.2f}" for accuracy in accuracies)))
    return Table(("model", "parameters", "validation accuracy %", "test accuracy %"), tuple(rows), 1)


def markdown(result: ConversionRecord, layers: ConversionReport) -> str:
    """Return conversion.md: the accuracies, then the table of layers."""
    title = f"**{result.model} on {result.dataset}, converted to {result.taps} taps**"
    return "\n".join([title, "", states_table(result).markdown(), "", *_notes(result), "```", str(layers), "```", ""])


def _notes(result: ConversionRecord) -> Sequence[str]:
    notes = []
    if result.bits is not None:
        weight, angle, dense = result.bits
        notes.append(
            f"The quantized models have {weight} bits per weight, {angle} per angle, {dense} per number of "
            "stem, 1x1 and linear layers."
        )
    if result.validation_was_trained_on:
        notes.append("The validation images were trained on.")
    return [*notes, ""] if notes else []
