"""What a conversion of a trained model found: conversion.json, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rotateconv.convert.report import ConversionEntry
from rotateconv.lab.plain import Plain, from_json


@dataclass(frozen=True)
class Accuracies(Plain):
    """Accuracy in percent of the models of a conversion.

    Attributes:
        source: The trained dense model.
        fitted: With the RotateConv layers that are nearest to its convolutions.
        fine_tuned: After training with the source as the teacher.
        calibrated: The fitted one with recalibrated norms; None in older records.
    """

    source: float
    fitted: float
    fine_tuned: float
    calibrated: float | None = None


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
        bits: Of weights, angles and dense layers where it was quantization-aware; else None.
        parameters_before, parameters_after: Of the whole model.
        validation_accuracy, test_accuracy: Of the models.
        validation_was_trained_on: Whether the fine-tuning saw the validation images.
        layers: All convolutions.
        kept: Which model the run folder holds: "fine_tuned", or "calibrated" where that is better on the validation
            images.
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
    kept: Literal["fine_tuned", "calibrated"] = "fine_tuned"


_RENAMED = {"net": "model", "lines": "taps", "quantised": "bits"}  # keys of version 0.1


def conversion_from_json(value: object, where: str | Path) -> ConversionRecord:
    """Return the conversion in a conversion.json, or in a record of several, of version 0.1 too.

    Raises:
        RunError: It is something else.
    """
    if isinstance(value, Mapping):
        value = {_RENAMED.get(key, key): item for key, item in value.items()}
    return from_json(ConversionRecord, value, where)
